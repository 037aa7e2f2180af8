"""The sources of images. Each is read into one uint8 tensor."""

import warnings
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError, at_least, one_line

NAMES = ("cifar10", "cifar100", "svhn", "mnist", "fashion_mnist", "digits", "folder", "npz")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
TEST_EVERY = 10  # without a test set, every tenth image becomes a test image
DIGITS_TEST_EVERY = 6


@dataclass(frozen=True)
class Images:
    """``x`` uint8 ``[N, C, H, W]`` and ``y`` int64 ``[N]``."""

    x: Tensor
    y: Tensor

    def take(self, index: Tensor | slice) -> "Images":
        """The images and labels at ``index``, in its order."""
        return Images(self.x[index], self.y[index])


Source = tuple[Images, Images]  # a training set and a test set


def check(name: str, path: str | None, image_size: int | None) -> None:
    """Refuse what cannot be read, before any work is done.

    Raises:
        ResvaeError: an unknown name, a path that is missing or does not exist, a size below 1.
    """
    if name not in NAMES:
        raise ResvaeError(f"data.name: {name!r} is not known; one of {', '.join(NAMES)}")
    at_least(1, **{"data.image_size": image_size})
    if name in ("folder", "npz"):
        if path is None:
            raise ResvaeError(f"data.path: None is not allowed; the data set {name} needs a path")
        if not Path(path).exists():
            raise ResvaeError(f"data.path: {path} does not exist")


def read(
    name: str,
    root: str = "data",
    path: str | None = None,
    image_size: int | None = None,
    on_corrupt: Literal["refuse", "skip"] = "refuse",
    download: bool = True,
) -> Source:
    """The training set and the test set of a name that ``check`` accepts. The options are those of ``ImageSets``.

    If ``image_size`` is None, images keep their size, except that the 28x28 images of MNIST are padded to 32x32.

    Raises:
        ResvaeError: no images, a corrupt or unsuitable file, a failed download.
    """
    if name == "folder":
        source = _folder(Path(str(path)), image_size, on_corrupt)
    elif name == "npz":
        source = _npz(Path(str(path)))
    elif name == "digits":
        source = _digits()
    else:
        source = _torchvision(name, root, download)
        if name in ("mnist", "fashion_mnist") and image_size is None:
            image_size = 32
    train, test = source
    if image_size is not None:
        train, test = (Images(resized(part.x, image_size), part.y) for part in source)
    shapes = [tuple(part.x.shape[1:]) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ResvaeError(f"data.path: training images are {shapes[0]}, test images {shapes[1]}; shapes must be equal")
    return train, test


def resized(x: Tensor, size: int) -> Tensor:
    """uint8 ``[N, C, H, W]`` to ``size`` x ``size``: longer sides are averaged down, shorter ones padded with zeros."""
    height, width = (min(side, size) for side in x.shape[-2:])
    if (height, width) != x.shape[-2:]:
        parts = [F.interpolate(part.float(), (height, width), mode="area") for part in x.split(4096)]
        x = torch.cat([part.round().to(torch.uint8) for part in parts])
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(x, (left, size - width - left, top, size - height - top))


def _digits() -> Source:
    # the file that ``sklearn.datasets.load_digits`` reads; importing scikit-learn would take seconds
    package = find_spec("sklearn")
    assert package is not None
    table = np.loadtxt(
        Path(str(package.origin)).parent / "datasets/data/digits.csv.gz", delimiter=","
    )  # 64 values, label
    x = torch.from_numpy(table[:, :-1]).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    return _split(Images(x, torch.from_numpy(table[:, -1]).long()), DIGITS_TEST_EVERY)


# torchvision's class, the address of the files, their place under the root
DOWNLOADS = {
    "cifar10": ("CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python"),
    "svhn": ("SVHN", "http://ufldl.stanford.edu/housenumbers", "train_32x32.mat and test_32x32.mat"),
    "mnist": ("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", "FashionMNIST/raw"),
}


def _torchvision(name: str, root: str, download: bool) -> Source:
    from torchvision import datasets

    kind, page, place = DOWNLOADS[name]
    parts = []
    for train in (True, False):
        which: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
        try:
            loaded = getattr(datasets, kind)(root, download=download, **which)
        except (OSError, RuntimeError, EOFError) as error:
            raise ResvaeError(
                f"data.name: {name} is not in {root} and was not downloaded ({one_line(error)}); download {page} "
                f"and unpack it to {Path(root) / place}, or use the data set digits, which needs no network"
            ) from error
        labels = loaded.labels if name == "svhn" else loaded.targets
        x = _channels_first(np.asarray(loaded.data), name)
        parts.append(Images(x, torch.as_tensor(np.asarray(labels)).long()))
    return parts[0], parts[1]


def _npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, BadZipFile, zlib.error) as error:
        raise ResvaeError(f"data.path: {path} is not an .npz of plain arrays ({one_line(error)})") from error
    if "images" not in arrays:
        raise ResvaeError(f"data.path: {path} holds {', '.join(arrays) or 'nothing'}, but no array named images")

    def part(prefix: str) -> Images:
        x = _channels_first(arrays[f"{prefix}images"], f"{path}: {prefix}images")
        if not len(x):
            raise ResvaeError(f"data.path: {path}: {prefix}images holds no images")
        y = arrays.get(f"{prefix}labels", np.zeros(len(x), np.int64))
        if y.shape != (len(x),) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
            raise ResvaeError(
                f"data.path: {path}: {prefix}labels are {y.dtype} of shape {y.shape}; "
                f"they must be {len(x)} whole numbers from 0, one for each of {prefix}images"
            )
        return Images(x, torch.from_numpy(y.astype(np.int64)))

    if "test_images" in arrays:
        if ("labels" in arrays) != ("test_labels" in arrays):
            raise ResvaeError(f"data.path: {path} holds only one of labels and test_labels; give both or neither")
        return part(""), part("test_")
    return _split(part(""), TEST_EVERY)


