"""The verbs that take a user's own pictures, and write images and latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_runs import refused
from PIL import Image, ImageOps

from resvae import VAE, HierarchicalVAE
from resvae.cli import main
from resvae.data import ImageSets
from resvae.storage import load, save
from resvae.verbs.images import images_for

COLOUR = {"image_shape": (3, 8, 8), "widths": (8, 8), "strides": (1, 2)}


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A folder with two models and pictures of odd kinds."""
    folder = tmp_path_factory.mktemp("there")
    torch.manual_seed(0)
    save(HierarchicalVAE((1, 1), (1, 1), 2, **COLOUR), folder / "levels")
    save(VAE((1, 1), 4, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2)), folder / "grey")
    rng = np.random.default_rng(0)
    (folder / "mine/more").mkdir(parents=True)
    for name, mode, size in (("a.png", "RGB", (20, 12)), ("more/a.PNG", "L", (8, 8)), ("more/b.jpg", "RGB", (9, 30))):
        shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / "mine" / name)
    (folder / "mine/notes.txt").write_text("no picture")
    return folder


@pytest.fixture(autouse=True)
def here(there, tmp_path, monkeypatch) -> Path:
    """An empty folder, with what is ``there`` in sight."""
    for each in there.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_pictures_are_cut_and_scaled_as_in_training(tmp_path):
    (tmp_path / "set").mkdir()
    rng = np.random.default_rng(1)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (11, 7 + i, 3), np.uint8)).save(tmp_path / f"set/{i:02d}.png")
    trained = ImageSets("folder", path="set", image_size=8, validation=1)
    x = torch.cat([trained.images(split) for split in ("train", "val", "test")])
    assert main(["encode", "levels", "set", "--out", "all.npz"]) == 0
    found = arrays("all.npz")
    means = torch.cat([level[0].flatten(1) for level in load("levels").latents(x)], 1)
    ours = np.concatenate([found["mean_00"].reshape(12, -1), found["mean_01"].reshape(12, -1)], 1)
    for row in means.detach().numpy():
        assert np.abs(ours - row).max(1).min() < 1e-4
    assert found["names"].tolist() == [f"{i:02d}" for i in range(12)]


def test_reconstruct_takes_files_and_folders(capsys):
    assert main(["reconstruct", "levels", "mine", "mine/a.png", "--out", "ours"]) == 0
    assert capsys.readouterr().out.strip().endswith("wrote ours (4 images)")
    assert {path.name for path in Path("ours").iterdir()} == {"a.png", "a-2.png", "b.png", "a-3.png"}
    assert Image.open("ours/b.png").size == (8, 8)
    assert main(["reconstruct", "levels", "mine/a.png", "--out", "one.png"]) == 0
    wide, high = Image.open("one.png").size
    assert high > 1.9 * wide  # the picture over its reconstruction
    for levels in (0, 1, 2):
        assert main(f"reconstruct levels mine --num_levels {levels} --out {levels}.npz".split()) == 0
    images = [arrays(f"{levels}.npz")["arr_0"] for levels in (0, 1, 2)]
    assert (images[0][0] == images[0][1]).all()  # no level has seen them
    assert (images[1] != images[2]).any()
    assert images[2].shape == (3, 8, 8, 3)
    assert images[2].dtype == np.uint8


