"""What the training of every model shares: guarded updates, the weights' average, checkpoints.

Lightning's internals used here: ``_Loop``, ``epoch_loop._batches_that_stepped`` and ``LightningModule._trainer``.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.loop import _Loop
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from resvae.devices import reading_waits
from resvae.errors import ResvaeError
from resvae.models.registry import registered
from resvae.storage import build, describe
from resvae.training.callbacks import ExponentialAverage, Throughput, images_of
from resvae.training.compiling import choose
from resvae.training.guard import LOOK_EVERY, GradientGuard
from resvae.training.means import Means
from resvae.training.memory import in_bytes, keep_to
from resvae.training.muon import mark_hidden
from resvae.training.optimizers import hyperparameters, in_one_kernel, skips_by_itself, take_over
from resvae.training.schedule import Schedule
from resvae.training.sharding import FullyShardedStrategy, is_shared_out, share_out, whole, whole_norm

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
Precision = Literal["auto", "bf16", "fp32"]
Compile = bool | Literal["auto", "reduce-overhead"]


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The default optimiser: AdamW, rate 1e-3, weight decay .01, betas .9, .99."""
    return AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)


class LitModel(pl.LightningModule, ABC):
    """Holds one model under the name ``field``, in a configuration (``model.vae``) as in a checkpoint (``vae.``).

    Args:
        image_shape: ``(C, H, W)`` that the model takes.
        optimizer, schedule, ema_decay, precision, compile, memory_budget: as ``LitVAE`` has them.
        clip_norm: the gradient's largest norm.
    """

    field: ClassVar[str]
    draws: ClassVar[bool]  # whether the model makes images: a run keeps grids of them
    defaults: ClassVar[dict[str, Any]]  # of fields of a run's configuration

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        optimizer: OptimizerFactory,
        schedule: Schedule,
        ema_decay: float,
        precision: Precision,
        compile: Compile,
        clip_norm: float = math.inf,
        memory_budget: str | None = None,
    ):
        super().__init__()
        if not 0 <= ema_decay < 1:
            raise ResvaeError(f"ema_decay: {ema_decay} is not allowed; 0 (none) up to less than 1")
        if precision not in get_args(Precision):
            raise ResvaeError(f"precision: {precision!r} is not allowed; one of {', '.join(get_args(Precision))}")
        if not clip_norm > 0:
            raise ResvaeError(f"clip_norm: {clip_norm} is not allowed; more than 0")
        self.memory_budget = None if memory_budget is None else in_bytes("memory_budget", memory_budget)
        self.image_shape = image_shape
        self.optimizer = optimizer
        self.schedule = schedule
        self.ema_decay = ema_decay
        self.precision = precision
        self.clip_norm = clip_norm
        self.guard = GradientGuard()
        self.means = Means()
        self.compiles = compile
        self.memory_format = torch.channels_last  # of the images, which convolutions follow
        self._compiled: Callable[[Tensor], Any] | None = None
        self._unshared: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no part of this module
        self._rng: dict[str, Any] | None = None
        self._seed = 0
        self._given: list[dict[str, Any]] = []  # of this configuration's optimiser
        self._before: list[dict[str, Any]] | None = None  # and of the checkpoint's

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return getattr(self, self.field)

    @property
    def compiled(self) -> bool:
        """Whether training is compiled; not yet where that is still to be decided."""
        return self.compiles not in (False, "auto")

    @property
    @abstractmethod
    def objective(self) -> Callable[[Tensor], Any]:
        """What is computed of images ``[B, C, H, W]``: the terms of the ELBO, or logits."""

    @abstractmethod
    def evaluate(self, split: str, batch: Any, batch_idx: int) -> None:
        """Log the figures of one batch of validation or test."""

    @abstractmethod
    def monitored(self) -> dict[str, str]:
        """The figures that early stopping can watch, each with ``min`` or ``max``, whichever is best."""

    def refuse_data(self, data: Any) -> None:
        """Raise ``ResvaeError`` where the images of an ``ImageDataModule`` do not fit the model."""
        if data.image_shape != self.image_shape:
            raise ResvaeError(
                f"model.{self.field}.image_shape: {self.image_shape} is not allowed; the images are {data.image_shape}"
            )

    def fit_memory(self, batch_size: int, device: str) -> str | None:
        """Keep to ``memory_budget`` on this type of device; what was chosen, or None where there is no budget."""
        if self.memory_budget is None:
            return None
        return keep_to(self.memory_budget, self.model, self.objective, self._batch(batch_size), self.in_bf16(device))

    def choose_compile(self, batch_size: int, steps: float, seconds: float | None, device: str) -> str | None:
        """Decide for ``auto`` whether to compile a run of so many batches or seconds; what was chosen and why."""
        if self.compiles != "auto":
            return None
        batch = self._batch(batch_size)
        self.compiles, why = choose(self.model, self.objective, batch, steps, seconds, device)
        return why

    def configure_model(self) -> None:
        """Share out the weights between the processes, where the strategy is to do that."""
        strategy = None if self._trainer is None else self._trainer.strategy
        if not isinstance(strategy, FullyShardedStrategy) or is_shared_out(self):
            return
        if isinstance(size := getattr(self.trainer.datamodule, "batch_size", None), int):  # pyright: ignore
            self.fit_memory(size, self.device.type)
        self._unshared = (deepcopy(self.model),) if self.trainer.is_global_zero else ()
        share_out(self, strategy.device_mesh["data_parallel"])

    def whole_model(self) -> Any:
        """The model; where the weights are shared out, a copy with all of them, or None but in the first process.

        All processes must call it.
        """
        if not is_shared_out(self):
            return self.model
        weights = whole(self.model.state_dict())
        if not self._unshared:
            return None
        model = deepcopy(self._unshared[0])
        model.load_state_dict(weights)
        return model.to(self.device)

    def on_fit_start(self) -> None:
        """Train, even where the model was loaded to be used; compile if asked to.

        Compiling is here, so that the average, which copies the model earlier, copies no compiled graph.
        """
        self.train()
        self.means = Means()
        self._seed = torch.initial_seed()
        # On a CPU torch draws noise many times as fast as a compiled loop does, number by number.
        how: dict[str, Any] = {}
        if self.device.type == "cpu":
            how = {"options": {"fallback_random": True}}
        elif self.compiles == "reduce-overhead":
            how = {"mode": self.compiles}
        compiles = self.compiled and not is_shared_out(self)  # gathered weights would cut the graph in pieces
        self._compiled = torch.compile(self.objective, **how) if compiles else None

    def on_train_start(self) -> None:
        """Keep to the budget of memory; go on with this configuration's hyperparameters, whatever a checkpoint had."""
        loop = self.trainer.fit_loop
        if loop.restarted_on_epoch_end:
            # With a limit of updates Lightning takes the epoch that had ended for one to go on with, and ends it again,
            # without a validation. Without the limit it begins the next, as here.
            _Loop.restarting.fset(loop, False)  # pyright: ignore[reportOptionalCall]
            loop.reset()
        if self._before is not None:
            scheduler = self.lr_schedulers()
            take_over(self.trainer.optimizers[0], scheduler, self._given, self._before)
            self._before = None
        loader: Any = self.trainer.train_dataloader
        if not is_shared_out(self) and isinstance(size := getattr(loader, "batch_size", None), int):
            self.fit_memory(size, self.device.type)

    def compute(self, split: str, batch: Any) -> Any:
        """``objective`` of a batch: compiled in training, and in bf16 except in the test, where these are asked for."""
        x, device = images_of(batch), self.device.type
        bf16 = self.in_bf16(device)
        function = (split == "train" and self._compiled) or self.objective
        with torch.autocast(device, torch.bfloat16, enabled=bf16 and split != "test"):
            return function(x.contiguous(memory_format=self.memory_format))

    def in_bf16(self, device: str) -> bool:
        """Whether it computes in bf16 on this type of device."""
        return self.precision == "bf16" or (self.precision == "auto" and native_bf16(device))

    def _batch(self, size: int) -> Tensor:
        return torch.empty(size, *self.image_shape, dtype=torch.uint8, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the figures without what only training uses (smoothing, weights of the KL, free bits)."""
        self.evaluate("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the figures on the test set, in float32."""
        self.evaluate("test", batch, batch_idx)

    def configure_callbacks(self) -> list[Callback]:
        """The measure of throughput and, with ``ema_decay``, the running average of the weights."""
        return [Throughput(), *([ExponentialAverage(self.ema_decay)] if self.ema_decay else [])]

    def configure_optimizers(self) -> Any:
        """The optimiser with its schedule; a plateau watches ``val/loss`` after each epoch that is validated."""
        optimizer = self.make_optimizer()
        self._given = hyperparameters(optimizer)
        if self.schedule.kind == "plateau":
            s = self.schedule
            plateau = ReduceLROnPlateau(optimizer, factor=s.factor, patience=s.patience, min_lr=s.min_lr)
            every = self.trainer.check_val_every_n_epoch or 1
            watched = {"scheduler": plateau, "monitor": "val/loss", "frequency": every, "strict": False}
            return {"optimizer": optimizer, "lr_scheduler": watched}
        scheduler = LambdaLR(optimizer, self.schedule.of(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def make_optimizer(self) -> Optimizer:
        """A new optimiser of the model's parameters."""
        mark_hidden(self.model)
        return in_one_kernel(self.optimizer(self.model.parameters()))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient; where the guard refuses it, the optimiser skips the update.

        On an accelerator the optimiser is told so there, and the host does not wait. Where it cannot be told, and on a
        CPU, the gradient is removed.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = whole_norm([p.grad for p in parameters if p.grad is not None])
        accepted = self.guard.accepts(norm)
        nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        if reading_waits(norm.device) and skips_by_itself(optimizer):
            optimizer.found_inf = (~accepted).float()  # pyright: ignore[reportAttributeAccessIssue]
            self.means.add("train", {"grad_norm": torch.where(accepted, norm, 0.0)}, accepted.int())
            self.guard.look(LOOK_EVERY)
        elif accepted:
            self.means.add("train", {"grad_norm": norm}, 1)
        else:
            optimizer.zero_grad()
            self.guard.look()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the model is, the guard's statistics and the random states."""
        if (here := self.description()) is not None:
            checkpoint["resvae"] = here
        checkpoint["guard"] = self.guard.state()
        if self._given:
            checkpoint["optimizer"] = {"name": type(self.trainer.optimizers[0]).__name__, "groups": self._given}
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's checkpoint; when training resumes, take over the guard and the random states."""
        self.refuse_other(checkpoint)
        if self._trainer is None or self._trainer.state.fn != "fit":
            return
        if "guard" in checkpoint:
            self.guard = GradientGuard(**checkpoint["guard"])
        self._rng = checkpoint.get("rng")
        self._before = checkpoint.get("optimizer", {}).get("groups")

    def refuse_other(self, checkpoint: dict[str, Any]) -> None:
        """Raise ``ResvaeError`` where the checkpoint holds another model than this one."""
        here, there = self.description(), checkpoint.get("resvae")
        if here != there and there is not None:  # arguments newer than the checkpoint have their defaults
            with suppress(ResvaeError), torch.device("meta"):
                there = describe(build(there))
        if here is not None and here != there:
            raise ResvaeError(
                f"checkpoint: it holds {_brief(there, here)}, but this run's model is {_brief(here, there)}"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the random states of the checkpoint that the run resumes from: nothing may draw before this step.

        Of several processes the first goes on with its stream; the others draw from one of their own at each step,
        which the seed, the step and their number decide, so that no two draw the same noise, resumed or not.
        """
        if self.global_rank > 0:
            self._rng = None
            numbers = [self._seed, self.global_rank, self.global_step, batch_idx]
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self._rng.get("cuda", []))
            self._rng = None
            # after some interruptions Lightning's own count for the logs is off by one
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def description(self) -> dict[str, Any] | None:
        """The model's class and arguments; None where these cannot be written down."""
        if not registered(self.model) or self.model.arguments is None:
            return None
        with suppress(TypeError):  # a merge that is a function
            json.dumps(self.model.arguments)
            return describe(self.model)
        return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means where an epoch ends, or training does: callbacks find them at the epoch's end."""
        trainer = self.trainer
        if trainer.is_last_batch or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step:
            self.guard.look()
            self.means.log(self, "train")
            skipped = float(self.guard.skipped)
            self.log("train/skipped_updates", skipped, on_step=False, on_epoch=True, reduce_fx="max")

    def on_validation_epoch_start(self) -> None:
        """Forget a validation that was interrupted."""
        self.means.forget("val")

    def on_test_epoch_start(self) -> None:
        """Forget a test that was interrupted."""
        self.means.forget("test")

    def on_validation_epoch_end(self) -> None:
        """Log the means of the validation."""
        self.means.log(self, "val")

    def on_test_epoch_end(self) -> None:
        """Log the means of the test."""
        self.means.log(self, "test")


def native_bf16(device: str) -> bool:
    """Whether the hardware computes in bf16 natively: Ampere and later, AMX or AVX512-BF16 on CPUs."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _brief(description: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """The model's name with the arguments in which it differs from the other."""
    if description is None:
        return "no model of this package"
    others = other["arguments"] if other and other["model"] == description["model"] else {}
    shown = {k: v for k, v in description["arguments"].items() if others.get(k, v) != v or not others}
    return f"{description['model']}({', '.join(f'{k}={v}' for k, v in shown.items())})"
