"""What is read, how it is split, and the stream of batches: complete, reproducible, resumable."""

import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from sklearn.datasets import load_digits
from torchvision import datasets

from resvae import data
from resvae.data import ImageDataModule, pipeline
from resvae.data.pipeline import EpochSampler, ImageDataset, random_crop, train_loader
from resvae.data.sources import Images, resized
from resvae.errors import ResvaeError

CIFAR = Path(__file__).parents[1] / "data" / "cifar-10-batches-py"


def rows(x: torch.Tensor) -> list[bytes]:
    """Each image as bytes, to be counted."""
    return [image.numpy().tobytes() for image in x]


def numbered(n: int, size: int = 8) -> Images:
    """Images that all differ: image i is full of value i + 1, its label is i."""
    x = torch.arange(1, n + 1, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 2, size, size).contiguous()
    return Images(x, torch.arange(n))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of ten colour images 6x6, each of one colour."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (6, 6), (label * 100, i, 7)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def npz(path: Path, **arrays: Any) -> Path:
    """An .npz of these arrays."""
    np.savez(path / "set.npz", **arrays)
    return path / "set.npz"


# ---- sources


def test_digits_are_all_there_and_exact() -> None:
    module = ImageDataModule("digits", validation=200)
    assert module.image_shape == (1, 8, 8)
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (1298, 200, 299, 10)
    values, labels = load_digits(return_X_y=True)
    expected = torch.from_numpy(np.round(values * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
    got = torch.cat([module.images(split) for split in ("train", "val", "test")])
    assert sorted(rows(got)) == sorted(rows(expected))
    assert torch.equal(module.images("test"), expected[5::6])
    assert torch.equal(module.labels("test"), torch.from_numpy(labels[5::6]))


def test_digits_padded_to_32_stand_in_the_middle() -> None:
    small, large = ImageDataModule("digits"), ImageDataModule("digits", image_size=32)
    assert large.image_shape == (1, 32, 32)
    assert torch.equal(large.images("test")[:, :, 12:20, 12:20], small.images("test"))
    assert large.images("test").sum() == small.images("test").sum()


def test_larger_images_are_averaged_down() -> None:
    x = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert resized(x[None, None], 2).flatten().tolist() == [10, 20, 30, 40]
    assert resized(x[None, None], 1).item() == 25


def test_folder_labels_by_class_and_keeps_pixels(pictures: Path) -> None:
    (pictures / ".hidden").mkdir()
    Image.new("RGB", (6, 6)).save(pictures / ".hidden" / "x.png")
    (pictures / "dog" / "._0.png").write_bytes(b"what another system leaves")
    module = ImageDataModule("folder", path=str(pictures), validation=4)
    assert (module.num_train, module.num_val, module.num_test, module.image_shape) == (14, 4, 2, (3, 6, 6))
    for split in ("train", "val", "test"):
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


def test_folder_with_train_and_test(pictures: Path) -> None:
    for part in ("train", "test"):
        (pictures / part).mkdir()
    (pictures / "cat").rename(pictures / "train" / "cat")
    (pictures / "dog").rename(pictures / "test" / "cat")
    module = ImageDataModule("folder", path=str(pictures))
    assert (module.num_train, module.num_val, module.num_test) == (9, 1, 10)
    assert (module.images("test")[:, 0] == 100).all()


def test_folder_cuts_square_and_scales(pictures: Path) -> None:
    Image.new("RGB", (40, 10), (255, 0, 0)).save(pictures / "cat" / "wide.png")
    module = ImageDataModule("folder", path=str(pictures), image_size=4)
    assert module.image_shape == (3, 4, 4)
    with pytest.raises(ResvaeError, match=r"wide\.png is 10x40, others are 6x6; set data\.image_size"):
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


def test_sixteen_bit_images_are_refused_not_clipped(pictures: Path) -> None:
    Image.fromarray(np.full((6, 6), 5000, np.uint16)).save(pictures / "cat" / "deep.png")
    with pytest.raises(ResvaeError, match=r"deep\.png has more than 8 bits"):
        ImageDataModule("folder", path=str(pictures)).setup()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz_layouts(tmp_path: Path, layout: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 7), np.uint8)
    stored = {"NHWC": x.transpose(0, 2, 3, 1), "NCHW": x, "NHW": x[:, 0]}[layout]
    expected = torch.from_numpy(x if layout != "NHW" else x[:, :1])
    module = ImageDataModule("npz", path=str(npz(tmp_path, images=stored, labels=np.arange(30))), validation=5)
    assert module.image_shape == tuple(expected.shape[1:])
    for split, num in (("train", 22), ("val", 5), ("test", 3)):
        assert len(module.labels(split)) == num
        assert torch.equal(module.images(split), expected[module.labels(split)])


def test_npz_with_its_own_test_set(tmp_path: Path) -> None:
    path = npz(tmp_path, images=np.zeros((8, 4, 4, 3), np.uint8), test_images=np.ones((3, 4, 4, 3), np.uint8))
    module = ImageDataModule("npz", path=str(path), validation=0.25)
    assert (module.num_train, module.num_val, module.num_test) == (6, 2, 3)
    assert (module.images("test") == 1).all()


GREY = np.zeros((20, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREY.astype(np.float32)}, r"images are float32; uint8"),
        ({"pictures": GREY}, r"holds pictures, but no array named images"),
        ({"images": GREY[0]}, r"shape \(4, 4\); N H W"),
        ({"images": GREY, "labels": np.zeros(3, int)}, r"20 whole numbers"),
        ({"images": GREY, "labels": np.zeros(20)}, r"labels are float64"),
        ({"images": GREY, "labels": np.full(20, -1)}, r"whole numbers from 0"),
        ({"images": GREY, "test_images": GREY[:, :3]}, r"training images are \(1, 4, 4\), test images \(1, 3, 4\)"),
        ({"images": np.array([{}] * 20, object)}, r"not an \.npz of plain arrays"),
        ({"images": GREY[:5]}, r"5 images are too few"),
    ],
)
def test_unsuitable_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ResvaeError, match=message) as caught:
        ImageDataModule("npz", path=str(npz(tmp_path, **arrays))).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", None])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = npz(tmp_path, images=GREY)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ResvaeError, match=r"set\.npz is not an \.npz of plain arrays"):
        ImageDataModule("npz", path=str(path)).setup()
    np.save(path.with_suffix(".npy"), GREY)
    with pytest.raises(ResvaeError, match=r"set\.npy is not an \.npz of plain arrays"):
        ImageDataModule("npz", path=str(path.with_suffix(".npy"))).setup()


