"""Batches from a tensor of images, gathered and augmented as a whole. Seed and epoch alone decide their order."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from resvae.data.images import Images

Batch = tuple[Tensor, Tensor]  # x uint8 [B, C, H, W], y int64 [B]


class ImageDataset(Dataset[Batch]):
    """Images in memory. ``__getitems__`` returns a whole batch at once.

    Args:
        images: the images and their labels.
        crop_padding, flip: as in ``ImageDataModule``.
        seed: the seed of the order and the augmentation. The augmentation depends only on the seed, ``epoch`` and the
            first index of the batch, not on the number of workers or other random numbers.
    """

    def __init__(self, images: Images, crop_padding: int = 0, flip: bool = False, seed: int = 0):
        self.images = images
        self.crop_padding = crop_padding
        self.flip = flip
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images.y)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these indices: x uint8 ``[B, C, H, W]``, y int64 ``[B]``."""
        # numpy: torch would split this small work over threads, which costs more than it saves on busy cores
        x = self.images.x.numpy()[indices]
        rng = np.random.default_rng((self.seed, self.epoch, indices[0]))
        if self.crop_padding:
            x = random_crop(x, self.crop_padding, rng)
        if self.flip:
            mirrored = rng.random(len(x)) < 0.5
            x[mirrored] = x[mirrored][..., ::-1].copy()  # a contiguous copy is faster to write back
        return torch.from_numpy(x), self.images.y[indices]


def random_crop(x: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    """Pad each image ``[B, C, H, W]`` with a margin of zeros, and crop it at random to its own size."""
    batch, channels, height, width = x.shape
    padded = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding), x.dtype)
    padded[:, :, padding:-padding, padding:-padding] = x
    top, left = rng.integers(0, 2 * padding + 1, (2, batch))
    windows = sliding_window_view(padded, (height, width), (2, 3))  # B C top left H W, a view
    return windows[np.arange(batch), :, top, left]


class EpochSampler(DistributedSampler[int]):
    """A new order in each epoch, which seed and epoch alone decide; split over ranks under ``torch.distributed``.

    The first ``start()`` images are skipped, so that a run can resume within an epoch. ``start`` is called when an
    epoch begins, because Lightning may need the loader for its length before it has restored the position.
    """

    def __init__(self, dataset: ImageDataset, start: Callable[[], int] = int):
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        alone: dict[str, Any] = {} if distributed else {"num_replicas": 1, "rank": 0}
        super().__init__(dataset, shuffle=True, seed=dataset.seed, **alone)
        self.images = dataset
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[self.start() :])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this at the start of each one."""
        super().set_epoch(epoch)
        self.images.epoch = epoch


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


def train_loader(
    dataset: ImageDataset, batch_size: int, num_workers: int = 0, start: Callable[[], int] = int
) -> TrainLoader:
    """Shuffled batches without the first ``start()`` images; the last batch of an epoch may be smaller.

    A last batch of a single image is dropped, because batch normalisation cannot work on it.
    """
    sampler = EpochSampler(dataset, start)
    alone = len(sampler) > 1 and batch_size > 1 and len(sampler) % batch_size == 1
    return TrainLoader(dataset, batch_size, sampler=sampler, drop_last=alone, **loading(num_workers))


def loading(num_workers: int) -> dict[str, Any]:
    """The options of a ``DataLoader`` for a dataset whose ``__getitems__`` returns whole batches."""
    # its own generator, or each iteration would draw a worker seed from the global random stream
    return {"num_workers": num_workers, "collate_fn": tuple, "generator": torch.Generator()}
