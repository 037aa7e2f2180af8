"""``resvae study gradients``: the gradient that reaches each block, and by which route (He 2016, section 2)."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resvae.errors import whole_from
from resvae.files import write_figure
from resvae.models import ImageModel
from resvae.networks.blocks import ResidualBlock
from resvae.networks.units import units
from resvae.storage import build, describe
from resvae.studies.record import Record, Row, Subject, subjects

WHEN = ("start", "trained")
NOTES = (
    "norm: of dL/dx, what comes back through the block to its input x, mean over batches of 32 to 63; L: the batch's "
    "mean cross-entropy, or -ELBO of a VAE, nats per image. start: new weights, seed {}; trained: the checkpoint. Both "
    "in train mode, as training sees them: in eval mode a new model would divide by statistics that it has not "
    "gathered. connection, branch: the norm of what comes through each, over the whole's (He 2016, equation 5, for one "
    "block: dL/dx = dL/dy (1 + dF/dx); no figures reported); the two add as vectors, so these need not sum to 1; a "
    "plain block has one route. error: the largest norm of connection + branch - whole (autograd's), over the whole's."
)


def gradients(
    models: str | list[str],
    num: int = 256,
    seed: int = 0,
    out: str = "runs/study_gradients",
    **images: Any,
) -> None:
    """Measure the loss's gradient at every block, at the start and after training, in one model or in several.

    Args:
        models: runs' folders, .ckpt files, saved folders or shipped names, with commas between: runs/a,runs/b.
        num: how many images, the first.
        seed: of the new weights, and of the noise in a VAE's posterior.
        out: the study's folder.
    """
    whole_from(2, num=num)  # nothing can be normalised over a batch of one
    studied = subjects(models, num, **images)
    record = Record(out, {"seed": seed} | {one.source: one.settings for one in studied})
    rows, notes, measured = list[Row](), [NOTES.format(seed)], dict[str, Tensor]()
    for one in studied:
        kept = [record.measure(f"{one.source} {when}", partial(_measure, one, when, seed)) for when in WHEN]
        measured[one.source] = torch.tensor(kept)
        for i, (unit, *both) in enumerate(zip(units(one.model), *kept, strict=True), 1):
            row: Row = {"model": one.source, "block": i, "name": unit.name}
            for when, (norm, connection, branch, _) in zip(WHEN, both, strict=True):
                connection = "one route" if unit.block.plain else connection
                row |= {f"norm, {when}": norm, f"connection, {when}": connection, f"branch, {when}": branch}
            rows.append(row | {"error": max(figures[3] for figures in both)})
        start, trained = (measured[one.source][:, 0, 0] / measured[one.source][:, -1, 0]).tolist()
        notes.append(f"{one.told} First block's norm over the last's: {start:.3g} at the start, {trained:.3g} trained.")
    print(record.write("gradients", rows, " ".join(notes)))
    write_plot(measured, record.folder / "gradients.png")
    print("\n".join(f"wrote {path}" for path in sorted(record.folder.glob("gradients.*"))))


def at_blocks(model: ImageModel, x: Tensor, y: Tensor, batch_size: int = 32) -> Tensor:
    """The loss's gradient that comes back through each of U blocks. The model stays in the mode that it is in.

    Args:
        model: a classifier or a VAE; batch normalisation in train mode gathers statistics, as always.
        x, y: uint8 images ``[N, C, H, W]`` and labels ``[N]``.
        batch_size: images whose mean loss is derived: at least this many, where there are enough.

    Returns:
        ``[U, 4]``: the mean over batches of its norm, nats per image over the unit of the block's input; the norms of
        its routes through connection and branch, over that; the largest error of the routes' sum, over that.
    """
    found, passed, norms = units(model), list[tuple[Any, Any]](), list[Tensor]()
    with ExitStack() as hooks:
        for unit in found:  # a view: the levels of latents see x too, and what comes from them is not the block's
            hooks.enter_context(unit.block.register_forward_pre_hook(lambda _, h: (h[0].view_as(h[0]),)))
            hooks.enter_context(unit.block.register_forward_hook(lambda _, h, out: passed.append((h[0], out))))
        parts = max(1, len(x) // batch_size)  # as many whole batches as there are; the rest is spread over them
        for images, labels in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            value = model.figures((images / 255).requires_grad_(), labels)[
                "loss"
            ].mean()  # of images too: blocks may have no stem
            ends = [h for pair in zip(*passed, strict=True) for h in pair]  # all inputs, all outputs
            grads = torch.autograd.grad(value, ends, allow_unused=True, materialize_grads=True)
            for unit, (h, _), whole, gradient in zip(found, passed, grads, grads[len(found) :], strict=False):
                ways = routes(unit.block, h, gradient)
                norms.append(torch.stack([h.norm() for h in (whole, *ways, ways[0] + ways[1] - whole)]))
            passed.clear()
    every = torch.stack(norms).unflatten(0, (-1, len(found)))  # batches, U, 4
    mean, error = every.mean(0), (every[..., 3:] / every[..., :1]).amax(0)
    return torch.cat([mean[:, :1], mean[:, 1:3] / mean[:, :1], error], 1)


def routes(block: ResidualBlock, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dx through the connection (0 in a plain block), the branch held constant, and the reverse, given dL/dy."""
    x = x.detach().requires_grad_()
    h = block.before(x)
    s, f = block.shortcut(h), block.branch(h)

    def back(s: Tensor, f: Tensor) -> Tensor:
        return torch.autograd.grad(block.after(block.merge(s, f)), x, gradient, retain_graph=True)[0]

    return torch.zeros_like(x) if block.plain else back(s, f.detach()), back(s.detach(), f)


def write_plot(measured: dict[str, Tensor], path: Path) -> None:
    """Each model's norms, dashed at the start, and the shares of the two routes, of ``[2, U, 4]``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, sharex=True, height_ratios=[2, 1, 1])
    for i, (model, both) in enumerate(measured.items()):
        for when, style, figures in zip(WHEN, ("--", "-"), both, strict=True):
            for axis, values in zip(axes, figures.T.tolist(), strict=False):
                label = model if when == "trained" else f"_{model}"  # _: not in the legend
                axis.plot(range(1, len(values) + 1), values, style, marker=".", color=f"C{i}", label=label)
    labels = ("norm of dL/dx, nats / unit of x\ndashed: at the start", "connection / whole", "branch / whole")
    for axis, ylabel in zip(axes, labels, strict=True):
        axis.set_ylabel(ylabel)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center")
    axes[1].set_ylim(0)
    axes[2].set(ylim=(0, None), xlabel="block, from the input on")
    write_figure(path, figure)


def _measure(one: Subject, when: str, seed: int) -> list[list[float]]:
    torch.manual_seed(seed)
    model = one.model if when == "trained" else build(describe(one.model)).to(one.x.device)
    return at_blocks(model.train(), one.x, one.y).tolist()
