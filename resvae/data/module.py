"""Batches of images for Lightning, gathered and augmented as a whole; seed and epoch alone decide their order."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from resvae.data.sets import ImageSets, Split
from resvae.data.sources import Images
from resvae.devices import free_memory
from resvae.errors import whole_from

DEVICE_SHARE = 0.25  # of an accelerator's free memory, for the images that it gathers batches from
ROWS = 8192  # numbers of images that are made at once
Batch = tuple[Tensor, Tensor]  # x uint8 [B, C, H, W], y int64 [B]


class ImageDataset(Dataset[Batch]):
    """Images in whole batches. ``crop_padding`` and ``flip`` are those of ``ImageDataModule``.

    The augmentation depends only on ``seed``, ``epoch`` and the first index of the batch, not on the number of workers,
    the device or other random numbers.

    Args:
        device: where the images are copied to, gathered and augmented; default: they stay where they are.
    """

    def __init__(
        self,
        images: Images,
        crop_padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        device: torch.device | None = None,
    ):
        self.images, self.seed, self.epoch = images, seed, 0
        self.crop_padding, self.flip = crop_padding, flip
        self.there = None if device is None else (torch.from_numpy(images.pixels()).to(device), images.y.to(device))

    def __len__(self) -> int:
        return len(self.images.y)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these indices: x uint8 ``[B, C, H, W]``, y int64 ``[B]``."""
        rng = np.random.default_rng((self.seed, self.epoch, indices[0]))
        padding, num = self.crop_padding, len(indices)
        corners = rng.integers(0, 2 * padding + 1, (2, num)) if padding else None
        mirrored = rng.random(num) < 0.5 if self.flip else None
        if self.there is not None:
            return self._there(indices, corners, mirrored)
        # numpy: torch would split this small work over threads, which costs more than it saves on busy cores
        x = self.images.pixels(indices)
        if corners is not None:
            x = crop(x, padding, *corners)
        if mirrored is not None:
            x[mirrored] = x[mirrored][..., ::-1].copy()  # a contiguous copy is faster to write back
        return torch.from_numpy(x), self.images.y[indices]

    def _there(self, indices: list[int], corners: np.ndarray | None, mirrored: np.ndarray | None) -> Batch:
        """The same on the device, which need not wait for the host, nor the host for it."""
        assert self.there is not None
        images, labels = self.there

        def moved(array: Any) -> Tensor:
            return torch.as_tensor(array).to(images.device, non_blocking=True)

        index = moved(indices)
        x = images[index]
        if corners is not None:
            channels, height, width = (torch.arange(size, device=images.device) for size in x.shape[1:])
            top, left = moved(corners)
            x = F.pad(x, [self.crop_padding] * 4)[
                torch.arange(len(x), device=images.device)[:, None, None, None],
                channels[:, None, None],
                (top[:, None] + height)[:, None, :, None],
                (left[:, None] + width)[:, None, None],
            ]
        if mirrored is not None:
            x = torch.where(moved(mirrored)[:, None, None, None], x.flip(3), x)
        return x, labels[index]