def _channels_first(array: np.ndarray, where: str) -> Tensor:
    if array.dtype != np.uint8:
        raise ResvaeError(f"data.path: {where} are {array.dtype}; they must be uint8 in 0..255")
    x = torch.from_numpy(array)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.permute(0, 3, 1, 2).contiguous()
    if x.ndim == 4:
        return x
    raise ResvaeError(f"data.path: {where} have shape {tuple(array.shape)}; it must be N H W, N H W C or N C H W")


def _folder(path: Path, image_size: int | None, on_corrupt: str) -> Source:
    """Read ``train/`` and ``test/`` if both exist, else one set. Class subfolders give the labels."""
    if not path.is_dir():
        raise ResvaeError(f"data.path: {path} is not a folder")
    apart = (path / "train").is_dir() and (path / "test").is_dir()
    parts = {part: _files(part) for part in ([path / "train", path / "test"] if apart else [path])}
    names = sorted({name for files in parts.values() for name in files.values()})
    classes = {} if "" in names else {name: number for number, name in enumerate(names)}
    sets = [_pictures(part, files, classes, image_size, on_corrupt) for part, files in parts.items()]
    train, test = sets if apart else _split(sets[0], TEST_EVERY)
    # The files are found class by class. After shuffling, the first images come from every class.
    return train, test.take(torch.randperm(len(test.y), generator=torch.Generator().manual_seed(0)))


def _files(path: Path) -> dict[Path, str]:
    """The image files below a folder, in order, each with the name of its class folder, or an empty name."""
    found = {
        file: file.relative_to(path).parts for file in sorted(path.rglob("*")) if file.suffix.lower() in EXTENSIONS
    }
    hidden = {file for file, parts in found.items() if any(part.startswith(".") for part in parts)}
    return {file: parts[0] if len(parts) > 1 else "" for file, parts in found.items() if file not in hidden}


def _pictures(
    path: Path, files: dict[Path, str], classes: dict[str, int], image_size: int | None, on_corrupt: str
) -> Images:
    from PIL import Image, ImageOps

    pictures, labels, grey = [], [], True
    for name, label in files.items():
        try:
            with Image.open(name) as file:
                picture = ImageOps.exif_transpose(file)
                mode = picture.mode
                picture = picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if on_corrupt == "refuse":
                raise ResvaeError(
                    f"data.path: {name} is not an image that can be read; remove it or set data.on_corrupt to skip"
                ) from error
            warnings.warn(f"skipped {name}: not an image that can be read", stacklevel=2)
            continue
        if mode.startswith(("I", "F")):
            raise ResvaeError(f"data.path: {name} has more than 8 bits per channel; at most 8 are allowed")
        if image_size is not None:
            picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture)
        if pictures and pixels.shape != pictures[0].shape:
            sizes = ["x".join(map(str, p.shape[:2])) for p in (pixels, pictures[0])]
            raise ResvaeError(f"data.path: {name} is {sizes[0]}, others are {sizes[1]}; set data.image_size")
        grey &= mode in ("1", "L", "LA")
        pictures.append(pixels)
        labels.append(classes.get(label, 0))
    if not pictures:
        raise ResvaeError(f"data.path: {path} holds no images; these types are read: {', '.join(EXTENSIONS)}")
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return Images(x[:, :1].contiguous() if grey else x, torch.tensor(labels))


def _split(images: Images, every: int) -> Source:
    if len(images.x) < every:
        raise ResvaeError(f"data: {len(images.x)} images are too few; at least {every} are needed to make a test set")
    test = torch.arange(len(images.x)) % every == every - 1
    return images.take(~test), images.take(test)
