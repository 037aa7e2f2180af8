"""The importance-weighted bound for many k at once, from one stream of log-weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resvae.probability import running_bound


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
