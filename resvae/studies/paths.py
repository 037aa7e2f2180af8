"""``resvae study paths``: how many paths of each length a network has, and which of them carry the gradient."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resvae.devices import double
from resvae.errors import ResvaeError, whole_from
from resvae.files import write_figure
from resvae.isolation import isolated
from resvae.models import HierarchicalVAE
from resvae.models.base import to_unit
from resvae.networks import ResidualBlock
from resvae.networks.units import Unit, replaced, summed
from resvae.progress import progress
from resvae.studies.record import Record, subject

BATCH = 16  # images that share their paths: the more paths, the less a few of them decide


def num_paths(num_units: int) -> list[int]:
    """How many of the 2^n paths go through k = 0 ... n branches: n over k (Veit 2016, section 5)."""
    return [math.comb(num_units, k) for k in range(num_units + 1)]


def every_path(units: Sequence[Unit], x: Tensor) -> Tensor:
    """What each of the 2^n paths through n units makes of ``x [B, ...]``: ``[2^n, B, ...]`` (Veit 2016, section 3).

    Where the units are linear, all paths add up to what the units, one after another, make of x.
    """
    h = x
    for unit in units:
        h = torch.cat([unit.carried(h), unit.added(h)])
    return h.unflatten(0, (2 ** len(units), len(x)))


def path_gradients(model: Any, x: Tensor, y: Tensor) -> Callable[[Collection[int]], Tensor]:
    """The loss's gradient at the image, path by path, after one pass forward (Veit 2016, section 5).

    Backwards every network is linear: a unit hands the gradient on through its branch and through its shortcut, and
    training sees the sum. So the gradients of all 2^n paths add up to the whole, whatever the activations. What both
    ways share, an activation ahead of the split or after the sum, is on every path.

    The loss: cross-entropy, or -ELBO with one sample of the latents, in nats. Of a VAE the paths are those through the
    encoder and out at its end; beyond, the paths of the KL and of the likelihood are not of one length.

    Args:
        model: a classifier or VAE, in eval mode (else batch normalisation mixes the images), its units merged by sum.
        x, y: images ``[B, C, H, W]`` and labels ``[B]``, on its device.

    Returns:
        From the numbers of some units to the gradient ``[B, C, H, W]`` by their branches and all others' shortcuts.
    """
    image = end = to_unit(x, model.image_shape).clone().requires_grad_()
    crossed: list[tuple[Tensor, Tensor, Tensor]] = []  # a unit's input, its output by shortcut and by branch

    def split(block: ResidualBlock, x: Tensor) -> Tensor:
        nonlocal end
        h = block.before(x)
        carried, added = block.shortcut(h), block.branch(h)
        by_shortcut = block.after(block.merge(carried, added.detach()))
        crossed.append((x, by_shortcut, block.after(block.merge(carried.detach(), added))))
        end = by_shortcut.detach().requires_grad_()  # each unit has a graph of its own
        return end

    with replaced((unit, partial(split, unit.block)) for unit in summed(model, "encoder")):
        loss = model.figures(image, y)["loss"].sum()
    (outer,) = torch.autograd.grad(loss, end, materialize_grads=True)

    def along(path: Collection[int]) -> Tensor:
        gradient = outer
        for i, (x, *ways) in reversed(list(enumerate(crossed))):
            (gradient,) = torch.autograd.grad(ways[i in path], x, gradient, retain_graph=True)
        return torch.autograd.grad(crossed[0][0], image, gradient, retain_graph=True)[0]

    return along


def gradient_norms(model: Any, x: Tensor, y: Tensor, length: int, draws: int = 16, seed: int = 0) -> Tensor:
    """Each image's norm of the gradient by ``draws`` random paths of ``length`` branches, ``[draws, N]``, float64.

    Every 16 images have paths of their own. A VAE's latents are the same for every length.
    """
    rng, n, norms = np.random.default_rng((seed, length)), len(summed(model, "encoder")), []
    with isolated(model, seed), torch.enable_grad():
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            along = path_gradients(model, images, labels)
            chosen = [set(rng.permutation(n)[:length].tolist()) for _ in range(draws)]
            # float64: the squares of a long path's gradient are too small for float32
            norms.append(torch.stack([double(along(path)).flatten(1).norm(dim=1) for path in chosen]))
    return torch.cat(norms, 1).cpu()


def decay(norms: Sequence[float]) -> tuple[float, float, float]:
    """a, b, R^2 of norm = exp(a k + b), k = 0, 1, ...: least squares of the logarithms of what is above 0."""
    k = np.flatnonzero(norms)
    if len(k) < 3:
        raise ResvaeError(f"model: paths of {len(k)} lengths carry gradient; a fit needs 3 or more")
    logs = np.log(np.array(norms)[k])
    a, b = np.polyfit(k, logs, 1).tolist()
    return a, b, np.corrcoef(k, logs)[0, 1].item() ** 2


def shortest_range(weights: Sequence[float], share: float = 0.95) -> tuple[int, int]:
    """First and last index of the fewest neighbours that hold this share of the sum; of as few, the heaviest."""
    low, width, held = 0, 0, 0.0
    while held < share * sum(weights):
        width += 1
        held, low = max((sum(weights[i : i + width]), i) for i in range(len(weights) - width + 1))
    return low, low + width - 1


def paths(
    model: str,
    num: int = 128,
    draws: int = 16,
    seed: int = 0,
    out: str = "runs/study_paths",
    **images: Any,
) -> None:
    """Count a network's paths by length, and measure the gradient at the image along random paths of each length.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights; of a VAE, its encoder.
        num: images, the first of the split.
        draws: random paths per length, for every 16 images.
        seed: of the paths, and of a VAE's latents.
        out: the study's folder; a study that was stopped resumes there.
    """
    whole_from(1, draws=draws)
    whole_from(0, seed=seed)
    seen = subject(model, num, **images)
    n = len(summed(seen.model, "encoder"))
    record = Record(out, seen.settings | {"draws": draws, "seed": seed})

    def spread(k: int) -> list[float]:
        norms = gradient_norms(seen.model, seen.x, seen.y, k, draws, seed).numpy()
        return [norms.mean(), *np.quantile(norms, [0.1, 0.9])]

    lengths = progress(range(n + 1), "paths")
    measured = [record.measure(str(k), partial(spread, k)) for k in lengths]
    counts, fit = num_paths(n), decay([mean for mean, _, _ in measured])
    carried = [count * mean for count, (mean, _, _) in zip(counts, measured, strict=True)]
    table = [(k, math.log10(counts[k]), *measured[k], 100 * carried[k] / sum(carried)) for k in range(n + 1)]
    (first, last), (low, high) = shortest_range(counts), shortest_range(carried)
    levels = isinstance(seen.model, HierarchicalVAE)  # they read the encoder's earlier stages, too
    whole = "what comes back from the encoder's end, a part of the whole" if levels else "the whole"
    notes = (
        f"{seen.told} Seed {seed}, {draws} random paths per length, for {BATCH} images each. Norm: an image's gradient "
        f"in nats for pixels in [0, 1], mean and quantiles. 95% of all 2^{n} paths have {first} to {last} units. At k "
        f"units log(norm) is fitted by {fit[1]:.3g} {fit[0]:+.3g} k, R^2 {fit[2]:.3f}. 95% of norm x number of paths "
        f"comes from {low} to {high} units, {sum(counts[low : high + 1]) / 2**n:.2%} of all paths. Gradients of all "
        f"paths add up to {whole}, outputs where units are linear. Reported (Veit et al. 2016, section 5; 54 units, "
        "CIFAR-10): over 95% of paths have 19 to 35 units; almost all gradient comes from 5 to 17 units, 0.45%."
    )
    columns = ("units", "log10 paths", "norm", "10%", "90%", "% of gradient")
    print(record.write("paths", [dict(zip(columns, line, strict=True)) for line in table], notes))
    _plot(np.array(table).T, fit, (low, high), record.folder / "paths.png")
    print("\n".join(f"wrote {record.folder / f'paths.{ending}'}" for ending in ("md", "csv", "png")))


def _plot(table: np.ndarray, fit: tuple[float, ...], held: tuple[int, int], file: Path) -> None:
    """The three panels of Veit 2016, figure 6."""
    from matplotlib.figure import Figure

    k, log_paths, norm, low, high, gradient = table
    share, inside = 100 * 10**log_paths / 2 ** k[-1], (held[0] <= k) & (k <= held[1])
    figure = Figure((13, 3.8), layout="constrained")
    count, one, together = figure.subplots(1, 3)
    count.bar(k, share, color="tab:blue")
    count.set(title="how many paths there are", ylabel=f"% of all 2$^{{{k[-1]:.0f}}}$ paths")
    one.fill_between(k, low, high, alpha=0.25, color="tab:orange", label="10% to 90% of images and paths")
    one.semilogy(k, norm, "o", ms=4, color="tab:orange", label="mean")
    one.plot(k, np.exp(fit[0] * k + fit[1]), "k--", label=f"times {math.exp(fit[0]):.2g} a unit, R$^2$ {fit[2]:.3f}")
    one.set(title="what one carries", ylabel="norm of the image's gradient, nats")
    one.legend(frameon=False, loc="upper right")
    together.bar(k, gradient, color=np.where(inside, "tab:green", "lightgrey"))
    told = f"95% by {held[0]} to {held[1]} units,\n{share[inside].sum():.2g}% of all paths"
    together.text(0.98, 0.97, told, transform=together.transAxes, ha="right", va="top", color="tab:green")
    together.set(title="what they carry together", ylabel="norm x number of paths, % of all")
    for axes in (count, one, together):
        axes.set_xlabel("units on the path")
    write_figure(file, figure)
