"""One report on one model: the bound, its parts, and how well it reconstructs, with the protocol that gave them."""

import json
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from resvae.errors import ResvaeError, at_least
from resvae.evaluation.distances import Distances
from resvae.evaluation.metrics import ActiveUnits, Bound, bound_curve, powers_of_ten
from resvae.evaluation.neighbours import Neighbours
from resvae.evaluation.probe import LIMIT, Probe
from resvae.isolation import isolated
from resvae.models import ImageVAE
from resvae.models.images import to_unit
from resvae.probability import ElboTerms
from resvae.provenance import origin

SSIM_SMALLEST = 6  # pixels: the window of 11 is mirrored by 5 at the edges


@dataclass(frozen=True)
class Report:
    """What was measured, and how. Log-probabilities are nats an image, averaged over the images."""

    model: str
    arguments: dict[str, Any] | None
    source: str | None  # of the weights: a run, a file or a name
    parameters: int
    data: str | None
    split: str | None
    images: int
    iw_images: int  # the first so many, of the importance-weighted bounds
    seed: int
    num_samples: int  # k of the importance-weighted bound
    elbo: float
    log_likelihood: float
    kl: float
    kl_levels: tuple[float, ...]
    importance_weighted: float  # the bound with k samples
    importance_curve: tuple[Bound, ...]  # with 1, 10, 100, ... k of the same samples
    bits_per_dim: float | None  # of the ELBO; None where the likelihood is no probability of the 256 values
    bits_per_dim_importance_weighted: float | None
    loss_over_floor: float | None  # -elbo over the entropy of real-valued targets (Bernoulli)
    active_units: int | None  # latents whose posterior mean, less the prior's, varies by more than .01 (Burda 2016)
    latents: int
    psnr: float  # decibels, of reconstructions
    ssim: float | None  # None for images of under 6 pixels
    seconds: float  # of everything in the report
    hardware: str
    torch: str
    resvae: str
    commit: str | None  # of the checkout that the package lies in
    distances: Distances | None = None
    probe: Probe | None = None
    neighbours: tuple[Neighbours, ...] = ()

    def json(self) -> str:
        """All fields, indented."""
        return json.dumps(asdict(self), indent=2)

    def title(self) -> str:
        """The model and the images in a line."""
        images = " ".join(part for part in (f"{self.images:,}", self.data, self.split, "images") if part)
        return f"{self.model}, {self.parameters:,} parameters, {images}, seed {self.seed}"

    def rows(self) -> list[tuple[str, str]]:
        """What was measured, and the figure, as a person reads them."""
        part = f", first {self.iw_images:,} images" if self.iw_images < self.images else ""
        curve = self.importance_curve
        rows: list[tuple[str, Any, str]] = [  # what, figure, format
            ("ELBO, nats", self.elbo, ".2f"),
            ("log-likelihood, nats", self.log_likelihood, ".2f"),
            ("KL, nats", self.kl, ".2f"),
            *((f"IW-{bound.k} bound, nats{part}", bound.nats, ".2f") for bound in curve),
            ("bits/dim (ELBO)", self.bits_per_dim, ".4f"),
            *((f"bits/dim (IW-{bound.k}){part}", bound.bits_per_dim, ".4f") for bound in curve),
            ("nats over the floor", self.loss_over_floor, ".2f"),
            ("active units", None if self.active_units is None else f"{self.active_units} of {self.latents}", ""),
            ("PSNR, dB", self.psnr, ".2f"),
            ("SSIM", self.ssim, ".4f"),
        ]
        if (d := self.distances) is not None:
            deviation = "" if d.kid_deviation is None else f" ± {d.kid_deviation:.2g}"
            rows.append((f"FID (features: {d.features})", d.fid, ".2f"))
            rows.append((f"KID (features: {d.features})", f"{d.kid:.4g}{deviation}", ""))
        for score in self.probe.scores if self.probe else ():
            name = f"linear probe, {score.representation} ({score.dimensions:,})"
            rows.append((name, f"{100 * score.accuracy:.1f} %", ""))
        for n in self.neighbours:
            rows.append((f"nearest training image of a sample, median L2 ({n.space})", n.samples_median, ".4g"))
            rows.append((f"nearest training image of a test image ({n.space})", n.test_median, ".4g"))
        return [(name, f"{figure:{form}}") for name, figure, form in rows if figure is not None]

    def table(self) -> str:
        """A Markdown table, a figure a row."""
        rows = [f"| {name} | {figure} |" for name, figure in self.rows()]
        return "\n".join([f"| {self.title()} | |", "|-|-|", *rows])

    def protocol(self) -> str:
        """How the figures were obtained: a Markdown list."""
        lines = [f"weights: {self.source or 'given in memory'}"]
        lines += [f"{self.model}: " + ", ".join(f"{name}={value}" for name, value in (self.arguments or {}).items())]
        ks = ", ".join(str(bound.k) for bound in self.importance_curve)
        lines += [f"importance-weighted bounds: k = {ks}, nested, on the first {self.iw_images:,} images"]
        if (d := self.distances) is not None:
            lines += [
                f"FID, KID: features: {d.features} ({d.num_features}), {d.real:,} real and {d.generated:,} generated "
                f"images ({d.pixels}); KID over 100 subsets of {d.kid_subset:,}"
            ]
        if (p := self.probe) is not None:
            lines += [
                f"linear probe: logistic regression on standardised features, {p.classes} classes, trained on "
                f"{p.train_images:,} training images, C chosen on a fifth of them, tested on {p.test_images:,} images; "
                f"in brackets the dimensions (over {LIMIT:,}: projected at random to so many)"
            ]
        lines += [
            f"nearest neighbours in {n.space}: {n.samples:,} samples and the first {n.test_images:,} images against "
            f"{n.train_images:,} training images"
            for n in self.neighbours
        ]
        commit = f" at {self.commit}" if self.commit else ""
        lines += [f"{self.hardware}, torch {self.torch}, resvae {self.resvae}{commit}, {self.seconds:.0f} s"]
        return "\n".join(f"- {line}" for line in lines)


