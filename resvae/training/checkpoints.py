"""How training writes and reads its checkpoints: whole or not at all, and without running code from them.

Lightning's internals used here: ``ModelCheckpoint._every_n_train_steps`` and ``FitLoop._can_stop_early``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from resvae.errors import ResvaeError, one_line
from resvae.files import write_atomically
from resvae.storage import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step, so that a full disk or a killed process leaves the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; ``ResvaeError`` where that fails, and what was there before stays."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: torch.save(checkpoint, temporary))
        except (OSError, RuntimeError) as error:
            kept = "; the one saved before is kept" if path.exists() else ""
            raise ResvaeError(f"checkpoint: {path} could not be written ({one_line(error)}){kept}") from error

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read on the CPU; a pickle that holds more than tensors and plain values is refused."""
        return read_checkpoint(path)


class RunCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint of a run whose folder may be moved; Lightning's own class then forgets its best.

    A run that starts from another run's checkpoint has no best yet.
    """

    @property
    def state_key(self) -> str:
        """The key of Lightning's own class, so that checkpoints fit whichever subclass wrote them."""
        return super().state_key.replace(type(self).__qualname__, "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score, if the best checkpoint is in this folder."""
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        if state_dict["best_model_path"] and Path(here(state_dict["best_model_path"])).is_file():
            paths = {k: here(state_dict[k]) for k in ("best_model_path", "kth_best_model_path", "last_model_path")}
            models = {here(path): score for path, score in state_dict["best_k_models"].items()}
            super().load_state_dict(state_dict | paths | {"best_k_models": models, "dirpath": self.dirpath})


class StepCheckpoint(RunCheckpoint):
    """Saves every few updates, but not after the last of an epoch: Lightning would resume there without validating.

    It also saves where a limit ends the run within an epoch.
    """

    ended_at = -1  # the update at which a limit ended the run within an epoch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save within an epoch only: its end has a checkpoint of its own; and not between batches of one update.

        Their gradients are not saved.
        """
        between = (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.should_stop
        if trainer.is_last_batch or between:
            return
        every = self._every_n_train_steps
        if trainer.should_stop and trainer.fit_loop._can_stop_early:  # no least number of updates is left
            self._every_n_train_steps, self.ended_at = 1, trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._every_n_train_steps = every


class EpochCheckpoint(RunCheckpoint):
    """Saves at the end of each epoch; not where ``steps`` has saved that a limit ended the run before it.

    Lightning would resume from there with the next epoch, and leave out what was left of this one.
    """

    def __init__(self, steps: StepCheckpoint, **options: Any):
        super().__init__(**options)
        self.steps = steps

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save, if the epoch has really ended."""
        if self.steps.ended_at != trainer.global_step:
            super().on_train_epoch_end(trainer, pl_module)


def lost_process(error: RuntimeError) -> bool:
    """Whether it tells that another process cannot be reached."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


class InterruptedCheckpoint(OnExceptionCheckpoint):
    """Saves on an exception and on Ctrl-C; a run that ends well removes the file."""

    def on_exception(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Save what has been trained, if anything."""
        if trainer.global_step > 0:
            try:
                super().on_exception(trainer)
                if not Path(self.ckpt_path).is_file():  # of several processes, one that writes nothing
                    return
                text = f"wrote {self.ckpt_path}; --ckpt_path {self.ckpt_path} resumes from there"
            except ResvaeError as error:  # perhaps the reason for the interruption, which is the one to tell
                text = str(error)
            except RuntimeError as error:
                if not lost_process(error):
                    raise
                text = f"wrote {self.ckpt_path}"  # and waited in vain for the other processes
                if not trainer.is_global_zero:  # which writes nothing
                    return
            print(f"interrupted: {text}", flush=True)
