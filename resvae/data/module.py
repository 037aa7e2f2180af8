"""``ImageDataModule``: batches of images for Lightning."""

from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from resvae.data.pipeline import ImageDataset, loading, train_loader
from resvae.data.sets import ImageSets, Split
from resvae.errors import at_least


class ImageDataModule(ImageSets, pl.LightningDataModule):
    """Batches ``(x uint8 [B, C, H, W], y int64 [B])`` of an ``ImageSets``.

    Args:
        name: the name of the data set; see ``ImageSets``.
        batch_size: images per training batch.
        eval_batch_size: images per batch of validation and test; default: twice ``batch_size``.
        crop_padding: in training, pad by this many zeros and crop at random; 0: do not crop.
        flip: in training, mirror half of the images at random.
        num_workers: number of loading processes; 0 is fastest, because all images are in memory.
        **sets: the other arguments of ``ImageSets``.

    Raises:
        ResvaeError: as ``ImageSets`` does.
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
        at_least(1, **{"data.batch_size": batch_size, "data.eval_batch_size": eval_batch_size})
        at_least(0, **{"data.num_workers": num_workers, "data.crop_padding": crop_padding})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.crop_padding = crop_padding
        self.flip = flip
        self.num_workers = num_workers

    def prepare_data(self) -> None:
        """Download what is missing, in one process."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the set and split it, once."""
        self.split("train")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled and augmented batches. A run that resumes within an epoch gets the rest of that epoch."""
        dataset = ImageDataset(self.split("train"), self.crop_padding, self.flip, self.seed)
        return train_loader(dataset, self.batch_size, self.num_workers, self._images_done)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in order, ``eval_batch_size`` per batch."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images in order, ``eval_batch_size`` per batch."""
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> DataLoader[Any]:
        return DataLoader(ImageDataset(self.split(split)), self.eval_batch_size, **loading(self.num_workers))

    def _images_done(self) -> int:
        """Images of this epoch on which the run had trained when the restored checkpoint was written."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batch_size
