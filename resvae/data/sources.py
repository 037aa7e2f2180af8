"""Where images come from: each source is read whole into one uint8 tensor."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError

NAMES = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits", "folder", "npz")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TEST_EVERY = 10  # where a source has no test set, every tenth image is one
DIGITS_TEST_EVERY = 6


@dataclass(frozen=True)
class Images:
    """``x`` uint8 ``[N, C, H, W]`` and ``y`` int64 ``[N]``."""

    x: Tensor
    y: Tensor

    def take(self, index: Tensor | slice) -> "Images":
        """A part, in the order of ``index``."""
        return Images(self.x[index], self.y[index])


@dataclass(frozen=True)
class Source:
    """A training set and a test set."""

    train: Images
    test: Images


def read(
    name: str,
    root: str = "data",
    path: str | None = None,
    image_size: int | None = None,
    on_corrupt: Literal["refuse", "skip"] = "refuse",
    download: bool = True,
) -> Source:
    """Read a source by its name.

    Args:
        name: one of ``NAMES``.
        root: where torchvision keeps its sets.
        path: of the folder or the .npz.
        image_size: smaller images are padded with zeros, larger are averaged down; the files of a folder are cut
            square and scaled. None: as they are; MNIST's 28x28 are padded to 32x32.
        on_corrupt: what to do with a file that is no image.
        download: fetch what is missing.

    Raises:
        ResvaeError: an unknown name, no images, a corrupt or unsuitable file, a failed download.
    """
    if name not in NAMES:
        raise ResvaeError(f"data.name: {name!r} is not known; one of {', '.join(NAMES)}")
    if image_size is not None and image_size < 1:
        raise ResvaeError(f"data.image_size: {image_size} is not allowed; at least 1")
    if name in ("folder", "npz"):
        if path is None:
            raise ResvaeError(f"data.path: it is missing; the data set {name} needs it")
        if not Path(path).exists():
            raise ResvaeError(f"data.path: {path} does not exist")
        source = _folder(Path(path), image_size, on_corrupt) if name == "folder" else _npz(Path(path))
    elif name == "digits":
        source = _digits()
    else:
        source = _torchvision(name, root, download)
        if name in ("mnist", "fashion_mnist") and image_size is None:
            image_size = 32
    if image_size is None:
        return source
    return Source(*(Images(resized(part.x, image_size), part.y) for part in (source.train, source.test)))


def resized(x: Tensor, size: int) -> Tensor:
    """uint8 ``[N, C, H, W]`` padded with zeros, or averaged down, to ``size`` x ``size``."""
    height, width = x.shape[-2:]
    if (height, width) == (size, size):
        return x
    if height > size or width > size:
        parts = [F.interpolate(part.float(), (size, size), mode="area") for part in x.split(4096)]
        return torch.cat([part.round().to(torch.uint8) for part in parts])
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(x, (left, size - width - left, top, size - height - top))


def _digits() -> Source:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(values).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    return _split(Images(x, torch.from_numpy(labels).long()), DIGITS_TEST_EVERY)


def _torchvision(name: str, root: str, download: bool) -> Source:
    from torchvision import datasets

    kinds: dict[str, tuple[Callable[..., Any], bool]] = {
        "cifar10": (datasets.CIFAR10, False),
        "cifar100": (datasets.CIFAR100, False),
        "svhn": (datasets.SVHN, True),
        "mnist": (datasets.MNIST, False),
        "fashion_mnist": (datasets.FashionMNIST, False),
    }
    kind, by_split = kinds[name]
    parts = []
    for train in (True, False):
        which: dict[str, Any] = {"split": "train" if train else "test"} if by_split else {"train": train}
        try:
            loaded = kind(root, download=download, **which)
        except (OSError, RuntimeError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise ResvaeError(
                f"data.name: {name} is not in {root} and could not be fetched ({reason}); check the network, or put "
                f"the files where torchvision.datasets.{kind.__name__} looks for them under {root}; "
                "the data set digits needs no network"
            ) from error
        x = torch.as_tensor(np.asarray(loaded.data))
        if x.ndim == 3:
            x = x[:, None]
        elif x.shape[-1] == 3:
            x = x.permute(0, 3, 1, 2).contiguous()
        labels = loaded.labels if by_split else loaded.targets
        parts.append(Images(x, torch.as_tensor(np.asarray(labels)).long()))
    return Source(*parts)


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise ResvaeError(
            f"data.path: {path} is not an .npz of plain arrays ({' '.join(str(error).split())})"
        ) from error
    if "images" not in arrays:
        raise ResvaeError(f"data.path: {path} holds {', '.join(arrays) or 'nothing'}, but no array named images")

    def part(prefix: str) -> Images:
        x = _channels_first(arrays[f"{prefix}images"], f"{path}: {prefix}images")
        y = arrays.get(f"{prefix}labels", np.zeros(len(x), np.int64))
        if len(y) != len(x):
            raise ResvaeError(f"data.path: {path}: {len(y)} {prefix}labels do not fit {len(x)} {prefix}images")
        return Images(x, torch.from_numpy(y.astype(np.int64)))

    if "test_images" in arrays:
        return Source(part(""), part("test_"))
    return _split(part(""), TEST_EVERY)


def _channels_first(array: np.ndarray, where: str) -> Tensor:
    if array.dtype != np.uint8:
        raise ResvaeError(f"data.path: {where} are {array.dtype}; uint8 in 0..255 is allowed")
    x = torch.from_numpy(array)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.permute(0, 3, 1, 2).contiguous()
    if x.ndim == 4:
        return x
    raise ResvaeError(f"data.path: {where} have shape {tuple(array.shape)}; N H W, N H W C or N C H W is allowed")


def _folder(path: Path, image_size: int | None, on_corrupt: str) -> Source:
    """``train/`` and ``test/`` where there are both, else one set; class subfolders give the labels."""
    if (path / "train").is_dir() and (path / "test").is_dir():
        return Source(*(_files(path / part, image_size, on_corrupt) for part in ("train", "test")))
    return _split(_files(path, image_size, on_corrupt), TEST_EVERY)


def _files(path: Path, image_size: int | None, on_corrupt: str) -> Images:
    from PIL import Image, ImageOps

    if not path.is_dir():
        raise ResvaeError(f"data.path: {path} is not a folder")
    names = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    classes = sorted({p.relative_to(path).parts[0] for p in names if len(p.relative_to(path).parts) > 1})
    pictures, labels, grey = [], [], True
    for name in names:
        try:
            with Image.open(name) as file:
                picture = ImageOps.exif_transpose(file)
                grey &= picture.mode in ("1", "L")
                picture = picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if on_corrupt == "refuse":
                raise ResvaeError(
                    f"data.path: {name} is not an image that can be read; remove it or set data.on_corrupt to skip"
                ) from error
            warnings.warn(f"skipped {name}: not an image that can be read", stacklevel=2)
            continue
        if image_size is not None:
            picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.LANCZOS)
        elif pictures and pictures[0].shape[:2] != picture.size[::-1]:
            width, height = picture.size
            raise ResvaeError(
                f"data.path: {name} is {height}x{width}, others are {'x'.join(map(str, pictures[0].shape[:2]))}; "
                "set data.image_size"
            )
        pictures.append(np.asarray(picture))
        first = name.relative_to(path).parts[0]
        labels.append(classes.index(first) if first in classes else 0)
    if not pictures:
        raise ResvaeError(f"data.path: {path} holds no images; {', '.join(EXTENSIONS)} are read")
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return Images(x[:, :1].contiguous() if grey else x, torch.tensor(labels))


def _split(images: Images, every: int) -> Source:
    if len(images.x) < every:
        raise ResvaeError(
            f"data: {len(images.x)} images are too few; at least {every} are needed to set a test set apart"
        )
    test = torch.arange(len(images.x)) % every == every - 1
    return Source(images.take(~test), images.take(test))