@pytest.mark.parametrize(
    ("name", "kind", "shape", "expected"),
    [
        ("cifar10", "CIFAR10", (40, 32, 32, 3), (3, 32, 32)),
        ("cifar100", "CIFAR100", (40, 32, 32, 3), (3, 32, 32)),
        ("svhn", "SVHN", (40, 3, 32, 32), (3, 32, 32)),
        ("mnist", "MNIST", (40, 28, 28), (1, 32, 32)),
        ("fashion_mnist", "FashionMNIST", (40, 28, 28), (1, 32, 32)),
    ],
)
def test_torchvision_sets(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    arrays = {part: np.random.default_rng(part).integers(0, 256, shape, np.uint8) for part in (True, False)}

    def fake(root: str, download: bool, train: bool = True, split: str | None = None) -> Any:
        assert (split is not None) == (name == "svhn")
        assert download
        part = train if split is None else split == "train"
        pixels = torch.from_numpy(arrays[part]) if "mnist" in name else arrays[part]
        return SimpleNamespace(data=pixels, **{"labels" if name == "svhn" else "targets": list(range(40))})

    monkeypatch.setattr(datasets, kind, fake)
    module = ImageDataModule(name)
    assert module.image_shape == expected
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (36, 4, 40, 40)
    for split in ("train", "val", "test"):
        raw = torch.from_numpy(arrays[split != "test"])[module.labels(split)]
        if raw.ndim == 3:
            raw = torch.nn.functional.pad(raw, (2, 2, 2, 2))[:, None]
        elif name != "svhn":
            raw = raw.permute(0, 3, 1, 2)
        assert torch.equal(module.images(split), raw)
        assert module.images(split).is_contiguous()


@pytest.mark.parametrize("error", [RuntimeError("File not found\nor corrupted"), OSError("no route"), EOFError()])
def test_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "CIFAR10", failing)
    with pytest.raises(ResvaeError) as caught:
        ImageDataModule("cifar10", root="there").setup()
    text = str(caught.value)
    for part in ("cifar10 is not in there", "https://www.cs.toronto.edu", "there/cifar-10-batches-py", "digits"):
        assert part in text
    assert "\n" not in text


