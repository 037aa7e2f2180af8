"""``LitVAE``: optimises and logs a VAE; the model itself needs no Lightning."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.isolation import isolated
from resvae.models import ImageVAE
from resvae.probability import ElboTerms, KlSchedule, weighted_elbo
from resvae.training.base import Compile, LitModel, OptimizerFactory, Precision, adamw
from resvae.training.schedule import Schedule

EVALUATION_SEED = 0  # of the posterior noise in validation and test: the same every time


class LitVAE(LitModel):
    """Trains any ``ImageVAE``; ``loss = -elbo.mean()`` plus the model's own penalty, in nats per image.

    Args:
        vae: the model.
        optimizer: a function from parameters to an optimiser, such as a class of torch.optim.
        schedule: the learning rate over time.
        kl: the weight of the KL over the first updates; validation always uses 1.
        free_bits: nats per level that cost nothing in training (Kingma 2016, appendix C.8).
        clip_norm: the gradient's largest norm.
        ema_decay: of the running average of the weights that is validated, saved and kept; 0 for none.
        precision: ``bf16`` or ``fp32``; ``auto`` is bf16 where the hardware has it natively. Likelihood and KL are
            always float32.
        compile: let ``torch.compile`` build the training graph (needs a C++ compiler on a CPU). ``auto``: in ``resvae
            fit``, if the run is long enough to pay that back. ``reduce-overhead``: with CUDA graphs too, for small
            models, whose GPU waits for the launches of its kernels.
        memory_budget: of the activations of a training step, such as ``4GiB``. Where they need more, residual blocks
            are computed again for the gradient, which takes at most a third more time. Default: keep everything.

    Logs ``elbo``, ``log_likelihood``, ``kl`` (total and per level), ``loss``, and ``bits_per_dim`` where the likelihood
    is a probability of the 256 values, under ``train/``, ``val/`` and ``test/``; where there is a floor,
    ``loss_over_floor``; each epoch ``train/grad_norm``, ``train/skipped_updates``, ``train/images_per_second``.
    """

    field = "vae"
    draws = True
    defaults: ClassVar[dict[str, Any]] = {
        "model.vae": {"class_path": "resvae.VAE"},
        "early_stopping.monitor": "val/loss",
        "early_stopping.min_delta": 0.1,
    }

    def __init__(
        self,
        vae: ImageVAE,
        optimizer: OptimizerFactory = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        kl: KlSchedule = KlSchedule(),  # noqa: B008  frozen
        free_bits: float = 0.0,
        clip_norm: float = 200.0,
        ema_decay: float = 0.999,
        precision: Precision = "auto",
        compile: Compile = "auto",
        memory_budget: str | None = None,
    ):
        if not isinstance(vae, ImageVAE):
            raise ResvaeError(f"vae: {type(vae).__name__} is not allowed; an ImageVAE, such as VAE()")
        super().__init__(vae.image_shape, optimizer, schedule, ema_decay, precision, compile, clip_norm, memory_budget)
        if free_bits < 0:
            raise ResvaeError(f"free_bits: {free_bits} is not allowed; 0 or more")
        self.vae: ImageVAE = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.kl = kl
        self.free_bits = free_bits

    @property
    def objective(self) -> Callable[[Tensor], ElboTerms]:
        """The ELBO's terms of a batch of images."""
        return self.vae.elbo

    def monitored(self) -> dict[str, str]:
        """What early stopping may watch; bits/dim where the likelihood has them."""
        modes = {"val/loss": "min", "val/elbo": "max", "val/log_likelihood": "max", "val/kl": "min"}
        return modes | ({"val/bits_per_dim": "min"} if self.vae.likelihood.discrete else {})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar, nats per image."""
        terms = self.compute("train", batch)
        kl_weight = self.kl(self.global_step)
        penalty = self.vae.penalty()
        loss = -weighted_elbo(terms, kl_weight, self.free_bits).mean() + penalty
        self._log("train", terms, penalty)
        if self.kl.warmup_steps:
            self.means.add("train", {"kl_weight": torch.tensor(kl_weight)}, len(terms.elbo))
        return loss

    def evaluate(self, split: str, batch: Any, batch_idx: int) -> None:
        """Log the true objective (KL weight 1, no free bits), with the same noise at every validation."""
        with isolated(self.vae, EVALUATION_SEED + batch_idx):
            self._log(split, self.compute(split, batch), self.vae.penalty())

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
        self.means.add(split, values, len(terms.elbo))