def crop(x: np.ndarray, padding: int, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Pad each image ``[B, C, H, W]`` with a margin of zeros, and crop it to its own size at a place ``[B]`` each."""
    batch, channels, height, width = x.shape
    padded = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding), x.dtype)
    padded[:, :, padding:-padding, padding:-padding] = x
    windows = sliding_window_view(padded, (height, width), (2, 3))  # B C top left H W, a view
    return windows[np.arange(batch), :, top, left]


class EpochSampler(DistributedSampler[int]):
    """A new order in each epoch, which seed and epoch alone decide; split over ranks under ``torch.distributed``.

    The first ``start()`` images are skipped, so that a run can resume within an epoch. ``start`` is called when an
    epoch begins, because Lightning may need the loader for its length before it has restored the position.
    """

    def __init__(self, dataset: ImageDataset, start: Callable[[], int] = int):
        alone: dict[str, Any] = {} if _distributed() else {"num_replicas": 1, "rank": 0}
        super().__init__(dataset, shuffle=True, seed=dataset.seed, **alone)
        self.images = dataset
        self.start = start

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        # as torch's own, whose list of numbers takes forty bytes for each image
        full = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        share = full[self.rank :: self.num_replicas][self.start() :]
        return chain.from_iterable(part.tolist() for part in share.split(ROWS))

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch: Lightning calls this."""
        super().set_epoch(epoch)
        self.images.epoch = epoch


class EvaluationSampler(DistributedSampler[int]):
    """Every ``num_replicas``-th image for each process: no image twice, where torch's own would fill up the shares."""

    def __init__(self, dataset: ImageDataset, num_replicas: int | None = None, rank: int | None = None):
        super().__init__(dataset, num_replicas, rank, shuffle=False)
        self.num_images = len(dataset)
        self.share = range(self.rank, self.num_images, self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)

    def batch_size(self, wanted: int) -> int:
        """The size nearest to the one that is wanted which gives every process as many batches: each waits for all."""
        most = -(-self.num_images // self.num_replicas)
        if self.num_images % self.num_replicas == 0:
            return wanted
        sizes = [*range(wanted, 1, -1), *range(wanted + 1, most + 1)]
        return next((size for size in sizes if most % size != 1), most)


class TrainLoader(DataLoader[Any]):
    """A loader that Lightning can resume within an epoch.

    Nothing happens before the first batch is requested: Lightning calls ``iter`` before ``set_epoch``, and workers
    that started there would use the wrong epoch. The state exists only to tell Lightning that this loader can resume.
    It is empty, because Lightning's loops keep the position and ``EpochSampler`` starts there.
    """

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """An empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


class ImageDataModule(ImageSets, pl.LightningDataModule):
    """Batches ``(x uint8 [B, C, H, W], y int64 [B])`` of an ``ImageSets``, which raises ``ResvaeError``.

    Args:
        name: the name of the data set; see ``ImageSets``.
        batch_size: images per training batch.
        eval_batch_size: images per batch of validation and test; default: twice ``batch_size``.
        crop_padding: in training, pad by this many zeros and crop at random; 0: do not crop.
        flip: in training, mirror half of the images at random.
        num_workers: number of loading processes; 0 is fastest where all images are in memory. With 0, an accelerator
            holds the training images and makes the batches itself, if they take less than a quarter of its memory.
        **sets: the other arguments of ``ImageSets``.
    """

    def __init__(
        self,
        name: str = "cifar10",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        num_workers: int = 0,
        **sets: Any,
    ):
        super().__init__(name, **sets)
        pl.LightningDataModule.__init__(self)
        whole_from(1, **{"data.batch_size": batch_size, "data.eval_batch_size": eval_batch_size})
        whole_from(0, **{"data.num_workers": num_workers, "data.crop_padding": crop_padding})
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or 2 * batch_size
        self.crop_padding, self.flip, self.num_workers = crop_padding, flip, num_workers

    def prepare_data(self) -> None:
        """Download what is missing, in one process, and read and split it, once."""
        self.split("train")

    def setup(self, stage: str | None = None) -> None:
        """Do the same in each process."""
        self.split("train")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled and augmented batches. A run that resumes within an epoch gets the rest of that epoch.

        A last batch of a single image is dropped, because batch normalisation cannot work on it.
        """
        images = self.split("train")
        device = self._room(images)
        dataset = ImageDataset(images, self.crop_padding, self.flip, self.seed, device)
        sampler = EpochSampler(dataset, self._images_done)
        size = self.batch_size
        alone = len(sampler) > 1 and size > 1 and len(sampler) % size == 1
        return TrainLoader(dataset, size, sampler=sampler, drop_last=alone, **self._loading(pinned=device is None))

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in order, ``eval_batch_size`` per batch."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images in order, ``eval_batch_size`` per batch."""
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> DataLoader[Any]:
        dataset, size = ImageDataset(self.split(split)), self.eval_batch_size
        if not _distributed():
            return DataLoader(dataset, size, **self._loading())
        sampler = EvaluationSampler(dataset)
        return DataLoader(dataset, sampler.batch_size(size), sampler=sampler, **self._loading())

    def _loading(self, pinned: bool = True) -> dict[str, Any]:
        # its own generator, or each iteration would draw a worker seed from the global random stream
        loading = {"num_workers": self.num_workers, "collate_fn": tuple, "generator": torch.Generator()}
        # from pinned memory a batch is copied while the device computes
        return loading | {"pin_memory": pinned and self._device.type == "cuda"}

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _room(self, images: Images) -> torch.device | None:
        """The accelerator that trains, if the images are in memory and take little of its own."""
        small = isinstance(images.x, Tensor) and images.x.nbytes < DEVICE_SHARE * free_memory(self._device)
        return self._device if small and not self.num_workers else None

    def _images_done(self) -> int:
        """Images of this epoch on which the run had trained when the restored checkpoint was written."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batch_size


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
