"""The ELBO, its terms, the importance-weighted bound for many k at once, and active units."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resvae.devices import double
from resvae.evaluation.measure import Asked, Found, Measure
from resvae.models import Encoded
from resvae.probability import ElboTerms, running_bound


@dataclass(frozen=True)
class Bound:
    """The bound log 1/k sum_i w_i on log p(x) (Burda 2016, eq. 8), averaged over the images."""

    k: int
    nats: float
    bits_per_dim: float | None  # None where the likelihood is no probability of the 256 values


def powers_of_ten(num_samples: int) -> tuple[int, ...]:
    """1, 10, 100, ... below ``num_samples``, and ``num_samples`` itself."""
    return tuple(sorted({10**i for i in range(len(str(num_samples)))} | {num_samples}))


def bound_curve(log_weights: Iterable[Tensor], ks: Sequence[int]) -> Tensor:
    """The bound of each image with the first k of the log-weights ``[B]``, for each k: ``[len(ks), B]``, float64."""
    return torch.stack([bound for k, bound in enumerate(running_bound(log_weights), 1) if k in ks])


class ActiveUnits:
    """Counts latents that the encoder uses: Var_x E_q[z] > .01 (Burda 2016, section 5.2), in one pass over the data.

    Where a latent's prior depends on other latents, E_q[z] is measured from the prior's mean: what moves with the
    latents above says nothing of its own.
    """

    def __init__(self) -> None:
        self._num = self.latents = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, shift: Tensor) -> None:
        """Add posterior means less prior means ``[B, ...]``."""
        values = shift.detach().flatten(1).cpu().double()
        # Welford's update in batches: sums of squares alone would cancel for means far from 0.
        num = self._num + len(values)
        mean = values.mean(0)
        delta = mean - self._mean
        self._squares = self._squares + (values - mean).square().sum(0) + delta**2 * self._num * len(values) / num
        self._mean = self._mean + delta * len(values) / num
        self._num = num
        self.latents = mean.numel()  # per image, D

    def variance(self) -> Tensor:
        """Var_x E_q[z] of each latent, ``[D]``."""
        return self._squares / (self._num - 1)

    def count(self) -> int | None:
        """How many of the D latents vary by more than .01; None for fewer than two images."""
        return None if self._num < 2 else int((self.variance() > 0.01).sum())


class Bounds(Measure):
    """Log-probabilities in nats per image, averaged over the images, and active units."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._ks = powers_of_ten(asked.num_samples)
        self._left = sys.maxsize if asked.iw_images is None else asked.iw_images
        self._terms: list[ElboTerms] = []
        self._bounds: list[Tensor] = []
        self._active = ActiveUnits()

    def update(self, x: Encoded, y: Tensor | None) -> None:
        """Take a batch's terms of the ELBO, its importance-weighted bounds and its shifts."""
        model = self.asked.model
        self._terms.append(model.elbo(x))
        if self._left > 0:
            self._bounds.append(bound_curve(model.log_weights(x.first(self._left), self._ks[-1]), self._ks))
            self._left -= len(x)
        self._active.update(model.shift(x))

    def finish(self) -> Found:
        """The means over all images, and the number of active units."""
        terms, bound = self._terms, torch.cat(self._bounds, 1)
        elbo, kl = _mean(t.elbo for t in terms).item(), _mean(t.kl for t in terms)
        log_likelihood = _mean(t.log_likelihood for t in terms).item()
        floors = [t.floor for t in terms if t.floor is not None]
        per_dim, discrete = terms[0].num_dims * math.log(2), terms[0].discrete
        means = zip(self._ks, bound.mean(1).tolist(), strict=True)
        curve = tuple(Bound(k, nats, -nats / per_dim if discrete else None) for k, nats in means)
        figures = {
            "iw_images": bound.shape[1],  # the first ones
            "num_samples": self._ks[-1],  # k of the importance-weighted bound
            "elbo": elbo,
            "log_likelihood": log_likelihood,
            "kl": kl.sum().item(),
            "kl_levels": tuple(kl.tolist()),
            "importance_weighted": curve[-1].nats,  # with k samples
            "importance_curve": curve,  # with 1, 10, 100, ... k of the same samples
            "bits_per_dim": -elbo / per_dim if discrete else None,  # of the ELBO
            "bits_per_dim_importance_weighted": curve[-1].bits_per_dim,
            "loss_over_floor": -elbo - _mean(floors).item() if floors else None,  # the targets' entropy (Bernoulli)
            "active_units": self._active.count(),
            "latents": self._active.latents,
        }
        first, whole = f"first {bound.shape[1]:,} images", bound.shape[1] == sum(len(t.kl) for t in terms)
        part = "" if whole else f", {first}"
        units = None if figures["active_units"] is None else f"{figures['active_units']} of {figures['latents']}"
        rows: list[tuple[str, Any, str]] = [  # what, figure, format
            ("ELBO, nats", elbo, ".2f"),
            ("log-likelihood, nats", log_likelihood, ".2f"),
            ("KL, nats", figures["kl"], ".2f"),
            *((f"IW-{bound.k} bound, nats{part}", bound.nats, ".2f") for bound in curve),
            ("bits/dim (ELBO)", figures["bits_per_dim"], ".4f"),
            *((f"bits/dim (IW-{bound.k}){part}", bound.bits_per_dim, ".4f") for bound in curve),
            ("nats over the floor", figures["loss_over_floor"], ".2f"),
            ("active units", units, ""),
        ]
        ks = ", ".join(map(str, self._ks))
        return Found(
            figures,
            [(name, f"{figure:{form}}") for name, figure, form in rows if figure is not None],
            ("ELBO", "bits/dim (ELBO)", f"bits/dim (IW-{self._ks[-1]})"),
            (f"importance-weighted bounds: k = {ks}, nested, on the {first}",),
            {
                f"KL per level, {figures['kl']:.1f} nats in all": partial(_draw_levels, figures["kl_levels"]),
                f"bound on log p(x), {first}": partial(_draw_curve, curve, figures["bits_per_dim"], elbo, whole),
            },
        )


def _draw_levels(kl: Sequence[float], axes: Any) -> None:
    axes.bar(range(len(kl)), kl)
    axes.set(xlabel="level, 0 the coarsest", ylabel="KL, nats")
    axes.set_xticks(range(0, len(kl), -(-len(kl) // 16)))


def _draw_curve(curve: Sequence[Bound], bits_per_dim: float | None, elbo: float, whole: bool, axes: Any) -> None:
    unit, values = "nats", [bound.nats for bound in curve]
    if bits_per_dim is not None:
        unit, values, elbo = "bits/dim", [bound.bits_per_dim for bound in curve], bits_per_dim
    axes.plot([bound.k for bound in curve], values, marker="o", label="IW-k bound")
    if whole:  # of other images, the ELBO does not compare
        axes.axhline(elbo, color="grey", linestyle="--", label="ELBO")
    axes.set(xscale="log", xlabel="k", ylabel=unit)
    axes.legend()
    axes.grid(alpha=0.3)


def _mean(values: Iterable[Tensor]) -> Tensor:
    return double(torch.cat(list(values))).mean(0)
