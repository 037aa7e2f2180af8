"""The evidence lower bound: its terms, how training weighs them, and its importance-weighted refinement."""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resvae.devices import double
from resvae.errors import ResvaeError, whole_from


@dataclass(frozen=True)
class ElboTerms:
    """The terms of log p(x) >= log p(x|z) - KL(q(z|x) || p(z)) for each image, in nats."""

    log_likelihood: Tensor  # log p(x|z), [B]
    kl: Tensor  # one column per level of latents, level 0 the coarsest, [B, L]
    num_dims: int  # C H W
    discrete: bool  # whether log p(x|z) is the log-probability of one of the 256 values per dimension
    floor: Tensor | None = None  # the least that -log p(x|z) can be, [B], where there is such a number

    @property
    def elbo(self) -> Tensor:
        """The bound, nats per image, ``[B]``; higher is better."""
        return self.log_likelihood - self.kl.sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """-elbo / (C H W ln 2), ``[B]``. Raises ``ResvaeError`` for a density or a cross-entropy of real values."""
        if not self.discrete:
            raise ResvaeError(
                "likelihood: bits per dimension need a probability of the 256 values;"
                " discretized_mixture and discretized_logistic are"
            )
        return -self.elbo / (self.num_dims * math.log(2))

    def figures(self) -> dict[str, Tensor]:
        """Figures of each image by their names in the log, ``[B]``: those that there are."""
        found = {"loss": -self.elbo, "elbo": self.elbo, "log_likelihood": self.log_likelihood, "kl": self.kl.sum(1)}
        if self.discrete:
            found["bits_per_dim"] = self.bits_per_dim
        if self.floor is not None:
            found["loss_over_floor"] = -self.elbo - self.floor
        return found


@dataclass(frozen=True)
class KlSchedule:
    """The weight of the KL, from ``start`` to ``end`` in a straight line over ``warmup_steps`` updates."""

    start: float = 0.0
    end: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        whole_from(0, **{"kl.warmup_steps": self.warmup_steps})
        for name, value in (("start", self.start), ("end", self.end)):
            if not 0 <= value < math.inf:
                raise ResvaeError(f"kl.{name}: {value} is not allowed; 0 or more")

    def __call__(self, step: int) -> float:
        """The weight at update ``step``, counted from 0."""
        if step >= self.warmup_steps:
            return self.end
        return self.start + (self.end - self.start) * step / self.warmup_steps


def weighted_elbo(terms: ElboTerms, kl_weight: float | Tensor = 1.0, free_bits: float = 0.0) -> Tensor:
    """What training maximises, nats per image, ``[B]``; no bound unless ``kl_weight`` is 1 and ``free_bits`` 0.

    ``free_bits``: a level whose KL, averaged over the batch, is under this many nats is charged exactly that and gets
    no gradient (Kingma et al. 2016, appendix C.8).
    """
    kl = terms.kl
    if free_bits:
        kl = torch.where(kl.mean(0) < free_bits, free_bits, kl)
    return terms.log_likelihood - kl_weight * kl.sum(1)


def running_bound(log_weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """log 1/k sum_i w_i (Burda et al. 2016, eq. 8) for k = 1, 2, 3, ... of log-weights ``[B]``: each ``[B]``, float64.

    One log-weight is kept at a time. In float32 the thousandth sample of a bound of -30,000 nats would be lost.
    """
    sums = itertools.accumulate((double(weight) for weight in log_weights), torch.logaddexp)
    return (total - math.log(k) for k, total in enumerate(sums, 1))


def importance_bound(log_weights: Iterable[Tensor]) -> Tensor:
    """The last of ``running_bound``: that of all the log-weights, ``[B]``, float64."""
    last = deque(running_bound(log_weights), 1)
    if not last:
        raise ResvaeError("log_weights: none given; at least 1 is needed")
    return last.pop()
