"""The means of an epoch's figures, exact over batches of any size and over processes.

Lightning's internals used here: ``LightningModule._trainer``.
"""

import pytorch_lightning as pl
import torch
from torch import Tensor


class Means:
    """Means over batches of different sizes, kept on the device until they are logged.

    Lightning's own ``log`` at every step costs more than a step of a small network.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int | Tensor]] = {}

    def add(self, split: str, values: dict[str, Tensor], num: int | Tensor) -> None:
        """Add the means over ``num`` images, scalars."""
        names = split, *values
        vector = torch.stack([value.detach() for value in values.values()])
        sums = vector.to(torch.float32 if vector.device.type == "mps" else torch.float64) * num  # mps has no float64
        if names in self._sums:
            sums, num = self._sums[names][0] + sums, self._sums[names][1] + num
        self._sums[names] = sums, num

    def forget(self, split: str) -> None:
        """Forget what was added and not logged."""
        self._sums = {names: sums for names, sums in self._sums.items() if names[0] != split}

    def log(self, module: pl.LightningModule, split: str) -> None:
        """Log what was added since the last time; what is logged again in the same epoch is averaged as it should."""
        for split_of, *names in [names for names in self._sums if names[0] == split]:
            sums, num = self._sums.pop((split_of, *names))
            if not (num := int(num)):
                continue  # no update was taken
            alone = module._trainer is None or module.trainer.world_size == 1
            if split != "train" and not alone:
                # Lightning divides by the mean number of images, rounded down. In training the numbers are equal.
                both = torch.cat([sums, sums.new_tensor([float(num)])])
                both = module.trainer.strategy.reduce(both, reduce_op="sum")
                sums, num = both[:-1] / both[-1], 1
            values = {f"{split}/{name}": value for name, value in zip(names, (sums / num).float(), strict=True)}
            module.log_dict(values, on_step=False, on_epoch=True, batch_size=num, sync_dist=True)
