"""Images for training: ``ImageDataModule``."""

from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resvae.data.pipeline import ImageDataset, loading, train_loader
from resvae.data.sources import Images, check, read
from resvae.errors import ResvaeError, at_least

__all__ = ["ImageDataModule", "ImageDataset", "Images", "Split"]

Split = Literal["train", "val", "test"]


class ImageDataModule(pl.LightningDataModule):
    """Batches ``(x uint8 [B, C, H, W], y int64 [B])`` of a named data set, a folder of images or an .npz.

    Args:
        name: ``cifar10``, ``cifar100``, ``svhn``, ``mnist``, ``fashion_mnist``, ``digits`` (scikit-learn's, no network
            needed), ``folder``, ``npz``.
        root: where downloaded sets are kept.
        batch_size: of training.
        eval_batch_size: of validation and test; twice the training's unless told.
        path: of the folder (``train/`` and ``test/`` in it, or every tenth image is for testing; class subfolders give
            the labels where every image is in one) or of the .npz (``images`` uint8, and if you like ``labels``,
            ``test_images``, ``test_labels``).
        image_size: pad with zeros, or average down, to this size; files of a folder are cut square and scaled.
        validation: how many training images to set apart for validation, or which share of them; drawn by ``seed``.
            A tenth of CIFAR-10's are the customary 5,000.
        protocol: ``split``; or ``test_as_validation``, the article's: all training images train, test images validate.
        seed: of the split, the order and the augmentation.
        crop_padding: pad by so many zeros and cut at random, in training; 0 for none.
        flip: mirror at random, in training.
        num_workers: processes; 0 is fastest for sets in memory, and all are.
        on_corrupt: ``refuse`` or ``skip`` a file that cannot be read.
        download: fetch what is missing.
        limit: use only so many training images, drawn by ``seed``.

    Raises:
        ResvaeError: a value out of its range; in ``setup``, a source that cannot be read, fetched or split.
    """

    def __init__(
        self,
        name: str = "cifar10",
        root: str = "data",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        path: str | None = None,
        image_size: int | None = None,
        validation: int | float = 0.1,
        protocol: Literal["split", "test_as_validation"] = "split",
        seed: int = 0,
        crop_padding: int = 0,
        flip: bool = False,
        num_workers: int = 0,
        on_corrupt: Literal["refuse", "skip"] = "refuse",
        download: bool = True,
        limit: int | None = None,
    ):
        super().__init__()
        at_least(1, **{"data.batch_size": batch_size, "data.eval_batch_size": eval_batch_size, "data.limit": limit})
        for field, value in (("num_workers", num_workers), ("crop_padding", crop_padding), ("seed", seed)):
            if value < 0:
                raise ResvaeError(f"data.{field}: {value} is not allowed; 0 or more")
        if protocol not in ("split", "test_as_validation"):
            raise ResvaeError(f"data.protocol: {protocol!r} is not allowed; split or test_as_validation")
        if on_corrupt not in ("refuse", "skip"):
            raise ResvaeError(f"data.on_corrupt: {on_corrupt!r} is not allowed; refuse or skip")
        check(name, path, image_size)
        self.name = name
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.validation = validation
        self.protocol = protocol
        self.seed = seed
        self.crop_padding = crop_padding
        self.flip = flip
        self.num_workers = num_workers
        self.limit = limit
        self._read = partial(read, name, root, path, image_size, on_corrupt, download)
        self._sets: dict[str, Images] = {}

    def prepare_data(self) -> None:
        """Fetch what is missing, in one process."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the set and split it, once."""
        if self._sets:
            return
        train, test = self._read()
        order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(self.seed))
        if self.protocol == "test_as_validation":
            validation = test
        else:
            num = self._num_validation(len(order))
            validation, order = train.take(order[:num]), order[num:]
        self._sets = {"train": train.take(order[: self.limit]), "val": validation, "test": test}

    def images(self, split: Split) -> Tensor:
        """All images of a split, uint8 ``[N, C, H, W]``, without augmentation."""
        return self._set(split).x

    def labels(self, split: Split) -> Tensor:
        """All labels of a split, int64 ``[N]``."""
        return self._set(split).y

    def _set(self, split: Split) -> Images:
        if split not in ("train", "val", "test"):
            raise ResvaeError(f"split: {split!r} is not allowed; train, val or test")
        self.setup()
        return self._sets[split]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images."""
        c, h, w = self.images("train").shape[1:]
        return c, h, w

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return max(int(self.labels(split).max()) for split in ("train", "val", "test")) + 1

    @property
    def num_train(self) -> int:
        """Number of training images, what validation and ``limit`` leave."""
        return len(self.labels("train"))

    @property
    def num_val(self) -> int:
        """Number of validation images."""
        return len(self.labels("val"))

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.labels("test"))

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled and augmented; in a run that is resumed in the middle of an epoch, what is left of it."""
        self.setup()
        dataset = ImageDataset(self._sets["train"], self.crop_padding, self.flip, self.seed)
        return train_loader(dataset, self.batch_size, self.num_workers, self._images_done)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in order, ``eval_batch_size`` a batch."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images in order, ``eval_batch_size`` a batch."""
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> DataLoader[Any]:
        self.setup()
        return DataLoader(ImageDataset(self._sets[split]), self.eval_batch_size, **loading(self.num_workers))

    def _images_done(self) -> int:
        """Images of the present epoch that were trained on before the checkpoint that Lightning has restored."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batch_size

    def _num_validation(self, total: int) -> int:
        num = self.validation * total if isinstance(self.validation, float) else self.validation
        if not 0.5 < num <= total - 1:
            raise ResvaeError(
                f"data.validation: {self.validation} of {total} training images is not allowed; "
                "at least one must be left on each side (a whole number of images, or a share between 0 and 1)"
            )
        return round(num)