def test_a_set_that_is_absent_and_may_not_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(ResvaeError, match="cifar10 is not in"):
        ImageDataModule("cifar10", root=str(tmp_path), download=False).setup()


@pytest.mark.skipif(not CIFAR.exists(), reason="the official CIFAR-10 is not in data/")
def test_the_real_cifar10(capsys: pytest.CaptureFixture[str]) -> None:
    module = ImageDataModule("cifar10", root=str(CIFAR.parent))
    assert module.image_shape == (3, 32, 32)
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (45000, 5000, 10000, 10)
    assert torch.bincount(module.labels("test")).tolist() == [1000] * 10
    reference = datasets.CIFAR10(str(CIFAR.parent), train=False)
    assert np.array_equal(module.images("test")[7].permute(1, 2, 0).numpy(), np.asarray(reference[7][0]))
    assert capsys.readouterr().out == ""


# ---- splits and arguments


def test_split_is_a_partition_that_the_seed_decides(tmp_path: Path) -> None:
    path = npz(tmp_path, images=GREY.repeat(5, 0), labels=np.arange(100))
    split = {seed: ImageDataModule("npz", path=str(path), validation=20, seed=seed) for seed in (0, 1)}
    for module in split.values():
        parts = [set(module.labels(name).tolist()) for name in ("train", "val", "test")]
        assert [len(part) for part in parts] == [70, 20, 10]
        assert set.union(*parts) == set(range(100))
    again = ImageDataModule("npz", path=str(path), validation=0.2222, seed=0)
    assert torch.equal(again.labels("val"), split[0].labels("val"))
    assert not torch.equal(split[1].labels("val"), split[0].labels("val"))
    assert torch.equal(split[1].labels("test"), split[0].labels("test"))


def test_article_protocol_trains_on_all_and_validates_on_test() -> None:
    module = ImageDataModule("digits", protocol="test_as_validation")
    assert (module.num_train, module.num_val) == (1498, 299)
    assert torch.equal(module.images("val"), module.images("test"))


