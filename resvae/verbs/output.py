"""Where a verb's images go: one picture of all, a folder of PNGs, or an .npz."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.evaluation.grids import PICTURES, save_grid, save_picture
from resvae.files import writable, write_npz


def output(out: str) -> Path:
    """The path ``out``: a picture, an .npz, or a folder, which has no ending.

    Raises:
        ResvaeError: another ending; a folder that holds something; one above it that does not exist.
    """
    path = writable(out)
    if path.suffix and not path.is_dir():
        return writable(out, *PICTURES, ".npz")
    if path.exists() and not path.is_dir():
        raise ResvaeError(f"out: {path} is a file; give a folder, or a name that ends with {', '.join(PICTURES)}, .npz")
    if path.is_dir() and any(path.iterdir()):
        raise ResvaeError(f"out: {path} holds files already; give a new folder")
    return path


def write_images(batches: Iterable[tuple[list[str], Tensor]], out: Path, columns: int | None = None) -> str:
    """Write images ``[B, C, H, W]`` in [0, 1] as they come; what was written, as a sentence.

    Args:
        batches: names of the images, and the images.
        out: what ``output`` returned. A folder gets a PNG per image, named so. An .npz holds ``arr_0``, uint8
            ``[N, H, W, C]``, as programs that compute FIDs read it, and ``names``.
        columns: of one picture of all.
    """
    if out.suffix == ".npz":
        names, parts = [], []
        for told, x in batches:
            names += told
            parts.append((255 * x.cpu()).round().to(torch.uint8).permute(0, 2, 3, 1))
        write_npz(out, {"arr_0": torch.cat(parts).numpy(), "names": np.array(names)})
        return f"wrote {out} ({len(names):,} images)"
    if out.suffix and not out.is_dir():
        return f"wrote {save_grid(torch.cat([x.cpu() for _, x in batches]), out, columns)}"
    out.mkdir(exist_ok=True)
    num = 0
    for told, x in batches:
        for name, image in zip(told, x, strict=True):
            save_picture(image, out / f"{name}.png")
        num += len(told)
    return f"wrote {out} ({num:,} images)"
