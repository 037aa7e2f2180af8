"""What a run says of itself: a line an epoch, and ``summary.json`` at its end."""

import json
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from resvae.evaluation import commit, hardware
from resvae.training.callbacks import Throughput


class Summary(Callback):
    """Prints a line an epoch and keeps ``summary.json`` in the run's folder: what a table of runs is made of.

    Losses are minima over the epochs, as in the article's table; the bits/dim is that of the epoch with the best
    validation loss. A classifier's validation figures are all those of the epoch with the lowest error. All goes on
    after a resume.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.best: dict[str, float] = {}
        self.summary: dict[str, Any] = {}
        self._commit: str | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what will be trained, and where it goes."""
        self._commit = commit()  # of the code that runs: the checkout may move on meanwhile
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        print(
            f"{type(pl_module.model).__name__}, {parameters:,} parameters, on {data.num_train:,} images "
            f"({data.num_val:,} to validate) -> {self.folder}",
            flush=True,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the minima; print the epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= _throughput(trainer).metrics()  # it logs after this callback
        if math.isfinite(metrics.get("train/loss", math.nan)):
            self.best["train_loss"] = min(metrics["train/loss"], self.best.get("train_loss", math.inf))
        deciding, kept = ("val/error", "error") if "val/error" in metrics else ("val/loss", "val_loss")
        if metrics.get(deciding, math.inf) < self.best.get(kept, math.inf):
            self.best["val_loss"] = metrics["val/loss"]
            self.best["epoch"] = trainer.current_epoch + 1
            for name in ("bits_per_dim", "loss_over_floor", "kl", "error"):
                if f"val/{name}" in metrics:
                    self.best[name] = metrics[f"val/{name}"]
        self._write(trainer, pl_module, "running")
        print(_line(trainer.current_epoch + 1, metrics), flush=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write how it ended."""
        self._write(trainer, pl_module, _reason(trainer))

    def text(self) -> str:
        """The end of the run in one or two lines."""
        s = self.summary
        lines = [f"ended: {s['ended']}; {s['epochs']} epochs, {s['steps']:,} updates, {s['seconds']:,.0f} s"]
        if "val_loss" in s:
            figure = f"validation loss {s['val_loss']:.{4 if 'error' in s else 2}f} nats an image"
            if "error" in s:
                figure += f", error {s['error']:.2%}"
            if "bits_per_dim" in s:
                figure += f", {s['bits_per_dim']:.4f} bits/dim"
            if "loss_over_floor" in s:
                figure += f", {s['loss_over_floor']:.2f} over the floor"
            lines.append(f"best: {figure} (epoch {s['epoch']})")
        return "\n".join(lines)

    def state_dict(self) -> dict[str, Any]:
        """The minima so far."""
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = dict(state_dict)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, ended: str) -> None:
        if not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        self.summary = {
            "name": self.folder.name,
            "model": type(model).__name__,
            "arguments": model.arguments,
            "parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "seconds": _throughput(trainer).metrics()["seconds"],
            "epochs": trainer.current_epoch + (ended == "running"),
            "steps": trainer.global_step,
            **self.best,
            "ended": ended,
            "hardware": hardware(pl_module.device),
            "torch": torch.__version__,
            "commit": self._commit,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "summary.json").write_text(json.dumps(self.summary, indent=2) + "\n")


def read_summary(run: Path) -> dict[str, Any]:
    """What a run says of itself so far; empty before its first epoch has ended."""
    try:
        return json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):  # none, or half of one: of a run that was killed, or that is writing it now
        return {}


def _throughput(trainer: pl.Trainer) -> Throughput:
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next(callback for callback in callbacks if isinstance(callback, Throughput))


def _reason(trainer: pl.Trainer) -> str:
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping) or callback.stopping_reason_message is None:
            continue
        if callback.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return (
                f"early stopping: {callback.monitor} did not improve by more than {abs(callback.min_delta):g} "
                f"for {callback.patience} epochs"
            )
        return f"early stopping: {callback.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"all {trainer.max_epochs} epochs done"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"all {trainer.max_steps} updates done"
    return "stopped: the time or a limit of the trainer was reached"


def _line(epoch: int, metrics: dict[str, float]) -> str:
    parts = [f"epoch {epoch:4d}"]
    for split in ("train", "val"):
        if f"{split}/loss" in metrics:
            text = f"{split} {metrics[f'{split}/loss']:.{4 if f'{split}/error' in metrics else 2}f}"
            if f"{split}/error" in metrics:
                text += f" ({metrics[f'{split}/error']:.2%} wrong)"
            if f"{split}/bits_per_dim" in metrics:
                text += f" ({metrics[f'{split}/bits_per_dim']:.4f} bits/dim)"
            if f"{split}/loss_over_floor" in metrics:
                text += f" ({metrics[f'{split}/loss_over_floor']:.2f} over the floor)"
            parts.append(text)
    if "val/kl" in metrics:
        parts.append(f"KL {metrics['val/kl']:.1f}")
    if "train/images_per_second" in metrics:
        parts.append(f"{metrics['train/images_per_second']:.0f} images/s")
    if metrics.get("train/skipped_updates"):
        parts.append(f"{metrics['train/skipped_updates']:.0f} skipped")
    if "seconds" in metrics:
        parts.append(f"{metrics['seconds']:.0f} s")
    return " | ".join(parts)