def test_limit_keeps_validation_and_every_class(pictures: Path) -> None:
    full = ImageDataModule("folder", path=str(pictures), protocol="test_as_validation")
    few = ImageDataModule("folder", path=str(pictures), protocol="test_as_validation", limit=8)
    assert (few.num_train, few.num_val) == (8, full.num_val)
    assert few.labels("train").unique().tolist() == [0, 1]
    assert torch.equal(few.images("train"), full.images("train")[:8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar11"}, r"data\.name: 'cifar11' is not known; one of cifar10, .*npz"),
        ({"name": "folder"}, r"data\.path: it is missing"),
        ({"name": "folder", "path": "/no/such"}, r"data\.path: /no/such does not exist"),
        ({"batch_size": 0}, r"data\.batch_size: 0 is not allowed; at least 1"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size: 0"),
        ({"limit": 0}, r"data\.limit: 0"),
        ({"num_workers": -1}, r"data\.num_workers: -1 .* 0 or more"),
        ({"crop_padding": -1}, r"data\.crop_padding: -1"),
        ({"seed": -1}, r"data\.seed: -1"),
        ({"image_size": 0}, r"data\.image_size: 0"),
        ({"protocol": "none"}, r"data\.protocol: 'none'"),
        ({"on_corrupt": "ignore"}, r"data\.on_corrupt: 'ignore'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ResvaeError, match=message):
        ImageDataModule(**{"name": "digits", **arguments})


@pytest.mark.parametrize("validation", [0, 0.0, 1498, 2000, 1.0, -1, float("nan"), float("inf")])
def test_validation_must_leave_images_on_both_sides(validation: float) -> None:
    with pytest.raises(ResvaeError, match=r"data\.validation: .* of 1498 training images"):
        ImageDataModule("digits", validation=validation).setup()


def test_empty_folder_names_the_extensions(tmp_path: Path) -> None:
    with pytest.raises(ResvaeError, match=r"holds no images; \.png, \.jpg"):
        ImageDataModule("folder", path=str(tmp_path)).setup()


# ---- batches


def test_batches_are_uint8_whole_and_last_one_smaller() -> None:
    module = ImageDataModule("digits", batch_size=100, validation=200, eval_batch_size=150)
    batches = list(module.train_dataloader())
    assert [len(x) for x, _ in batches] == [100] * 12 + [98]
    assert all(x.dtype == torch.uint8 and y.dtype == torch.int64 for x, y in batches)
    assert sorted(rows(torch.cat([x for x, _ in batches]))) == sorted(rows(module.images("train")))
    for split, loader in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
        x, y = (torch.cat(part) for part in zip(*loader, strict=True))
        assert torch.equal(x, module.images(split))
        assert torch.equal(y, module.labels(split))


def test_labels_stay_with_their_images() -> None:
    loader = train_loader(ImageDataset(numbered(50)), 8)
    for x, y in loader:
        assert torch.equal(x[:, 0, 0, 0].long(), y + 1)


def test_batches_never_share_memory_with_the_set() -> None:
    images = numbered(6)
    for x, y in train_loader(ImageDataset(images, flip=True), 4):
        x.zero_(), y.zero_()
    assert torch.equal(images.x, numbered(6).x)
    assert torch.equal(images.y, numbered(6).y)


def test_crop_is_a_window_of_the_padded_image_each_as_likely() -> None:
    height, width, padding, batch = 4, 6, 2, 5000
    image = np.arange(1, 2 * height * width + 1, dtype=np.uint8).reshape(2, height, width)
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = {
        padded[:, top : top + height, left : left + width].tobytes(): (top, left)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }
    out = random_crop(np.broadcast_to(image, (batch, *image.shape)), padding, np.random.default_rng(0))
    places = np.array([windows[crop.tobytes()] for crop in out])
    counts = np.histogram2d(places[:, 0], places[:, 1], bins=5)[0]
    assert np.abs(counts - batch / 25).max() < 5 * np.sqrt(batch / 25)


def test_flip_mirrors_half() -> None:
    image = torch.arange(24, dtype=torch.uint8).view(1, 2, 3, 4)
    dataset = ImageDataset(Images(image.repeat(2000, 1, 1, 1), torch.zeros(2000).long()), flip=True)
    x, _ = dataset.__getitems__(list(range(2000)))
    mirrored = (x == image.flip(-1)).flatten(1).all(1)
    assert ((x == image).flatten(1).all(1) ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.05


def test_crop_and_flip_are_drawn_apart() -> None:
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    dataset = ImageDataset(Images(image.repeat(500, 1, 1, 1), torch.zeros(500).long()), crop_padding=1, flip=True)
    x, _ = dataset.__getitems__(list(range(500)))
    assert len(set(rows(x))) == 18  # 9 places, mirrored or not


def epoch(module: ImageDataModule, number: int) -> list[torch.Tensor]:
    loader: Any = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return [x for x, _ in loader]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_only_seed_and_epoch_decide_the_batches() -> None:
    make = {"name": "digits", "limit": 300, "crop_padding": 2, "flip": True, "batch_size": 64}
    torch.manual_seed(0)
    first = epoch(ImageDataModule(**make), 3)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the very stream that must not matter
    assert same(first, epoch(ImageDataModule(**make), 3))
    assert same(first, epoch(ImageDataModule(**make, num_workers=2), 3))
    assert not same(first, epoch(ImageDataModule(**make), 4))
    assert not same(first, epoch(ImageDataModule(**make, seed=1), 3))


def test_augmentation_changes_from_epoch_to_epoch() -> None:
    dataset = ImageDataset(Images(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8), torch.zeros(1).long()), 3, True)
    drawn = set()
    for dataset.epoch in range(20):
        drawn.update(rows(dataset.__getitems__([0])[0]))
    assert len(drawn) > 10
    assert torch.equal(dataset[0][0], dataset.__getitems__([0])[0][0])


def test_the_global_random_stream_is_left_alone() -> None:
    module = ImageDataModule("digits", crop_padding=2, flip=True)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_ranks_share_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        sampler = EpochSampler(ImageDataset(numbered(40)))
        sampler.set_epoch(2)
        shares.append(set(sampler))
    assert [len(share) for share in shares] == [10] * 4
    assert set.union(*shares) == set(range(40))


def test_start_passes_over_once() -> None:
    whole = list(EpochSampler(ImageDataset(numbered(20))))
    sampler = EpochSampler(ImageDataset(numbered(20)), start=13)
    assert list(sampler) == whole[13:]
    assert list(sampler) == whole


# ---- with Lightning


class Recorder(pl.LightningModule):
    """Keeps the batches that it has trained on; its weight depends on all of them, in their order."""

    def __init__(self, fail_at: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1, 8, 8))
        self.batches: list[torch.Tensor] = []
        self.fail_at = fail_at

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.fail_at == self.global_step:
            raise KeyboardInterrupt
        self.batches.append(batch[0])
        return (batch[0].float() / 255 - self.weight).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", (batch[0].float() / 255 - self.weight).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.1)


def fit(folder: Path, callbacks: list[Any], resume: Path | None = None, fail_at: int | None = None, **options: Any):
    """Three epochs of five batches."""
    workers = options.pop("num_workers", 0)
    module = ImageDataModule(
        "digits", batch_size=64, limit=300, crop_padding=1, flip=True, validation=100, num_workers=workers
    )
    model = Recorder(fail_at)
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, **options}
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        try:
            trainer.fit(model, module, ckpt_path=resume)
        except (KeyboardInterrupt, SystemExit):
            assert fail_at is not None
    return model


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder,
        "{step}",
        save_top_k=-1,
        every_n_train_steps=1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 1},
        {"limit_train_batches": 4},
        {"val_check_interval": 2},
        {"max_epochs": -1, "max_steps": 12},
    ],
    ids=str,
)
def test_resumed_run_sees_the_batches_of_an_unbroken_one(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = fit(tmp_path, [every_step(tmp_path)], **dict(options))
    assert all(not torch.equal(a, b) for a, b in pairwise(whole.batches) if a.shape == b.shape)
    for step in (1, 7, 9) if "num_workers" in options else (1, 3, 4, 5, 6, 8, 9, 10, 11):
        resumed = fit(tmp_path, [], tmp_path / f"step={step}.ckpt", **dict(options))
        assert same(resumed.batches, whole.batches[step:]), step
        assert torch.equal(resumed.weight, whole.weight), step


def test_end_of_epoch_checkpoint_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = fit(tmp_path, [saver])
    resumed = fit(tmp_path, [], tmp_path / "epoch=1.ckpt")
    assert same(resumed.batches, whole.batches[10:])
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("step", [2, 4, 5, 8])
def test_interrupted_step_is_taken_again(tmp_path: Path, step: int) -> None:
    whole = fit(tmp_path, [])
    fit(tmp_path, [OnExceptionCheckpoint(tmp_path, "broken")], fail_at=step)
    resumed = fit(tmp_path, [], tmp_path / "broken.ckpt")
    assert same(resumed.batches, whole.batches[step:])
    assert torch.equal(resumed.weight, whole.weight)


def test_names_of_the_room() -> None:
    assert set(data.__all__) >= {"ImageDataModule", "ImageDataset", "Images"}
    assert pipeline.whole((numbered(1).x, numbered(1).y))[1].tolist() == [0]
