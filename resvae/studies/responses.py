"""``resvae study responses``: how large each layer's output is (He 2015, section 4.2, figure 7)."""

from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resvae.devices import double
from resvae.files import write_figure
from resvae.models import ImageModel
from resvae.models.levels import Level
from resvae.probability import Likelihood
from resvae.studies.record import Record, Row, subjects

NOTES = (
    "std: over images, locations and channels, of what a convolution on the main path gives, after the normalisation "
    "that follows it directly, before activation and addition; latents' and likelihoods' own layers are left out. "
    "Reported (He 2015, figure 7, CIFAR-10, curves only): responses of residual networks are generally smaller than "
    "those of plain ones, and smaller the deeper the network. Eval mode, batches of 250, seed {}."
)


def responses(
    models: str | list[str],
    num: int = 1000,
    seed: int = 0,
    out: str = "runs/study_responses",
    **images: Any,
) -> None:
    """Measure the standard deviation of every layer's output, in one model or in several side by side.

    Args:
        models: runs' folders, .ckpt files, saved folders or shipped names, with commas between: runs/a,runs/b.
        num: how many images, the first.
        seed: of the noise in a VAE's posterior.
        out: the study's folder.
    """
    studied = subjects(models, num, **images)
    record = Record(out, {"seed": seed} | {one.source: one.settings for one in studied})
    rows, stds, notes = list[Row](), dict[str, list[float]](), [NOTES.format(seed)]
    for one in studied:
        torch.manual_seed(seed)
        stds[one.source] = found = record.measure(
            one.source, lambda one=one: deviations(one.model, one.x, one.y).tolist()
        )
        for i, ((layer, _), std) in enumerate(zip(main_path(one.model), found, strict=True), 1):
            rows.append({"model": one.source, "layer": i, "name": layer, "std": std})
        notes.append(f"{one.told} {len(found)} layers, mean std {sum(found) / len(found):.4g}.")
    print(record.write("responses", rows, " ".join(notes)))
    write_plot(stds, record.folder / "responses.png")
    print("\n".join(f"wrote {path}" for path in sorted(record.folder.glob("responses.*"))))


def main_path(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Each convolution's name, from the input on, and what gives its response: itself or its normalisation."""
    aside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Level | Likelihood))
    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children()) and not isinstance(m, nn.Sequential)]
    return [
        (name, after if isinstance(after, nn.BatchNorm2d | nn.GroupNorm) else layer)
        for (name, layer), (_, after) in pairwise([*leaves, ("", None)])
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and ".shortcut." not in name and not name.startswith(aside)
    ]


@torch.no_grad()
def deviations(model: ImageModel, x: Tensor, y: Tensor, batch_size: int = 250) -> Tensor:
    """The deviation of each layer's response (``main_path``) to images ``[N, C, H, W]`` of labels ``[N]``.

    ``[L]``, float64.
    """
    path = main_path(model)
    sums = torch.zeros(len(path), 3, dtype=torch.float64)  # number, sum, sum of squares

    def add(i: int, module: nn.Module, args: Any, h: Tensor) -> None:
        h = double(h)
        sums[i] += torch.stack([torch.ones_like(h).sum(), h.sum(), h.square().sum()]).cpu()

    with ExitStack() as hooks:
        for i, (_, module) in enumerate(path):
            hooks.enter_context(module.register_forward_hook(partial(add, i)))
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            model.figures(images, labels)
    number, total, squares = sums.T
    return (squares / number - (total / number).square()).clamp(min=0).sqrt()


def write_plot(stds: dict[str, list[float]], path: Path) -> None:
    """Each model's responses by layer, and from the largest to the smallest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(2, sharey=True)
    for model, values in stds.items():
        axes[0].plot(range(1, len(values) + 1), values, marker=".", label=model)
        axes[1].plot(range(1, len(values) + 1), sorted(values, reverse=True), marker=".", label=model)
    every = [value for values in stds.values() for value in values]
    wide = max(every) > 10 * min(every)
    for axis, xlabel in zip(axes, ("layer, from the input on", "rank, the largest first"), strict=True):
        axis.set(xlabel=xlabel, ylabel="std of the response", yscale="log" if wide else "linear")
        axis.set_ylim(None if wide else 0)
        axis.grid(alpha=0.3, which="both")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center")
    write_figure(path, figure)