def evaluate(
    vae: ImageVAE,
    batches: Iterable[Tensor],
    num_samples: int = 1,
    seed: int = 0,
    iw_images: int | None = None,
    *,
    source: str | None = None,
    data: str | None = None,
    split: str | None = None,
) -> Report:
    """Measure a model on images.

    Args:
        vae: the model; it is put into eval mode, and back.
        batches: images ``[B, C, H, W]``, uint8 or float32 in [0, 1].
        num_samples: the largest k of the importance-weighted bound; 1, 10, 100, ... under it are told too.
        seed: of the posterior noise; the caller's random stream is left alone.
        iw_images: how many of them the importance-weighted bound is taken of; all unless told.
        source, data, split: for the record.

    Raises:
        ResvaeError: no images, a k or an ``iw_images`` under 1.
    """
    at_least(1, num_samples=num_samples, iw_images=iw_images)
    start = time.perf_counter()
    active, ks = ActiveUnits(), powers_of_ten(num_samples)
    terms: list[ElboTerms] = []
    bounds: list[Tensor] = []
    left = sys.maxsize if iw_images is None else iw_images
    with isolated(vae, seed) as device:
        psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3)).to(device)
        ssim: Any = StructuralSimilarityIndexMeasure(data_range=1.0).to(device)  # a pair only where contrast is wanted
        similar = min(vae.image_shape[1:]) >= SSIM_SMALLEST
        for batch in batches:
            x = to_unit(batch.to(device), vae.image_shape)
            terms.append(vae.elbo(x))
            if left > 0:
                bounds.append(bound_curve(vae.log_weights(x[:left], num_samples), ks))
                left -= len(x)
            reconstruction = vae.reconstruct(x)
            psnr.update(reconstruction, x)
            if similar:
                ssim.update(reconstruction, x)
            active.update(vae.shift(x))
    if not terms:
        raise ResvaeError("images: there are none to evaluate on")

    def mean(values: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(values)).double().mean(0)

    elbo, kl = mean(t.elbo for t in terms).item(), mean(t.kl for t in terms)
    floors = [t.floor for t in terms if t.floor is not None]
    bound = torch.cat(bounds, 1)
    per_dim = terms[0].num_dims * math.log(2)
    discrete = terms[0].discrete
    curve = [Bound(k, b, -b / per_dim if discrete else None) for k, b in zip(ks, bound.mean(1).tolist(), strict=True)]
    return Report(
        model=type(vae).__name__,
        arguments=vae.arguments,
        source=source,
        parameters=sum(p.numel() for p in vae.parameters()),
        data=data,
        split=split,
        images=sum(len(t.kl) for t in terms),
        iw_images=bound.shape[1],
        seed=seed,
        num_samples=num_samples,
        elbo=elbo,
        log_likelihood=mean(t.log_likelihood for t in terms).item(),
        kl=kl.sum().item(),
        kl_levels=tuple(kl.tolist()),
        importance_weighted=curve[-1].nats,
        importance_curve=tuple(curve),
        bits_per_dim=-elbo / per_dim if discrete else None,
        bits_per_dim_importance_weighted=curve[-1].bits_per_dim,
        loss_over_floor=-elbo - mean(floors).item() if floors else None,
        active_units=active.count(),
        latents=active.latents,
        psnr=psnr.compute().item(),
        ssim=ssim.compute().item() if similar else None,
        seconds=time.perf_counter() - start,
        **origin(device),
    )
