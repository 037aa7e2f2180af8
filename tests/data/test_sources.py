"""What is read from each source."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers_data import GREY, npz, rows
from sklearn.datasets import load_digits
from torchvision import datasets

from resvae.data import ImageDataModule
from resvae.data.sources import SHAPES, resized
from resvae.errors import ResvaeError

CIFAR = Path(__file__).parents[2] / "data" / "cifar-10-batches-py"
SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


def test_digits_are_all_there_and_exact() -> None:
    module = ImageDataModule("digits", validation=200)
    assert module.image_shape == SHAPES["digits"] == (1, 8, 8)
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (1298, 200, 299, 10)
    values, labels = load_digits(return_X_y=True)
    expected = torch.from_numpy(np.round(values * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
    got = torch.cat([module.images(split) for split in SPLITS])
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
    assert resized(x[None, None, :1], 2)[0, 0].tolist() == [[10, 20], [0, 0]]  # a side each


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_npz_layouts(tmp_path: Path, layout: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 7), np.uint8)
    stored = {"NHWC": x.transpose(0, 2, 3, 1), "NCHW": x, "NHW": x[:, 0]}[layout]
    expected = torch.from_numpy(x if layout != "NHW" else x[:, :1])
    module = ImageDataModule("npz", path=npz(tmp_path, images=stored, labels=np.arange(30)), validation=5)
    assert module.image_shape == tuple(expected.shape[1:])
    for split, num in zip(SPLITS, (22, 5, 3), strict=True):
        assert len(module.labels(split)) == num
        assert torch.equal(module.images(split), expected[module.labels(split)])


def test_npz_with_its_own_test_set(tmp_path: Path) -> None:
    path = npz(tmp_path, images=np.zeros((8, 4, 4, 3), np.uint8), test_images=np.ones((3, 4, 4, 3), np.uint8))
    module = ImageDataModule("npz", path=path, validation=0.25)
    assert (module.num_train, module.num_val, module.num_test) == (6, 2, 3)
    assert (module.images("test") == 1).all()


def test_unsuitable_npz_is_refused(tmp_path: Path) -> None:
    for arrays, message in (
        ({"images": GREY.astype(np.float32)}, r"images are float32; they must be uint8"),
        ({"pictures": GREY}, r"holds pictures, but no array named images"),
        ({"images": GREY[0]}, r"shape \(4, 4\); it must be N H W"),
        ({"images": GREY, "labels": np.zeros(3, int)}, r"20 whole numbers"),
        ({"images": GREY, "labels": np.zeros(20)}, r"labels are float64"),
        ({"images": GREY, "labels": np.full(20, -1)}, r"whole numbers from 0"),
        ({"images": GREY, "test_images": GREY[:, :3]}, r"training images are \(1, 4, 4\), test images \(1, 3, 4\)"),
        ({"images": np.array([{}] * 20, object)}, r"not an \.npz of plain arrays"),
        ({"images": GREY[:5]}, r"5 images are too few"),
        ({"images": GREY, "test_images": GREY[:0]}, r"test_images holds no images"),
        ({"images": GREY, "labels": np.zeros(20, int), "test_images": GREY}, r"only one of labels and test_labels"),
    ):
        with pytest.raises(ResvaeError, match=message) as caught:
            ImageDataModule("npz", path=npz(tmp_path, **arrays)).setup()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", None, "npy"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes | str | None) -> None:
    path = Path(npz(tmp_path, images=GREY))
    if content == "npy":
        np.save(path.with_suffix(".npy"), GREY)
        path.with_suffix(".npy").rename(path)
    else:
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ResvaeError, match=r"set\.npz is not an \.npz of plain arrays"):
        ImageDataModule("npz", path=str(path)).setup()


TORCHVISION = [
    ("cifar10", "CIFAR10", (40, 32, 32, 3), (3, 32, 32)),
    ("cifar100", "CIFAR100", (40, 32, 32, 3), (3, 32, 32)),
    ("svhn", "SVHN", (40, 3, 32, 32), (3, 32, 32)),
    ("mnist", "MNIST", (40, 28, 28), (1, 32, 32)),
    ("fashion_mnist", "FashionMNIST", (40, 28, 28), (1, 32, 32)),
]


@pytest.mark.parametrize(("name", "kind", "shape", "expected"), TORCHVISION)
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
    for split in SPLITS:
        raw = torch.from_numpy(arrays[split != "test"])[module.labels(split)]
        if raw.ndim == 3:
            raw = torch.nn.functional.pad(raw, (2, 2, 2, 2))[:, None]
        elif name != "svhn":
            raw = raw.permute(0, 3, 1, 2)
        assert torch.equal(module.images(split), raw)
        assert module.images(split).is_contiguous()


@pytest.mark.parametrize("error", [RuntimeError("File not found\nor corrupted"), OSError("no route"), EOFError()])
@pytest.mark.parametrize("download", [True, False])
def test_an_absent_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, download: bool) -> None:
    asked = []

    def failing(root: str, **options: Any) -> None:
        asked.append(options["download"])
        raise error

    monkeypatch.setattr(datasets, "CIFAR10", failing)
    with pytest.raises(ResvaeError) as caught:
        ImageDataModule("cifar10", root="there", download=download).setup()
    for part in ("cifar10 is not in there", "https://www.cs.toronto.edu", "there/cifar-10-batches-py", "digits"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert asked == [download]


@pytest.mark.skipif(not CIFAR.exists(), reason="the official CIFAR-10 is not in data/")
def test_the_real_cifar10(capsys: pytest.CaptureFixture[str]) -> None:
    module = ImageDataModule("cifar10", root=str(CIFAR.parent))
    assert module.image_shape == (3, 32, 32)
    assert (module.num_train, module.num_val, module.num_test, module.num_classes) == (45000, 5000, 10000, 10)
    assert torch.bincount(module.labels("test")).tolist() == [1000] * 10
    reference = datasets.CIFAR10(str(CIFAR.parent), train=False)
    assert np.array_equal(module.images("test")[7].permute(1, 2, 0).numpy(), np.asarray(reference[7][0]))
    assert capsys.readouterr().out == ""
