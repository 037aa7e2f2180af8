"""What runs beside training: the weights' average, throughput, picture grids."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.evaluation.grids import beside, save_grid


class ExponentialAverage(WeightAveraging):
    """Exponential moving average of the weights, after every update; what is validated, saved and kept.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over the first updates n, so that a short run's average does
    not remember its random start. Lightning's own ``EMAWeightAveraging`` has no such warm-up.
    """

    def __init__(self, decay: float = 0.999):
        self.decay = decay
        self._holds_average = False
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    @torch.no_grad()
    def _average(self, averaged: Any, current: Any, num_averaged: Any) -> None:
        n = int(num_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:  # counters
            torch._foreach_copy_(averaged, current)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate with the average."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._holds_average = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train on with the current weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._holds_average = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """An interrupted validation leaves the two swapped; put them back before anything is saved."""
        if self._holds_average:
            self._swap_models(pl_module)
            self._holds_average = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Outside of fit the checkpoint's weights are the average already."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class Throughput(Callback):
    """Logs ``train/images_per_second`` an epoch, validation not counted, and ``seconds`` since the run began.

    The seconds go on after a resume.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # of all of fit, in earlier processes too
        self._last: float | None = None
        self._images = 0
        self._training = 0.0
        self._batch_start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resume in the middle of an epoch has no other start."""
        self._last = self._batch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new count."""
        self._images, self._training = 0, 0.0
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, with the time it took to fetch it."""
        self._images += len(batch[0] if isinstance(batch, list | tuple) else batch) * trainer.world_size
        now = time.perf_counter()
        self._training += now - self._batch_start
        self._batch_start = now
        self._tick()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not training: let the next batch start now."""
        self._batch_start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's figures."""
        pl_module.log_dict(self.metrics())

    def metrics(self) -> dict[str, float]:
        """The figures by their names in the log."""
        self._tick()
        return {"train/images_per_second": self._images / max(self._training, 1e-9), "seconds": self.seconds}

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        self._tick()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds = state_dict["seconds"]

    def _tick(self) -> None:
        if self._last is not None:
            now = time.perf_counter()
            self.seconds += now - self._last
            self._last = now


class ImageGrids(Callback):
    """Every few epochs, PNG grids of prior samples and of reconstructions beside their originals.

    They go to ``samples/`` and ``reconstructions/`` in the run's folder, and to W&B or TensorBoard where these log.
    The same noise and the same validation images every time; the training's random stream is left alone.

    Args:
        every_n_epochs: how often; 0 for never. The last epoch always draws.
        num: images a grid.
    """

    def __init__(self, every_n_epochs: int = 5, num: int = 64):
        if every_n_epochs < 0:
            raise ResvaeError(f"images.every_n_epochs: {every_n_epochs} is not allowed; 0 (never) or more")
        if num < 1:
            raise ResvaeError(f"images.num: {num} is not allowed; at least 1")
        self.every_n_epochs = every_n_epochs
        self.num = num
        self.latest: list[Path] = []
        self._originals: Tensor | None = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images to reconstruct."""
        if batch_idx == 0 and self._originals is None:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            self._originals = x[: self.num].detach().clone()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw when it is time, while validation's weights (the average) are in place."""
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        due = self.every_n_epochs and ((trainer.current_epoch + 1) % self.every_n_epochs == 0 or last)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if due and fitting and trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._originals is not None
        vae: Any = pl_module.vae
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        training = vae.training
        vae.eval()
        with torch.random.fork_rng(devices=[pl_module.device] if pl_module.device.type == "cuda" else []):
            torch.manual_seed(0)
            samples = vae.sample(self.num)
            reconstructions = vae.reconstruct(self._originals)
        vae.train(training)
        originals = self._originals.float() / (255 if self._originals.dtype == torch.uint8 else 1)
        grids = {"samples": (samples, None), "reconstructions": (beside(originals, reconstructions), 8)}
        self.latest = []
        for name, (images, columns) in grids.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            path = save_grid(images, folder / name / f"epoch_{trainer.current_epoch + 1:04d}.png", columns)
            self.latest.append(path)
            loggers: list[Any] = trainer.loggers
            for logger in loggers:
                if hasattr(logger, "log_image"):  # W&B
                    logger.log_image(key=name, images=[str(path)])
                elif hasattr(logger.experiment, "add_image"):  # TensorBoard
                    _add_image(logger, name, path, trainer.global_step)


def _add_image(logger: Any, name: str, path: Path, step: int) -> None:
    from torchvision.io import read_image

    logger.experiment.add_image(name, read_image(str(path)), step)