def test_a_grey_model_sees_grey():
    ((names, x),) = images_for(load("grey"), "grey", ["mine/more/a.PNG", "mine/a.png"], None)
    assert names == ["a", "a-2"]
    assert np.array_equal(x[0, 0].numpy(), np.asarray(Image.open("mine/more/a.PNG")))
    cut = ImageOps.fit(Image.open("mine/a.png"), (8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(x[1, 0].numpy(), np.asarray(cut.convert("L")))
    assert main(["reconstruct", "grey", "mine", "--out", "grey.npz"]) == 0
    assert arrays("grey.npz")["arr_0"].shape == (3, 8, 8, 1)


def test_interpolate_leads_from_each_picture_to_the_next():
    assert main(["interpolate", "levels", "mine/a.png", "mine/more/b.jpg", "--steps", "5", "--out", "between"]) == 0
    names = sorted(path.name for path in Path("between").iterdir())
    assert names == [f"a_b_{i:02d}.png" for i in range(5)]
    assert main(["reconstruct", "levels", "mine/a.png", "mine/more/b.jpg", "--out", "ends"]) == 0
    for end, name in (("a", names[0]), ("b", names[-1])):
        assert np.array_equal(np.asarray(Image.open(f"ends/{end}.png")), np.asarray(Image.open(f"between/{name}")))


@pytest.mark.parametrize("model", ["levels", "grey"])
def test_what_is_encoded_decodes_to_its_reconstruction(model):
    assert main(f"encode {model} mine --out latents.npz".split()) == 0
    latents = arrays("latents.npz")
    assert (latents["scale_00"] > 0).all()
    assert len(latents) == (5 if model == "levels" else 3)
    assert main(f"decode {model} latents.npz --out decoded.npz".split()) == 0
    assert main(f"reconstruct {model} mine --out reconstructed.npz".split()) == 0
    decoded, reconstructed = arrays("decoded.npz"), arrays("reconstructed.npz")
    assert decoded["names"].tolist() == reconstructed["names"].tolist()
    assert np.abs(decoded["arr_0"].astype(int) - reconstructed["arr_0"]).max() <= 1


def test_encode_takes_a_data_set():
    assert main(["encode", "grey", "--data", "digits", "--split", "val", "--num", "7", "--out", "seven.npz"]) == 0
    assert arrays("seven.npz")["names"].tolist() == [f"val_{i:05d}" for i in range(7)]


def test_samples_go_to_a_folder_or_an_npz():
    assert main(["sample", "levels", "--num", "300", "--out", "many.npz"]) == 0
    assert main(["sample", "levels", "--num", "5", "--out", "few/"]) == 0
    many = arrays("many.npz")["arr_0"]
    assert many.shape == (300, 8, 8, 3)
    assert len(np.unique(many.reshape(300, -1), axis=0)) == 300
    assert sorted(path.name for path in Path("few").iterdir()) == [f"{i:06d}.png" for i in range(5)]


def test_names_in_latents_write_nowhere_else(tmp_path):
    np.savez("odd.npz", mean_00=np.zeros((2, 4), np.float32), names=np.array(["../out", "/etc/x"]))
    assert main(["decode", "grey", "odd.npz", "--out", "inside"]) == 0
    assert {path.name for path in Path("inside").iterdir()} == {"out.png", "x.png"}
    assert not (tmp_path / "out.png").exists()


BAD = {
    "reconstruct levels none.png": ["pictures: none.png does not exist"],
    "reconstruct levels mine/notes.txt": ["pictures: ", "notes.txt is not an image that can be read\n"],
    "reconstruct levels empty": ["empty holds no images", ".png"],
    "reconstruct levels mine --data digits": ["data: digits is not allowed with pictures"],
    "reconstruct grey mine --num_levels 1": ["num_levels: 1 is not allowed", "VAE has one level"],
    "reconstruct levels mine --num_levels 3": ["num_levels: 3"],
    "reconstruct levels mine --out full": ["full holds files already"],
    "reconstruct levels": ["levels is not a run's folder", "--data cifar10"],
    "interpolate levels mine": ["pictures: 3 are not allowed; give two for each row"],
    "interpolate levels mine/a.png": ["images: 1"],
    "encode levels mine --out x.png": ["x.png is not allowed; end it with .npz"],
    "encode levels mine --num 0": ["num: 0"],
    "decode levels none.npz": ["none.npz does not exist"],
    "decode levels mine/notes.txt": ["is not an .npz of plain arrays"],
    "decode levels other.npz": ["other.npz must hold mean_00"],
    "decode levels few.npz": ["few.npz holds 3 numbers for each image; this model takes"],
    "decode levels": ["latents"],
    "sample levels --out mine/notes.txt": ["end it with .png"],
    "sample levels --out no/samples": ["no does not exist"],
}


@pytest.mark.parametrize("command", BAD)
def test_mistakes_are_one_line_and_write_nothing(command, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x.png").touch()
    np.savez("other.npz", images=np.zeros(3))
    np.savez("few.npz", mean_00=np.zeros((2, 3), np.float32))
    before = {*tmp_path.rglob("*")}
    refused(capsys, command.split(), *BAD[command])
    assert {*tmp_path.rglob("*")} == before
