"""Measures that no library has: the importance-weighted bound for many k at once, and active units."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resvae.probability import running_bound

THRESHOLD = 0.01


@dataclass(frozen=True)
class Bound:
    """The bound log 1/k sum_i w_i on log p(x) (Burda 2016, eq. 8), averaged over the images."""

    k: int
    nats: float
    bits_per_dim: float | None  # None where the likelihood is no probability of the 256 values


def powers_of_ten(num_samples: int) -> tuple[int, ...]:
    """1, 10, 100, ... as far as ``num_samples`` goes, and ``num_samples`` itself."""
    powers = [10**i for i in range(len(str(num_samples)))]
    return tuple(dict.fromkeys([*powers, num_samples]))


def bound_curve(log_weights: Iterable[Tensor], ks: Sequence[int]) -> Tensor:
    """The bound of each image after the first k log-weights, for each k: ``[len(ks), B]``, float64.

    The curve is nested: a larger k goes on from the samples of a smaller one.

    Args:
        log_weights: each ``[B]``; at least ``max(ks)`` of them.
        ks: ascending, each at least 1.
    """
    return torch.stack([bound for k, bound in enumerate(running_bound(log_weights), 1) if k in ks])


class ActiveUnits:
    """Counts latents that the encoder uses: Var_x E_q[z] > .01 (Burda 2016, section 5.2), in one pass over the data.

    Of latents whose prior depends on others, E_q[z] is taken from the prior's mean: what moves with the latents above
    says nothing of its own.
    """

    def __init__(self) -> None:
        self._num = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, shift: Tensor) -> None:
        """Add posterior means less prior means ``[B, ...]``."""
        values = shift.detach().flatten(1).double().cpu()
        # Welford's update in batches: sums of squares alone would cancel for means far from 0.
        num = self._num + len(values)
        mean = values.mean(0)
        delta = mean - self._mean
        self._squares = self._squares + (values - mean).square().sum(0) + delta**2 * self._num * len(values) / num
        self._mean = self._mean + delta * len(values) / num
        self._num = num

    @property
    def latents(self) -> int:
        """Number of latents an image, D."""
        return self._mean.numel()

    def variance(self) -> Tensor:
        """Var_x E_q[z] of each latent, ``[D]``."""
        return self._squares / (self._num - 1)

    def count(self) -> int | None:
        """How many of the D latents vary by more than .01; None of fewer than two images."""
        return None if self._num < 2 else int((self.variance() > THRESHOLD).sum())
