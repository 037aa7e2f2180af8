"""A folder of images, as people have them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of ten colour images 6x6, each of one colour."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (6, 6), (label * 100, i, 7)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def notes(path: Path, **options: Any) -> str:
    return "\n".join(ImageDataModule("folder", path=str(path), **options).notes)


def test_folder_labels_by_class_and_keeps_pixels(pictures: Path) -> None:
    (pictures / ".hidden").mkdir()
    Image.new("RGB", (6, 6)).save(pictures / ".hidden" / "x.png")
    (pictures / "dog" / "._0.png").write_bytes(b"what another system leaves")
    module = ImageDataModule("folder", path=str(pictures), validation=4)
    assert (module.num_train, module.num_val, module.num_test, module.image_shape) == (14, 4, 2, (3, 6, 6))
    for split in SPLITS:
        x, y = module.images(split), module.labels(split)
        assert torch.equal(x[:, 0, 0, 0].long(), y * 100)
        assert (x[:, 2] == 7).all()


def test_folder_of_grey_images_without_classes_has_one_channel(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("L", (4, 8), i).save(tmp_path / f"{i:02}.png")
    module = ImageDataModule("folder", path=str(tmp_path), validation=2)
    assert module.image_shape == (1, 8, 4)
    assert module.num_classes == 1
    assert module.images("test").unique().tolist() == [9]  # every tenth file, by name


def test_folder_with_train_and_test_numbers_their_classes_alike(pictures: Path) -> None:
    for part in ("train", "test"):
        (pictures / part).mkdir()
    for name in ("cat", "dog"):
        (pictures / name).rename(pictures / "train" / name)
    shutil.copytree(pictures / "train" / "dog", pictures / "test" / "dog")
    module = ImageDataModule("folder", path=str(pictures))
    assert (module.num_train, module.num_val, module.num_test) == (18, 2, 10)
    assert (module.images("test")[:, 0] == 100).all()
    assert module.labels("test").tolist() == [1] * 10
    shutil.copytree(pictures / "train" / "cat", pictures / "test" / "cat")
    assert set(ImageDataModule("folder", path=str(pictures)).labels("test")[:10].tolist()) == {0, 1}


def test_images_outside_of_the_classes_leave_all_without_labels(pictures: Path) -> None:
    shutil.copy(next((pictures / "dog").glob("*.png")), pictures / "loose.png")
    module = ImageDataModule("folder", path=str(pictures))
    assert module.num_train + module.num_val + module.num_test == 21
    assert module.num_classes == 1


def test_folder_cuts_square_and_scales(pictures: Path) -> None:
    Image.new("RGB", (40, 10), (255, 0, 0)).save(pictures / "cat" / "wide.png")
    module = ImageDataModule("folder", path=str(pictures), image_size=4)
    assert module.image_shape == (3, 4, 4)
    with pytest.raises(ResvaeError, match=r"wide\.png is 10x40, others such as 0\.png are 6x6; set data\.image_size"):
        ImageDataModule("folder", path=str(pictures)).setup()


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_corrupt_image_is_named_and_refused_or_skipped(pictures: Path, damage: str) -> None:
    good = (pictures / "dog" / "3.png").read_bytes()
    (pictures / "dog" / "3.png").write_bytes(b"no image" if damage == "text" else good[:50])
    with pytest.raises(ResvaeError, match=r"dog/3\.png is not an image .* data\.on_corrupt"):
        ImageDataModule("folder", path=str(pictures)).setup()
    module = ImageDataModule("folder", path=str(pictures), on_corrupt="skip")
    with pytest.warns(UserWarning, match=r"skipped .*dog/3\.png"):
        module.setup()
    assert module.num_train + module.num_val + module.num_test == 19
    assert "data: 1 images left out, as they cannot be read" in module.notes


def move(folder: Path, *parts: str) -> None:
    """The classes of a folder into each of its ``parts``."""
    for part in parts:
        for name in ("cat", "dog"):
            shutil.copytree(folder / name, folder / part / name)
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "DEV"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_a_folder_with_its_own_validation_images(pictures: Path, train: str, val: str) -> None:
    move(pictures, train, val, "Test")
    (pictures / val / "cat" / "0.png").unlink()
    (pictures / "Test" / "cat" / "1.png").unlink()
    (pictures / "Test" / "cat" / "0.png").unlink()
    module = ImageDataModule("folder", path=str(pictures), validation=7)
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (20, 19, 18, 2)
    for split in SPLITS:
        assert torch.equal(module.images(split)[:, 0, 0, 0].long(), module.labels(split) * 100)
    assert "57 images of 6x6, in colour" in module.notes[0]
    assert "2 classes: cat 27, dog 30" in module.notes[0]
    assert f"the splits are {train}/" in module.notes[1]
    alike = ImageDataModule("folder", path=str(pictures), protocol="test_as_validation")
    assert alike.num_val == 18


def test_without_test_images_tests_are_on_the_validation_images(pictures: Path) -> None:
    move(pictures, "train", "val")
    module = ImageDataModule("folder", path=str(pictures))
    assert (module.num_train, module.num_val, module.num_test) == (20, 20, 20)
    assert torch.equal(module.images("val"), module.images("test"))
    assert "data: there is no test split: tests are on the validation images" in module.notes


def test_train_alone_is_no_class(pictures: Path) -> None:
    move(pictures, "train")
    module = ImageDataModule("folder", path=str(pictures), validation=2)
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (16, 2, 2, 2)


def test_an_archives_only_folder_is_entered(pictures: Path, tmp_path: Path) -> None:
    move(pictures, "train", "test")
    (pictures / "pets").mkdir()
    (pictures / "__MACOSX").mkdir()
    Image.new("RGB", (3, 3)).save(pictures / "__MACOSX" / "a.png")
    for part in ("train", "test"):
        (pictures / part).rename(pictures / "pets" / part)
    module = ImageDataModule("folder", path=str(pictures))
    assert (module.num_train, module.num_val, module.num_test) == (18, 2, 20)
    assert str(pictures / "pets") in module.notes[0]


def test_splits_that_do_not_fit_together_are_refused(pictures: Path) -> None:
    move(pictures, "val", "test")
    with pytest.raises(ResvaeError, match=r"holds the folders val and test, but none named train"):
        ImageDataModule("folder", path=str(pictures)).setup()
    (pictures / "train").mkdir()
    with pytest.raises(ResvaeError, match=r"the train split holds no images"):
        ImageDataModule("folder", path=str(pictures)).setup()
    (pictures / "valid").mkdir()
    with pytest.raises(ResvaeError, match=r"holds the folders val and valid; only one can be the val split"):
        ImageDataModule("folder", path=str(pictures)).setup()


def test_what_is_left_out_is_told(pictures: Path) -> None:
    (pictures / "cat" / "labels.txt").write_text("0 0 1 1")
    (pictures / "cat" / "README").write_text("Cats.")
    assert "left out, as no images: 1 without an ending, 1 .txt" in notes(pictures)
    shutil.copy(pictures / "cat" / "0.png", pictures / "loose.png")
    assert "no labels: 1 images are in no class folder (loose.png)" in notes(pictures)
    move(pictures, "train", "test", "extra")
    shutil.move(pictures / "test" / "cat", pictures / "test" / "bird")
    said = notes(pictures)
    assert "left out, beside the splits: extra/ (20 images), loose.png" in said
    assert "classes of the test split that train has not: bird" in said


def test_links_are_followed_but_not_round_in_a_circle(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(pictures / name)
    (pictures / "cat" / "again").symlink_to(pictures / "cat")
    module = ImageDataModule("folder", path=str(tmp_path / "linked"))
    assert module.num_train + module.num_val + module.num_test == 20
    (pictures / "cat" / "gone.png").symlink_to(pictures / "nowhere.png")
    with pytest.raises(ResvaeError, match=r"gone\.png is not an image that can be read"):
        ImageDataModule("folder", path=str(pictures)).setup()


def one(path: Path, save: Callable[[Path], None]) -> tuple[torch.Tensor, str]:
    """Twelve files of one kind: the image and what is said of it."""
    for i in range(12):
        save(path / f"{i:02}")
    module = ImageDataModule("folder", path=str(path), validation=1)
    return module.images("train")[0], "\n".join(module.notes)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535], [128, 129, 25700]], np.uint16)
    x, said = one(tmp_path, lambda path: Image.fromarray(values).save(path.with_suffix(".png")))
    assert x.tolist() == [[[0, 1, 255], [0, 1, 100]]]
    assert "12 images of 16 bits: scaled to 8" in said


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white(tmp_path: Path, mode: str) -> None:
    colour = (200, 0, 0, 0) if mode == "RGBA" else (200, 0)
    picture = Image.new(mode, (3, 2), colour)
    picture.putpixel((0, 0), (*colour[:-1], 255))
    x, said = one(tmp_path, lambda path: picture.save(path.with_suffix(".png")))
    assert x[:, 0, 0].tolist() == ([200, 0, 0] if mode == "RGBA" else [200])
    assert (x[:, 1:] == 255).all()
    assert (x[:, 0, 1:] == 255).all()
    assert "12 images with transparency: put on white" in said


def test_opaque_alpha_and_palettes_are_not_worth_a_word(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 2), (10, 20, 30, 255))
    x, said = one(tmp_path, lambda path: picture.save(path.with_suffix(".png")))
    assert x[:, 0, 0].tolist() == [10, 20, 30]
    assert said.count("\n") == 0
    palette = Image.new("RGB", (2, 2), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    x, said = one(tmp_path, lambda path: palette.save(path.with_suffix(".gif")))
    assert x[:, 0, 0].tolist() == [10, 20, 30]
    assert said.count("\n") == 0


def test_pictures_are_turned_as_cameras_say(tmp_path: Path) -> None:
    picture, exif = Image.new("RGB", (4, 4)), Image.Exif()
    picture.putpixel((0, 0), (255, 255, 255))
    exif[0x0112] = 6  # turn by 90 degrees: the left top goes to the right top
    x, said = one(tmp_path, lambda path: picture.save(path.with_suffix(".png"), exif=exif))
    assert x[0, 0].tolist() == [0, 0, 0, 255]
    assert "12 images turned as their EXIF says" in said


def test_odd_exif_does_not_hide_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (2, 2), (1, 2, 3))
    x, _ = one(tmp_path, lambda path: picture.save(path.with_suffix(".png"), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert x[:, 0, 0].tolist() == [1, 2, 3]

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    module = ImageDataModule("folder", path=str(tmp_path))
    assert "12 images with EXIF that cannot be read: taken as they are" in "\n".join(module.notes)


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    x, said = one(
        tmp_path, lambda path: frames[0].save(path.with_suffix(".tif"), save_all=True, append_images=frames[1:])
    )
    assert x.unique().tolist() == [10]
    assert "12 images of several frames: the first is taken" in said


@pytest.mark.parametrize(
    ("dtype", "value", "message"), [(np.float32, 0.5, "floating-point"), (np.int32, 70000, "more than 16 bits")]
)
def test_deeper_pixels_are_refused(pictures: Path, dtype: Any, value: float, message: str) -> None:
    Image.fromarray(np.full((6, 6), value, dtype)).save(pictures / "cat" / "deep.tif")
    with pytest.raises(ResvaeError, match=rf"deep\.tif has {message}"):
        ImageDataModule("folder", path=str(pictures)).setup()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResvaeError, match=r"holds no images; these types are read: \.png, \.jpg"):
        ImageDataModule("folder", path=str(tmp_path)).setup()


class TestCache:
    """The images of a folder in one file, for as long as nothing changes."""

    def test_it_is_used_until_a_file_changes(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = ImageDataModule("folder", path=str(pictures), cache=True)
        first.setup()
        (cache,) = (pictures / ".resvae").glob("*.npz")
        monkeypatch.setattr("resvae.data.pictures.decoded", lambda *_: pytest.fail("an image was read"))
        again = ImageDataModule("folder", path=str(pictures), cache=True)
        for split in SPLITS:
            assert torch.equal(first.images(split), again.images(split))
            assert torch.equal(first.labels(split), again.labels(split))
        assert first.notes == again.notes
        monkeypatch.undo()
        Image.new("RGB", (6, 6), (50, 50, 50)).save(pictures / "cat" / "3.png")
        changed = ImageDataModule("folder", path=str(pictures), cache=True)
        pixels = torch.cat([changed.images(split) for split in SPLITS])
        assert (pixels[:, 0, 0, 0] == 50).sum() == 1
        assert len(list((pictures / ".resvae").glob("*.npz"))) == 2
        smaller = ImageDataModule("folder", path=str(pictures), cache=True, image_size=4)
        assert smaller.image_shape == (3, 4, 4)
        assert cache.exists()

    def test_a_damaged_one_is_made_again(self, pictures: Path) -> None:
        ImageDataModule("folder", path=str(pictures), cache=True).setup()
        (cache,) = (pictures / ".resvae").glob("*.npz")
        whole = cache.read_bytes()
        cache.write_bytes(whole[: len(whole) // 2])
        with pytest.warns(UserWarning, match="is damaged; the images are read again"):
            ImageDataModule("folder", path=str(pictures), cache=True).setup()
        assert cache.stat().st_size == len(whole)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_read_only_is_read_all_the_same(self, pictures: Path) -> None:
        pictures.chmod(0o500)
        with pytest.warns(UserWarning, match="cannot be written"):
            ImageDataModule("folder", path=str(pictures), cache=True).setup()
        pictures.chmod(0o700)
