"""From a tensor of images to batches: gathered and augmented whole, in an order that only seed and epoch decide."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from resvae.data.sources import Images

Batch = tuple[Tensor, Tensor]  # x uint8 [B, C, H, W], y int64 [B]


class ImageDataset(Dataset[Batch]):
    """Images in memory; ``__getitems__`` gives a whole batch at once.

    Args:
        images: what to serve.
        crop_padding, flip: as ``ImageDataModule`` has them.
        seed: of the order and the augmentation. The latter depends on it, ``epoch`` and the batch's first index alone:
            neither the number of workers nor anything drawn elsewhere changes it.
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
        # numpy: torch would share such small work among threads, which costs more than it saves where cores are busy
        x = self.images.x.numpy()[indices]
        rng = np.random.default_rng((self.seed, self.epoch, indices[0]))
        if self.crop_padding:
            x = random_crop(x, self.crop_padding, rng)
        if self.flip:
            mirrored = rng.random(len(x)) < 0.5
            x[mirrored] = x[mirrored][..., ::-1].copy()  # a contiguous copy is quicker to write back
        return torch.from_numpy(x), self.images.y[indices]


def random_crop(x: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    """Cut each image ``[B, C, H, W]`` at random out of itself with a margin of zeros."""
    batch, channels, height, width = x.shape
    padded = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding), x.dtype)
    padded[:, :, padding:-padding, padding:-padding] = x
    top, left = rng.integers(0, 2 * padding + 1, (2, batch))
    windows = sliding_window_view(padded, (height, width), (2, 3))  # B C top left H W, a view
    return windows[np.arange(batch), :, top, left]


class EpochSampler(DistributedSampler[int]):
    """A new order each epoch, from the seed and the epoch alone; shared out under ``torch.distributed``.

    The first ``start()`` images are passed over, so that a run can go on in the middle of an epoch. It is asked when
    an epoch begins: Lightning may want the loader, for its length, before it has restored the position.
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
        """Lightning calls this at the start of each epoch."""
        super().set_epoch(epoch)
        self.images.epoch = epoch


class TrainLoader(DataLoader[Any]):
    """A loader that Lightning can resume in the middle of an epoch.

    Nothing happens before the first batch is asked for: Lightning calls ``iter`` before ``set_epoch``, and workers
    started there would begin with another epoch. The state is empty because Lightning's loops keep the position and
    ``EpochSampler`` begins there; having one says that this loader can be resumed.
    """

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def train_loader(
    dataset: ImageDataset, batch_size: int, num_workers: int = 0, start: Callable[[], int] = int
) -> TrainLoader:
    """Shuffled batches, the last of an epoch perhaps smaller; the first ``start()`` images are passed over.

    One image left alone is left out: nothing can be normalised over a batch of it.
    """
    sampler = EpochSampler(dataset, start)
    alone = len(sampler) > 1 and batch_size > 1 and len(sampler) % batch_size == 1
    return TrainLoader(dataset, batch_size, sampler=sampler, drop_last=alone, **loading(num_workers))


def loading(num_workers: int) -> dict[str, Any]:
    """A ``DataLoader``'s options for a dataset whose ``__getitems__`` has collated already."""
    # a generator of its own: else each iteration would draw a seed for workers from the global stream
    return {"num_workers": num_workers, "collate_fn": tuple, "generator": torch.Generator()}
