"""``resvae study levels``: what each level of latents says about an image, and what it decides in a new one."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from resvae.devices import double
from resvae.errors import ResvaeError, at_least
from resvae.evaluation.grids import save_grid
from resvae.files import write_figure
from resvae.models import HierarchicalVAE
from resvae.models.levels import redrawn
from resvae.studies.record import Record, Row, subject

NOTES = (
    "levels: how many, the coarsest first, see the image; the others draw from their prior, which costs no nats. "
    "bits/dim: the bound of such a posterior, one sample per image. KL, nats: of the last level that sees it, in that "
    "bound. PSNR: of the reconstruction from the means of those levels and of the prior below them. Eval mode, seed {}."
)
BATCH = 100


def levels(
    model: str,
    num: int = 500,
    shown: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    out: str = "runs/study_levels",
    **images: Any,
) -> None:
    """Measure a hierarchical model by the number of levels that see the image; draw what each level adds and decides.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num: how many images, the first.
        shown: images per row of the pictures.
        temperature: factor on the priors' standard deviations in the picture of what each level decides.
        seed: of all noise.
        out: the study's folder.
    """
    at_least(1, shown=shown)
    at_least(0, temperature=temperature)
    found = subject(model, num, **images)
    vae = found.model
    if not isinstance(vae, HierarchicalVAE):
        raise ResvaeError(f"model: {model} is a {type(vae).__name__}; only a HierarchicalVAE has levels")
    record = Record(out, found.settings | {"seed": seed, "shown": shown, "temperature": temperature})
    rows = [record.measure(str(k), lambda k=k: row(vae, found.x, k, seed)) for k in range(vae.num_levels + 1)]
    print(record.write("levels", rows, f"{NOTES.format(seed)} {found.told}"))
    write_plot(rows, record.folder / "levels.png")
    x = found.x[:shown]
    seen = [vae.reconstruct(x, k) for k in range(vae.num_levels + 1)]
    save_grid(torch.cat([x / 255, *seen]).cpu(), record.folder / "levels_see.png", len(x))
    decided = [redrawn(vae, level, shown, temperature, seed) for level in vae.stochastic]
    save_grid(torch.cat(decided).cpu(), record.folder / "levels_decide.png", shown)
    print("\n".join(f"wrote {path}" for path in sorted(record.folder.glob("levels*"))))


@torch.no_grad()
def row(vae: HierarchicalVAE, x: Tensor, num_levels: int, seed: int = 0) -> Row:
    """The figures of images ``x [N, C, H, W]``, uint8, where the ``num_levels`` coarsest levels see them."""

    def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
        return (prior if posterior is None or level >= num_levels else posterior).sample()

    torch.manual_seed(seed)
    elbo, kl, psnr = list[Tensor](), list[Tensor](), list[Tensor]()
    last = [level for level in vae.stochastic if level < num_levels]
    for images in x.split(BATCH):
        seen = vae.encoded(images)
        p, visits = vae.descend(choose, seen, fit=False)
        each = [visit.posterior.kl().flatten(1).sum(1) for visit in visits[: len(last)] if visit.posterior]
        total = torch.stack(each).sum(0) if each else torch.zeros(len(images), device=x.device)
        elbo.append(p.log_prob(seen.x) - total)
        own = bool(each) and last[-1] == num_levels - 1  # a level without latents says nothing
        kl.append(each[-1] if own else torch.zeros_like(total))
        error = (vae.reconstruct(seen, num_levels) - seen.x).square().flatten(1).mean(1)
        psnr.append(-10 * error.clamp(min=1e-10).log10())
    nats = -double(torch.cat(elbo)).mean().item()
    bits = nats / (math.prod(vae.image_shape) * math.log(2))
    size = "x".join(map(str, vae.latent_shapes[num_levels - 1][1:])) if num_levels else ""
    figure = {"bits/dim": bits} if vae.likelihood.discrete else {"loss": nats}
    mean = {"KL, nats": torch.cat(kl).mean().item(), "PSNR, dB": torch.cat(psnr).mean().item()}
    return {"levels": num_levels, "the last one at": size, **figure, **mean}


def write_plot(rows: list[Row], path: Path) -> None:
    """The bound and the PSNR against the number of levels that see the image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    name = "bits/dim" if "bits/dim" in rows[0] else "loss"
    for i, (part, where) in enumerate(((name, axes), ("PSNR, dB", axes.twinx()))):
        points = [[float(row[column] or 0) for row in rows] for column in ("levels", part)]
        where.plot(*points, "o-", color=f"C{i}")
        where.set_ylabel(part, color=f"C{i}")
    axes.set_xlabel("levels that see the image, the coarsest first")
    write_figure(path, figure)
