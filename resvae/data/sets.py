"""A named set of images in three splits, as tensors, independent of training."""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from resvae.data.sources import SOURCES, Images, Request, resized
from resvae.errors import ResvaeError, at_least, whole_from
from resvae.files import place

Split = Literal["train", "val", "test"]


class ImageSets:
    """The images and labels of a data set, a folder of images or an .npz, read on first use.

    Args:
        name: ``cifar10``, ``cifar100``, ``svhn``, ``mnist``, ``fashion_mnist``, ``digits`` (scikit-learn's, which needs
            no network), ``folder``, ``npz``, ``imagenet`` (the published batches of ImageNet at 32x32 or 64x64).
        root: the folder of downloaded sets.
        path: the folder or the .npz. A ``folder`` may hold ``train/``, ``val/`` (or ``valid/``, ``validation/``) and
            ``test/``; without them every tenth image is a test image. Class subfolders give the labels if every image
            is in one. An .npz holds ``images`` (uint8) and optionally
            ``labels``, ``test_images`` and ``test_labels``.
        image_size: pad with zeros or average down to this size; images of a folder are cropped square and scaled.
        validation: the number (int) or the share (float) of the training images that are kept for validation, where
            the source has no validation images of its own. ``seed`` decides which. The default keeps 5,000 images of
            CIFAR-10, as is usual.
        protocol: ``split``, or the article's ``test_as_validation``: train on all training images, validate on test.
        seed: the seed of the split, and in training of the order and the augmentation.
        on_corrupt: ``refuse`` or ``skip`` a file that cannot be read.
        download: whether to download what is missing.
        limit: use only this many training images; ``seed`` decides which.
        cache: keep the images of ``path`` in one file in ``.resvae/`` there, which is used for as long as none of them
            changes.
        memory_share: the share of the machine's memory that the images of ``path`` may take. A larger set is always
            kept in such a file, and read from it batch by batch.

    Raises:
        ResvaeError: a value out of its range; on first use, a source that cannot be read, downloaded or split.
    """

    def __init__(
        self,
        name: str = "cifar10",
        root: str = "data",
        path: str | None = None,
        image_size: int | None = None,
        validation: int | float = 0.1,
        protocol: Literal["split", "test_as_validation"] = "split",
        seed: int = 0,
        on_corrupt: Literal["refuse", "skip"] = "refuse",
        download: bool = True,
        limit: int | None = None,
        cache: bool = False,
        memory_share: float = 0.5,
    ):
        whole_from(1, **{"data.limit": limit, "data.image_size": image_size})
        whole_from(0, **{"data.seed": seed})
        at_least(0, **{"data.memory_share": memory_share})
        if protocol not in ("split", "test_as_validation"):
            raise ResvaeError(f"data.protocol: {protocol!r} is not allowed; split or test_as_validation")
        if on_corrupt not in ("refuse", "skip"):
            raise ResvaeError(f"data.on_corrupt: {on_corrupt!r} is not allowed; refuse or skip")
        if name not in SOURCES:
            raise ResvaeError(f"data.name: {name!r} is not known; one of {', '.join(SOURCES)}")
        source: Any = import_module(f"resvae.data.{SOURCES[name]}")
        if getattr(source, "NEEDS_PATH", False) and path is None:
            raise ResvaeError(f"data.path: None is not allowed; the data set {name} needs a path")
        root, path = str(place(root)), None if path is None else str(place(path))
        if path is not None and not Path(path).exists():
            raise ResvaeError(f"data.path: {path} does not exist")
        self._request = Request(name, root, path, image_size, on_corrupt, download, cache, memory_share)
        self._read = source.read
        self.name, self.root, self.seed = name, root, seed
        self.validation, self.protocol, self.limit = validation, protocol, limit
        self._sets: dict[str, Images] = {}
        self._notes: tuple[str, ...] = ()

    def split(self, name: Split) -> Images:
        """The images and labels of a split, without augmentation."""
        if name not in ("train", "val", "test"):
            raise ResvaeError(f"split: {name!r} is not allowed; train, val or test")
        if not self._sets:
            source = self._read(self._request)
            self._notes = source.notes
            train, test, validation = source.train, source.test, source.val
            if (size := self._request.image_size) is not None:
                train, test, validation = (part and _resized(part, size) for part in (train, test, validation))
            assert train is not None
            assert test is not None
            a, b = (tuple(part.x.shape[1:]) for part in (train, test))
            if a != b:
                raise ResvaeError(f"data.path: training images are {a}, test images {b}; shapes must be equal")
            order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(self.seed))
            if self.protocol == "test_as_validation":
                validation = test
            elif validation is None:
                num = self.validation * len(order) if isinstance(self.validation, float) else self.validation
                if not 0.5 < num <= len(order) - 1:
                    raise ResvaeError(
                        f"data.validation: {self.validation} of {len(order)} training images is not allowed; "
                        "give a number of images or a share between 0 and 1 that leaves an image on both sides"
                    )
                num = round(num)
                validation, order = train.take(order[:num]), order[num:]
            self._sets = {"train": train.take(order[: self.limit]), "val": validation, "test": test}
        return self._sets[name]

    def images(self, split: Split, num: int | None = None) -> Tensor:
        """The first ``num`` images of a split, or all, uint8 ``[N, C, H, W]``, without augmentation."""
        return torch.from_numpy(self.split(split).pixels(slice(num)))

    def labels(self, split: Split, num: int | None = None) -> Tensor:
        """The first ``num`` labels of a split, or all, int64 ``[N]``."""
        return self.split(split).y[:num]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that tell what was read of a folder, and how."""
        self.split("train")
        return self._notes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images."""
        c, h, w = self.split("train").x.shape[1:]
        return c, h, w

    @property
    def num_classes(self) -> int:
        """The largest label plus 1."""
        return max(int(self.labels(split).max()) for split in ("train", "val", "test")) + 1

    @property
    def num_train(self) -> int:
        """Number of training images, after validation and ``limit`` are applied."""
        return len(self.labels("train"))

    @property
    def num_val(self) -> int:
        """Number of validation images."""
        return len(self.labels("val"))

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.labels("test"))


def _resized(images: Images, size: int) -> Images:
    # what is in a file has its size from there
    return Images(resized(images.x, size), images.y) if isinstance(images.x, Tensor) else images
