"""What runs beside training: the weights' average, throughput, the last validation, picture grids.

Lightning's internals used here: ``WeightAveraging._swap_models`` and ``._average_model``, and
``LightningModule._trainer``.
"""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from resvae.errors import ResvaeError, whole_from
from resvae.evaluation.grids import beside, image_grid, save_grid
from resvae.isolation import isolated
from resvae.models.base import to_unit
from resvae.training.sharding import is_shared_out, local, share_out, shared_out, whole


class ExponentialAverage(WeightAveraging):
    """Keeps an exponential moving average of the weights, which is what is validated, saved and kept.

    After update n the decay is min(decay, (1 + n) / (10 + n)), so that a short run's average does not remember its
    random start. Lightning's own ``EMAWeightAveraging`` has no such warm-up.
    """

    def __init__(self, decay: float = 0.999):
        self.decay = decay
        self._swapped = False  # whether the module holds the average, and this callback what trains
        super().__init__(device="cpu", use_buffers=True, multi_avg_fn=self._average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the module without its trainer: that holds the data, and in several processes what nobody can copy."""
        if stage != "fit":
            return
        attached, pl_module._trainer = pl_module._trainer, None
        try:
            self._average_model = AveragedModel(pl_module, self._device, use_buffers=True, **self._kwargs)
        finally:
            pl_module._trainer = attached

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the average where the module is, shared out as it is.

        The count of its updates stays on the CPU: it is read at each, and an accelerator would make the host wait.
        """
        assert self._average_model is not None
        averaged: Any = self._average_model.module
        if is_shared_out(pl_module):
            share_out(averaged, trainer.strategy.device_mesh["data_parallel"])
        else:
            averaged.to(pl_module.device)

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, _: Any) -> None:
        assert self._average_model is not None
        n = int(self._average_model.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        averaged, current = ([local(tensor) for tensor in tensors] for tensors in (averaged, current))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:  # counters
            torch._foreach_copy_(averaged, current)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Swap the two back before anything is saved: an interrupted validation leaves them swapped."""
        if self._swapped:
            self._swap_models(pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the whole average, even where it is shared out."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = whole(checkpoint["state_dict"])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Do nothing outside of fit: there the checkpoint's weights are the average already."""
        if self._average_model is not None:
            weights = {name: checkpoint[name] for name in ("state_dict", "current_model_state") if name in checkpoint}
            parts = {name: shared_out(each, pl_module.state_dict()) for name, each in weights.items()}
            super().on_load_checkpoint(trainer, pl_module, {**checkpoint, **parts})


class Throughput(Callback):
    """Logs, per epoch, ``train/images_per_second`` without validation, and ``seconds`` since the run began.

    A resumed run counts its earlier seconds too.
    """

    def __init__(self) -> None:
        self._earlier = 0.0  # seconds, of the processes before this one
        self._start = self._batch_start = time.perf_counter()
        self._images = 0
        self._training = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: a run that resumes in the middle of an epoch starts no epoch."""
        self._start = self._batch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting the images of an epoch."""
        self._images, self._training = 0, 0.0
        self._batch_start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch, and the time since the last one, in which it was fetched."""
        self._images += len(images_of(batch)) * trainer.world_size
        now = time.perf_counter()
        self._training += now - self._batch_start
        self._batch_start = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the time of the validation out."""
        self._batch_start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's figures."""
        pl_module.log_dict(self.metrics())

    def metrics(self) -> dict[str, float]:
        """The two figures, by their names in the log."""
        seconds = self._earlier + time.perf_counter() - self._start
        return {"train/images_per_second": self._images / max(self._training, 1e-9), "seconds": seconds}

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far, for a resume."""
        return {"seconds": self.metrics()["seconds"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add a checkpoint's seconds."""
        self._earlier = state_dict["seconds"]


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's own, but for its patience after a resume: it is this configuration's, not the checkpoint's."""

    @property
    def state_key(self) -> str:
        """The key of Lightning's own class, so that checkpoints fit whichever of the two wrote them."""
        return super().state_key.replace(type(self).__qualname__, "EarlyStopping", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best figure, and for how long it has been the best."""
        super().load_state_dict(state_dict | {"patience": self.patience})


class FinalValidation(Callback):
    """Validates at the end of a run that ``max_steps`` ends within an epoch; Lightning would not."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask for the end before Lightning does; then it validates."""
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True


class ImageGrids(Callback):
    """Draws, every few epochs, PNG grids of prior samples and of reconstructions beside their originals.

    The grids go to ``samples/`` and ``reconstructions/`` in the run's folder, and to W&B or TensorBoard where these
    log. Noise and validation images are the same every time, and the training's random stream is left alone.

    Args:
        every_n_epochs: number of epochs between two grids; 0 for none. The epoch ``max_epochs`` always draws.
        num: images per grid.
    """

    def __init__(self, every_n_epochs: int = 5, num: int = 64):
        if every_n_epochs < 0:
            raise ResvaeError(f"images.every_n_epochs: {every_n_epochs} is not allowed; 0 (never) or more")
        whole_from(1, **{"images.num": num})
        self.every_n_epochs = every_n_epochs
        self.num = num
        self.latest: list[Path] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw when it is time, while the weights that are validated (the average) are in place."""
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        due = self.every_n_epochs and ((trainer.current_epoch + 1) % self.every_n_epochs == 0 or last)
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if due and fitting:
            folder = Path(str(trainer.log_dir))  # a property that all processes must read
            vae = pl_module.whole_model()  # to which all processes may have to contribute
            if trainer.is_global_zero:
                self._draw(trainer, vae, folder)

    def _draw(self, trainer: pl.Trainer, vae: Any, folder: Path) -> None:
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        with isolated(vae, 0) as device:
            samples = vae.sample(self.num)
            originals = data.images("val", self.num).to(device)
            pairs = beside(to_unit(originals, vae.image_shape), vae.reconstruct(originals))
        grids = {"samples": (samples, None), "reconstructions": (pairs, 8)}
        self.latest = []
        for name, (images, columns) in grids.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            path = save_grid(images, folder / name / f"epoch_{trainer.current_epoch + 1:04d}.png", columns)
            self.latest.append(path)
            loggers: list[Any] = trainer.loggers
            for logger in loggers:
                if hasattr(logger, "log_image"):  # W&B
                    logger.log_image(
                        key=name, images=[str(path)], caption=[f"{name}, epoch {trainer.current_epoch + 1}"]
                    )
                elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                    logger.experiment.add_image(name, image_grid(images, columns), trainer.global_step)


def images_of(batch: Any) -> Tensor:
    """The images of a batch, with or without labels."""
    return batch[0] if isinstance(batch, list | tuple) else batch
