"""One report on one model: the bound, its parts, and how well it reconstructs, with the protocol that gave them."""

import json
import math
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from resvae.errors import ResvaeError
from resvae.evaluation.metrics import ActiveUnits
from resvae.models import ImageVAE


@dataclass(frozen=True)
class Report:
    """What was measured, and how. Log-probabilities are nats an image, averaged over the images."""

    model: str
    parameters: int
    images: int
    seed: int
    num_samples: int  # k of the importance-weighted bound
    elbo: float
    log_likelihood: float
    kl: float
    kl_levels: tuple[float, ...]
    importance_weighted: float  # the bound with k samples
    bits_per_dim: float | None  # of the ELBO; None where the likelihood is no probability of the 256 values
    bits_per_dim_importance_weighted: float | None
    loss_over_floor: float | None  # -elbo over the entropy of real-valued targets (Bernoulli)
    active_units: int  # latents whose posterior mean varies by more than .01 over the images (Burda 2016)
    latents: int
    psnr: float  # decibels, of reconstructions
    ssim: float
    seconds: float
    hardware: str
    torch: str

    def json(self) -> str:
        """All fields, indented."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """A Markdown table, a figure a row."""
        k = self.num_samples
        rows: list[tuple[str, str]] = [
            ("ELBO, nats", f"{self.elbo:.2f}"),
            ("log-likelihood, nats", f"{self.log_likelihood:.2f}"),
            ("KL, nats", f"{self.kl:.2f}"),
            (f"IW-{k} bound, nats", f"{self.importance_weighted:.2f}"),
        ]
        if self.bits_per_dim is not None and self.bits_per_dim_importance_weighted is not None:
            rows.append(("bits/dim (ELBO)", f"{self.bits_per_dim:.4f}"))
            rows.append((f"bits/dim (IW-{k})", f"{self.bits_per_dim_importance_weighted:.4f}"))
        if self.loss_over_floor is not None:
            rows.append(("nats over the floor", f"{self.loss_over_floor:.2f}"))
        rows += [
            ("active units", f"{self.active_units} of {self.latents}"),
            ("PSNR, dB", f"{self.psnr:.2f}"),
            ("SSIM", f"{self.ssim:.4f}"),
        ]
        head = f"{self.model}, {self.parameters:,} parameters, {self.images:,} images, seed {self.seed}"
        return "\n".join([f"| {head} | |", "|-|-|", *(f"| {name} | {value} |" for name, value in rows)])


@torch.no_grad()
def evaluate(vae: ImageVAE, batches: Iterable[Tensor], num_samples: int = 1, seed: int = 0) -> Report:
    """Measure a model on images.

    Args:
        vae: the model; it is put into eval mode, and back.
        batches: images ``[B, C, H, W]``, uint8 or float32 in [0, 1].
        num_samples: k of the importance-weighted bound; memory does not grow with it.
        seed: of the posterior noise; the caller's random stream is left alone.

    Raises:
        ResvaeError: no images, or a k under 1.
    """
    if num_samples < 1:
        raise ResvaeError(f"num_samples: {num_samples} is not allowed; at least 1")
    start = time.perf_counter()
    device = next(vae.parameters()).device
    training = vae.training
    vae.eval()
    psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3)).to(device)
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0).to(device)
    active = ActiveUnits()
    elbos, likelihoods, kls, bounds, floors = [], [], [], [], []
    discrete = False
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for batch in batches:
                x = batch.to(device)
                terms = vae.elbo(x)
                elbos.append(terms.elbo)
                likelihoods.append(terms.log_likelihood)
                kls.append(terms.kl)
                bounds.append(vae.log_likelihood(x, num_samples))
                discrete = terms.discrete
                if terms.floor is not None:
                    floors.append(terms.floor)
                reconstruction = vae.reconstruct(x)
                unit = x.float() / (255 if x.dtype == torch.uint8 else 1)
                psnr.update(reconstruction, unit)
                ssim.update(reconstruction, unit)
                active.update(vae.posterior(x).mean)
    finally:
        vae.train(training)
    if not elbos:
        raise ResvaeError("images: there are none to evaluate on")
    elbo, bound = torch.cat(elbos).double().mean().item(), torch.cat(bounds).double().mean().item()
    kl = torch.cat(kls).double().mean(0)
    per_dim = math.prod(vae.image_shape) * math.log(2)
    similarity = ssim.compute()
    assert isinstance(similarity, Tensor)  # a pair only where the contrast is asked for too
    return Report(
        model=type(vae).__name__,
        parameters=sum(p.numel() for p in vae.parameters()),
        images=sum(map(len, elbos)),
        seed=seed,
        num_samples=num_samples,
        elbo=elbo,
        log_likelihood=torch.cat(likelihoods).double().mean().item(),
        kl=kl.sum().item(),
        kl_levels=tuple(kl.tolist()),
        importance_weighted=bound,
        bits_per_dim=-elbo / per_dim if discrete else None,
        bits_per_dim_importance_weighted=-bound / per_dim if discrete else None,
        loss_over_floor=-elbo - torch.cat(floors).double().mean().item() if floors else None,
        active_units=active.count(),
        latents=active.latents,
        psnr=psnr.compute().item(),
        ssim=similarity.item(),
        seconds=time.perf_counter() - start,
        hardware=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        torch=torch.__version__,
    )


def _processor() -> str:
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
