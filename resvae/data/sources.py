"""The sources of images by name, each read into uint8 tensors, and what they share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError

if TYPE_CHECKING:
    from resvae.data.store import Stored

# Each name, and the module of this package whose function ``read`` takes a request to a training and a test set.
SOURCES = {
    "cifar10": "downloads",
    "cifar100": "downloads",
    "svhn": "downloads",
    "mnist": "downloads",
    "fashion_mnist": "downloads",
    "digits": "digits",
    "folder": "folder",
    "npz": "npz",
    "imagenet": "imagenet",
}
SHAPES = {  # (C, H, W) of the images of those that need not be read to tell
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "svhn": (3, 32, 32),
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "digits": (1, 8, 8),
}
TEST_EVERY = 10  # without a test set, every tenth image becomes a test image


@dataclass(frozen=True)
class Images:
    """``x`` uint8 ``[N, C, H, W]``, in memory or in a file, and ``y`` int64 ``[N]``."""

    x: "Tensor | Stored"
    y: Tensor

    def take(self, index: Tensor | slice) -> "Images":
        """The images and labels at ``index``, in its order."""
        return Images(self.x[index], self.y[index])

    def pixels(self, indices: list[int] | slice = slice(None)) -> np.ndarray:
        """The images at ``indices``, ``[n, C, H, W]``; of a slice in memory, a view."""
        return self.x.numpy()[indices] if isinstance(self.x, Tensor) else self.x.read(indices)


@dataclass(frozen=True)
class Source:
    """A training set, a test set and, where the source has its own, a validation set; ``notes`` tell what was read."""

    train: Images
    test: Images
    val: Images | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What to read; the fields are arguments of ``ImageSets``."""

    name: str
    root: str
    path: str | None
    image_size: int | None
    on_corrupt: str
    download: bool
    cache: bool
    memory_share: float


def resized(x: Tensor, size: int) -> Tensor:
    """uint8 ``[N, C, H, W]`` to ``size`` x ``size``: longer sides are averaged down, shorter ones padded with zeros."""
    if x.shape[-2:] == (size, size):
        return x
    height, width = (min(side, size) for side in x.shape[-2:])
    if (height, width) != x.shape[-2:]:
        parts = [F.interpolate(part.float(), (height, width), mode="area") for part in x.split(4096)]
        x = torch.cat([part.round().to(torch.uint8) for part in parts])
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(x, (left, size - width - left, top, size - height - top))


def channels_first(array: np.ndarray, where: str) -> Tensor:
    """A uint8 array ``N H W``, ``N H W C`` or ``N C H W`` as ``[N, C, H, W]``; ``where`` names it in messages."""
    if array.dtype != np.uint8:
        raise ResvaeError(f"data.path: {where} are {array.dtype}; they must be uint8 in 0..255")
    if array.ndim not in (3, 4):
        raise ResvaeError(f"data.path: {where} have shape {array.shape}; it must be N H W, N H W C or N C H W")
    x = torch.from_numpy(array)
    if x.ndim == 3:
        return x[:, None]
    last = x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4)
    return x.permute(0, 3, 1, 2).contiguous() if last else x


def split_off(images: Images, every: int = TEST_EVERY) -> Source:
    """Make every tenth image, or every ``every``-th, a test image."""
    if len(images.y) < every:
        raise ResvaeError(f"data: {len(images.y)} images are too few; at least {every} are needed to make a test set")
    test = torch.zeros(len(images.y), dtype=torch.bool)
    test[every - 1 :: every] = True
    return Source(images.take(~test), images.take(test))
