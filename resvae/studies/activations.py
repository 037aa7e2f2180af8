"""``resvae study activations``: what one image becomes at each block, and the block's filters (Bolte's pictures)."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from resvae.errors import ResvaeError
from resvae.evaluation.grids import image_grid
from resvae.files import write_figure
from resvae.models import ImageModel
from resvae.networks.units import Unit, units
from resvae.studies.record import Record, Row, subject

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
NOTES = (
    "ratio, |F(x)| / |x|: x as the connection passes it on, or as it is in a plain block, where F(x) alone continues. "
    "merged: their sum, or what the block's merge makes of them. A panel's scale ends at 99.5 % of its magnitudes. "
    "Overview: maps about their means, along the merged map's first principal channel, where x and F(x) add up to "
    "their sum; red where it is bright. Eval mode, seed {}. No figures are reported."
)


@dataclass(frozen=True)
class Passage:
    """One image's way through a block: maps ``[C, H, W]``, and filters ``[out, in, k, k]``."""

    unit: Unit
    x: Tensor  # what comes in
    carried: Tensor  # what the connection hands to the merge
    added: Tensor  # F(x), what the branch hands to it
    merged: Tensor  # their sum, or what the block's merge makes of them
    activation: Tensor  # of that; in a block that does not end with one, what its first convolution is given
    filters: Tensor  # of the branch's first convolution larger than 1x1


def activations(
    model: str,
    image: int = 0,
    seed: int = 0,
    out: str = "runs/study_activations",
    **images: Any,
) -> None:
    """Draw what one image becomes at each block: x, what the branch adds, the sum, the activation; and the filters.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        image: which of the split, from 0 on.
        seed: of the noise in a VAE's posterior.
        out: the study's folder.
    """
    found = subject(model, max(image, 0) + 1, **images)
    if not 0 <= image < len(found.x):
        raise ResvaeError(f"image: {image} is not allowed; 0 or more, less than the number of images")
    record = Record(out, found.settings | {"image": image, "seed": seed})
    torch.manual_seed(seed)
    each, picture = passages(found.model, found.x[image:], found.y[image:]), found.x[image:].cpu() / 255
    rows = record.measure("blocks", lambda: [_row(i, passage) for i, passage in enumerate(each, 1)])
    told = f"{NOTES.format(seed)} {found.told} Image {image}, label {found.y[image]}."
    print(record.write("activations", rows, told))
    titles = ["{block}: {name}, {shape}, |F(x)| / |x| {ratio:.3g}".format(**row) for row in rows]
    write_overview(each, titles, picture, record.folder / "activations.png")
    for i, (passage, title) in enumerate(zip(each, titles, strict=True), 1):
        write_block(passage, title, picture, record.folder / f"activations_{i:03}_{passage.unit.name}.png")
    print("\n".join(f"wrote {path}" for path in sorted(record.folder.glob("activations*"))))


@torch.no_grad()
def passages(model: ImageModel, x: Tensor, y: Tensor | None = None) -> list[Passage]:
    """What one image ``x [1, C, H, W]`` of label ``y [1]`` (0 by default) becomes at each block, in order.

    The model stays in the mode that it is in.
    """
    found, entered, passed = units(model), list[Any](), list[Passage]()
    with ExitStack() as hooks:
        for unit in found:
            hooks.enter_context(unit.block.register_forward_pre_hook(lambda _, h: entered.append(h[0])))
        model.figures(x, torch.zeros(len(x), dtype=torch.long, device=x.device) if y is None else y)
    for unit, h in zip(found, entered, strict=True):
        block, before = unit.block, unit.block.before(h)
        maps = [h, block.shortcut(before), block.branch(before)]
        maps.append(block.merge(*maps[1:]))
        first = next(i for i, layer in enumerate(block.branch) if isinstance(layer, (*CONVOLUTIONS, nn.Sequential)))
        maps.append(block.branch[:first](before) if isinstance(block.after, nn.Identity) else block.after(maps[-1]))
        spatial = next(m for m in block.branch.modules() if isinstance(m, CONVOLUTIONS) and m.kernel_size[0] > 1)
        filters = spatial.weight.transpose(0, 1) if isinstance(spatial, nn.ConvTranspose2d) else spatial.weight
        passed.append(Passage(unit, *(each[0].cpu() for each in maps), filters=filters.detach().cpu()))
    return passed


def write_block(passage: Passage, title: str, picture: Tensor, path: Path) -> None:
    """The image ``[1, C, H, W]``, the block's first 8 by 8 filters, and 64 channels of its maps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    figure.suptitle(title)
    ends = "first convolution's input" if isinstance(passage.unit.block.after, nn.Identity) else "activation"
    out, into = passage.filters.shape[:2]
    filters = f"filters, {min(8, out)} of {out} outputs (rows), {min(8, into)} of {into} inputs"
    panels = {"image": image_grid(picture), filters: _tiled(passage.filters[:8, :8].flatten(0, 1), min(8, into))}
    maps = {"x": passage.x, "F(x)": passage.added, "merged": passage.merged, ends: passage.activation}
    for name, each in maps.items():
        columns = 2 ** ((min(64, len(each)) - 1).bit_length() + 1 >> 1)  # 8 as 2x4
        panels[f"{name}, {min(64, len(each))} of {len(each)} channels"] = _tiled(each[:64], columns)
    for axis, (name, panel) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        _draw(axis, panel, name)
    write_figure(path, figure)


def write_overview(each: list[Passage], titles: list[str], picture: Tensor, path: Path) -> None:
    """The image ``[1, C, H, W]``, and per block what the connection passes on, what the branch adds, and the sum."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, min(2.2, 400 / len(each)) * (len(each) + 1)), layout="constrained")
    axes = figure.subplots(len(each) + 1)
    _draw(axes[0], image_grid(picture), "image; one row per block: x and F(x), and both merged")
    for axis, passage, title in zip(axes[1:], each, titles, strict=True):
        maps = [passage.carried, passage.added, passage.merged][2 * passage.unit.block.plain :]
        maps = [each - each.mean((1, 2), keepdim=True) for each in maps]
        direction = torch.linalg.svd(maps[-1].flatten(1), full_matrices=False).U[:, 0]
        along = torch.einsum("c,pchw->phw", direction, torch.stack(maps))
        light = nn.functional.interpolate(picture.mean(1, True), list(along.shape[1:]), mode="area")
        _draw(axis, _tiled(along * (along[-1] * light).sum().sign(), len(along)), title)
    write_figure(path, figure)


def _row(i: int, passage: Passage) -> Row:
    shape = " to ".join("x".join(map(str, h.shape)) for h in (passage.x, passage.merged))
    stds = [float(h.std()) for h in (passage.x, passage.added, passage.merged)]
    cells = (i, passage.unit.name, shape, *stds, float(passage.added.norm() / passage.carried.norm()))
    return dict(
        zip(("block", "name", "shape", "std of x", "std of F(x)", "std of merged", "ratio"), cells, strict=True)
    )


def _tiled(maps: Tensor, columns: int) -> Tensor:
    return make_grid(maps[:, None], columns, padding=1, pad_value=torch.nan)[0]


def _draw(axis: Any, panel: Tensor, title: str) -> None:
    scale = panel.abs().nanquantile(0.995).item()
    pixels = panel if panel.ndim == 2 else panel.permute(1, 2, 0)
    axis.imshow(pixels.numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    axis.set_title(f"{title}, ±{scale:.3g}" if panel.ndim == 2 else title, fontsize=9)
    axis.axis("off")
