"""What a run reports: one line per epoch, and ``summary.json``."""

import json
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from resvae.files import write_text
from resvae.provenance import commit, hardware
from resvae.runs.folder import SUMMARY
from resvae.training.callbacks import Throughput
from resvae.training.muon import Muon


class Summary(Callback):
    """Prints one line per epoch and keeps ``summary.json`` in the run's folder, from which tables of runs are made.

    The validation figures are those of one validation, the best: the one after which ``best.ckpt`` was written. The
    training loss is the minimum over the epochs, as in the article's table. A resumed run keeps its earlier best.

    Args:
        folder: the run's.
        monitor, mode: the figure that decides which validation is the best, and whether it is to be ``min`` or ``max``.
    """

    def __init__(self, folder: Path, monitor: str = "val/loss", mode: str = "min"):
        self.folder, self.monitor, self.sign = folder, monitor, -1.0 if mode == "max" else 1.0
        self._validated = False  # since the last epoch's end
        self.best: dict[str, float] = {}
        self.summary: dict[str, Any] = {}
        self._about: dict[str, Any] = {}
        self._throughput = Throughput()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print what will be trained, and where it goes."""
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        self._throughput = next(callback for callback in callbacks if isinstance(callback, Throughput))
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        module: Any = pl_module
        model = module.model
        self._about = {
            "name": self.folder.name,
            "started_in": str(Path.cwd()),  # from where the relative paths of the configuration are seen
            "model": type(model).__name__,
            "arguments": model.arguments if module.description() else None,
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "hardware": hardware(pl_module.device),
            "torch": torch.__version__,
            "commit": commit(),  # of the code that runs; the checkout may change before the run ends
        }
        for note in data.notes:
            self._print(trainer, note)
        self._print(
            trainer,
            f"{self._about['model']}, {self._about['parameters']:,} parameters, on {data.num_train:,} images "
            f"({data.num_val:,} to validate) -> {self.folder}",
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note which optimiser has which weights."""
        (optimizer,) = trainer.optimizers
        self._about["optimizer"] = optimizer.text() if isinstance(optimizer, Muon) else type(optimizer).__name__

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update the minima and print the epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= self._throughput.metrics()  # it logs after this callback
        if not self._validated:  # what there is of a validation is of an earlier epoch
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val/")}
        self._validated = False
        if math.isfinite(metrics.get("train/loss", math.nan)):
            self.best["train_loss"] = min(metrics["train/loss"], self.best.get("train_loss", math.inf))
        self._write(trainer, "running")
        self._print(trainer, _line(trainer.current_epoch + 1, metrics))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the figures if they are the best so far: every validation counts, whatever its rhythm."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = True
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        value = metrics.get(self.monitor, math.nan) * self.sign
        if value < self.best.get("monitored", math.inf):
            self.best |= {"monitored": value, "val_loss": metrics["val/loss"]}
            self.best |= {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            others = ("bits_per_dim", "loss_over_floor", "kl", "error")
            self.best |= {name: metrics[f"val/{name}"] for name in others if f"val/{name}" in metrics}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write why the run ended."""
        self._write(trainer, _reason(trainer))

    def text(self) -> str:
        """How the run ended, in one or two lines."""
        s = self.summary
        lines = [f"ended: {s['ended']}; {s['epochs']} epochs, {s['steps']:,} updates, {s['seconds']:,.0f} s"]
        if "val_loss" in s:
            loss, *others = _figures(s | {"loss": s["val_loss"]})
            figures = ", ".join([f"validation loss {loss} nats per image", *others])
            lines.append(f"best: {figures} (epoch {s['epoch']})")
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """The best figures so far."""
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's best figures, if it is a checkpoint of this run."""
        if (self.folder / "checkpoints/best.ckpt").is_file():
            self.best = dict(state_dict)
            if "monitored" not in self.best:  # of a run from before it was kept
                figure = self.best.get(self.monitor.replace("val/loss", "val_loss").removeprefix("val/"))
                self.best |= {} if figure is None else {"monitored": figure * self.sign}

    @staticmethod
    def _print(trainer: pl.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(text, flush=True)

    def _write(self, trainer: pl.Trainer, ended: str) -> None:
        self.summary = {
            **self._about,
            "seconds": self._throughput.metrics()["seconds"],
            "epochs": trainer.current_epoch + (ended == "running"),
            "steps": trainer.global_step,
            **{name: value for name, value in self.best.items() if name != "monitored"},
            "ended": ended,
        }
        if trainer.is_global_zero:
            write_text(self.folder / SUMMARY, json.dumps(self.summary, indent=2) + "\n")


def _reason(trainer: pl.Trainer) -> str:
    stopping = trainer.early_stopping_callback
    if stopping is not None and stopping.stopping_reason_message is not None:
        if stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return (
                f"early stopping: {stopping.monitor} did not improve by more than {abs(stopping.min_delta):g} "
                f"for {stopping.patience} epochs"
            )
        return f"early stopping: {stopping.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"all {trainer.max_epochs} epochs done"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"all {trainer.max_steps} updates done"
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    timers = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    if any(left is not None and left <= 0 for left in timers):
        return "the time of max_time is over"
    return "stopped by the trainer or one of its callbacks"


def _line(epoch: int, metrics: dict[str, float]) -> str:
    parts = [f"epoch {epoch:4d}"]
    for split in ("train", "val"):
        if f"{split}/loss" in metrics:
            loss, *others = _figures({name.removeprefix(f"{split}/"): value for name, value in metrics.items()})
            parts.append(" ".join([split, loss, *(f"({text})" for text in others)]))
    further = {
        "val/kl": "KL {:.1f}",
        "train/images_per_second": "{:.0f} images/s",
        "train/skipped_updates": "{:.0f} skipped",
        "seconds": "{:.0f} s",
    }
    parts += [text.format(metrics[name]) for name, text in further.items() if metrics.get(name)]
    return " | ".join(parts)


def _figures(figures: dict[str, float]) -> list[str]:
    """The loss and the other figures as text."""
    texts = {
        "loss": "{:.4f}" if "error" in figures else "{:.2f}",
        "error": "error {:.2%}",
        "bits_per_dim": "{:.4f} bits/dim",
        "loss_over_floor": "{:.2f} over the floor",
    }
    return [text.format(figures[name]) for name, text in texts.items() if name in figures]
