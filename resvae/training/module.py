"""``LitVAE``: optimises and logs a model that trains, samples and scores without it."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from resvae.errors import ResvaeError
from resvae.models import ImageVAE
from resvae.probability import ElboTerms, KlSchedule, weighted_elbo
from resvae.storage import MODELS, describe
from resvae.training.callbacks import ExponentialAverage, Throughput
from resvae.training.guard import GradientGuard
from resvae.training.schedule import Schedule

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
EVALUATION_SEED = 0  # of the posterior noise in validation and test: the same every time


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The default optimiser: AdamW, rate 1e-3, weight decay .01, betas .9, .99."""
    return AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)


class LitVAE(pl.LightningModule):
    """Trains any ``ImageVAE``; ``loss = -elbo.mean()`` plus the model's own penalty, in nats an image.

    Args:
        vae: the model.
        optimizer: parameters -> optimiser, any of torch's.
        schedule: the learning rate over time.
        kl: the weight of the KL over the first updates; validation always uses 1.
        free_bits: nats a level that cost nothing in training (Kingma 2016, appendix C.8).
        clip_norm: the gradient's largest norm.
        ema_decay: of the running average of the weights that is validated, saved and kept; 0 for none.
        precision: ``bf16`` or ``fp32``; ``auto`` is bf16 where the hardware has it natively. Likelihood and KL are
            always float32.
        compile: let ``torch.compile`` build the training graph (needs a C++ compiler on a CPU).

    Logs ``elbo``, ``log_likelihood``, ``kl`` (and a level each), ``loss``, and ``bits_per_dim`` where the likelihood
    is a probability of the 256 values, under ``train/``, ``val/`` and ``test/``; where there is a floor,
    ``loss_over_floor``; each epoch ``train/grad_norm``, ``train/skipped_updates``, ``train/images_per_second``.
    """

    def __init__(
        self,
        vae: ImageVAE,
        optimizer: OptimizerFactory = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        kl: KlSchedule = KlSchedule(),  # noqa: B008  frozen
        free_bits: float = 0.0,
        clip_norm: float = 200.0,
        ema_decay: float = 0.999,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
        compile: bool = False,
    ):
        super().__init__()
        if not 0 <= ema_decay < 1:
            raise ResvaeError(f"ema_decay: {ema_decay} is not allowed; 0 (none) up to less than 1")
        if not clip_norm > 0:
            raise ResvaeError(f"clip_norm: {clip_norm} is not allowed; more than 0")
        if free_bits < 0:
            raise ResvaeError(f"free_bits: {free_bits} is not allowed; 0 or more")
        self.vae: ImageVAE = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = optimizer
        self.schedule = schedule
        self.kl = kl
        self.free_bits = free_bits
        self.clip_norm = clip_norm
        self.ema_decay = ema_decay
        self.precision = precision
        self.guard = GradientGuard()
        self._compile = compile
        self._elbo: Callable[[Tensor], ElboTerms] = vae.elbo
        self._rng: dict[str, Any] | None = None

    def monitored(self) -> list[str]:
        """What early stopping can watch: the names of the figures that validation logs an epoch."""
        names = ["loss", "elbo", "log_likelihood", "kl"]
        names += ["bits_per_dim"] if self.vae.likelihood.discrete else []
        return [f"val/{name}" for name in names]

    def configure_callbacks(self) -> list[Callback]:
        """The throughput's measure and, with ``ema_decay``, the running average of the weights."""
        return [Throughput(), *([ExponentialAverage(self.ema_decay)] if self.ema_decay else [])]

    def configure_optimizers(self) -> Any:
        """The optimiser with its schedule; a plateau watches ``val/loss`` an epoch."""
        optimizer = self.optimizer(self.vae.parameters())
        if self.schedule.kind == "plateau":
            s = self.schedule
            plateau = ReduceLROnPlateau(optimizer, factor=s.factor, patience=s.patience, min_lr=s.min_lr)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}
        factor = self.schedule.at(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Compile when asked: late, so that copies made before (the average's) copy no compiled graph."""
        self._elbo = torch.compile(self.vae.elbo) if self._compile else self.vae.elbo

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar, nats an image."""
        terms = self._terms(batch, self._elbo)
        kl_weight = self.kl(self.global_step)
        penalty = self.vae.penalty()
        loss = -weighted_elbo(terms, kl_weight, self.free_bits).mean() + penalty
        self._log("train", terms, penalty)
        if self.kl.warmup_steps:
            self.log("train/kl_weight", kl_weight, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The true objective (KL weight 1, no free bits), with the same noise at every validation."""
        self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As validation, on the test set, and in float32 throughout."""
        self._evaluate("test", batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, or take it away where the guard refuses it: an optimiser passes over such parameters."""
        parameters = [p for p in self.vae.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        value = norm.item()
        if self.guard.accepts(value):
            nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
            self.log("train/grad_norm", value, on_step=False, on_epoch=True, batch_size=1)
        else:
            for parameter in parameters:
                parameter.grad = None
        self.log("train/skipped_updates", float(self.guard.skipped), on_step=False, on_epoch=True, reduce_fx="max")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the model is, the guard's statistics and the random states."""
        if type(self.vae).__name__ in MODELS:
            checkpoint["resvae"] = describe(self.vae)
        checkpoint["guard"] = asdict(self.guard)
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state_all()
        checkpoint["rng"] = rng

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's checkpoint; take over the guard's statistics and the random states."""
        self.refuse_other(checkpoint)
        if "guard" in checkpoint:
            self.guard = GradientGuard(**checkpoint["guard"])
        self._rng = checkpoint.get("rng")

    def refuse_other(self, checkpoint: dict[str, Any]) -> None:
        """Raise ``ResvaeError`` where the checkpoint holds another model than this one."""
        here = describe(self.vae) if type(self.vae).__name__ in MODELS else None
        there = checkpoint.get("resvae")
        if here is not None and here != there:
            raise ResvaeError(
                f"checkpoint: it holds {_brief(there, here)}, but this run's model is {_brief(here, there)}"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """After a resume, draw on from where the checkpoint left: nothing before the first step may spend noise."""
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if torch.cuda.is_available() and "cuda" in self._rng:
                torch.cuda.set_rng_state_all(self._rng["cuda"])
            self._rng = None
            # Lightning's own count for the logs is off by one after some interruptions
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def _terms(self, batch: Any, elbo: Callable[[Tensor], ElboTerms], reduced: bool = True) -> ElboTerms:
        """The terms of a batch, in bf16 where ``precision`` wants it and ``reduced`` allows it."""
        x = batch[0] if isinstance(batch, list | tuple) else batch
        device = self.device.type
        bf16 = self.precision == "bf16" or (self.precision == "auto" and native_bf16(device))
        with torch.autocast(device, torch.bfloat16, enabled=bf16 and reduced):
            return elbo(x.contiguous(memory_format=torch.channels_last))

    def _evaluate(self, split: str, batch: Any, batch_idx: int) -> None:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(EVALUATION_SEED + batch_idx)
            terms = self._terms(batch, self.vae.elbo, reduced=split == "val")
            self._log(split, terms, self.vae.penalty())

    def _log(self, split: str, terms: ElboTerms, penalty: Tensor) -> None:
        elbo = terms.elbo.detach().mean()
        kl = terms.kl.detach().mean(0)
        loss = penalty.detach() - elbo
        values = {"loss": loss, "elbo": elbo, "log_likelihood": terms.log_likelihood.detach().mean(), "kl": kl.sum()}
        if len(kl) > 1:
            values |= {f"kl_level_{level:02d}": value for level, value in enumerate(kl)}
        if terms.discrete:
            values["bits_per_dim"] = terms.bits_per_dim.detach().mean()
        if terms.floor is not None:
            values["loss_over_floor"] = loss - terms.floor.mean()
        self.log_dict(
            {f"{split}/{name}": value for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(terms.elbo),
            sync_dist=split != "train",
        )


def native_bf16(device: str) -> bool:
    """Whether the hardware computes in bf16 natively: Ampere and later, AMX or AVX512-BF16 on CPUs."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def _brief(description: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """The model's name with the arguments in which it differs from the other."""
    if description is None:
        return "no model of this package"
    others = other["arguments"] if other and other["model"] == description["model"] else {}
    shown = {k: v for k, v in description["arguments"].items() if others.get(k, v) != v or not others}
    return f"{description['model']}({', '.join(f'{k}={v}' for k, v in shown.items())})"
