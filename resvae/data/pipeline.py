"""From a tensor of images to batches: gathered and augmented whole, in an order that only seed and epoch decide."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from resvae.data.sources import Images

Batch = tuple[Tensor, Tensor]  # x uint8 [B, C, H, W], y int64 [B]


class ImageDataset(Dataset[Batch]):
    """Images in memory; ``__getitems__`` gives a whole batch at once.

    Args:
        images: what to serve.
        crop_padding: pad by so many zeros and cut at random; 0 for none.
        flip: mirror every other image, left to right, at random.
        seed: of the augmentation, together with ``epoch`` and the batch's first index: neither the number of workers
            nor anything drawn elsewhere changes it.
    """

    def __init__(self, images: Images, crop_padding: int = 0, flip: bool = False, seed: int = 0):
        self.y = images.y
        self.flip = flip
        self.seed = seed
        self.epoch = 0
        self.padding = crop_padding
        self.x = images.x
        if crop_padding:
            height, width = images.x.shape[-2:]
            padded = F.pad(images.x, (crop_padding,) * 4)
            self.x = padded.unfold(2, height, 1).unfold(3, width, 1)  # N C top left H W, a view

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Batch:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these indices: x ``[B, C, H, W]`` uint8, y ``[B]``."""
        index = torch.tensor(indices)
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch, indices[0])) & (2**63 - 1))
        if self.padding:
            top, left = torch.randint(0, 2 * self.padding + 1, (2, len(index)), generator=generator)
            x = self.x[index, :, top, left]
        else:
            x = self.x[index]
        if self.flip:
            mirrored = torch.rand(len(index), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        return x, self.y[index]


class EpochSampler(DistributedSampler[int]):
    """A new order each epoch, from the seed and the epoch alone; shared out under ``torch.distributed``.

    ``start`` images are passed over once, so that a run can go on in the middle of an epoch.
    """

    def __init__(self, dataset: ImageDataset, seed: int, start: int = 0):
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        replicas = torch.distributed.get_world_size() if distributed else 1
        rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed)
        self.images = dataset
        self.start = start

    def __iter__(self) -> Iterator[int]:
        start, self.start = self.start, 0
        return iter(list(super().__iter__())[start:])

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch."""
        super().set_epoch(epoch)
        self.images.epoch = epoch


class TrainLoader(DataLoader[Any]):
    """A loader of ``EpochSampler`` that Lightning saves in its checkpoints and resumes at the batch where it was."""

    _done = 0

    def __iter__(self) -> Iterator[Any]:
        sampler = self.sampler
        assert isinstance(sampler, EpochSampler) and self.batch_size is not None
        self._done = sampler.start // self.batch_size
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch have been given out; 0 at its end."""
        return {"batches": self._done % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Pass over as many batches, once."""
        assert isinstance(self.sampler, EpochSampler) and self.batch_size is not None
        self.sampler.start = state["batches"] * self.batch_size


def train_loader(dataset: ImageDataset, batch_size: int, seed: int, num_workers: int) -> TrainLoader:
    """Shuffled batches, the last of an epoch perhaps smaller."""
    return TrainLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(dataset, seed),
        num_workers=num_workers,
        collate_fn=whole,
        generator=torch.Generator(),  # workers' seeds come from here and not from the global stream
    )


def evaluation_loader(dataset: ImageDataset, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """All images in order, the last batch perhaps smaller."""
    return DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=whole, generator=torch.Generator(), shuffle=False
    )


def whole(batch: Batch) -> Batch:
    """``__getitems__`` has collated already."""
    return batch
