"""``resvae interpolate``: rows of images from one image to another."""

from typing import Any

import torch

from resvae.errors import ResvaeError, whole_from
from resvae.storage import load_vae
from resvae.verbs.images import images_for
from resvae.verbs.output import output, write_images


def interpolate(
    model: str,
    pictures: list[str] = [],  # noqa: B006  it is not changed
    steps: int = 8,
    num: int = 8,
    out: str = "interpolations.png",
    **images: Any,
) -> None:
    """Write rows of images that lead from one image to another, along a line between their latents.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        pictures: files of your own, two for each row: resvae interpolate MODEL a.jpg b.png; default: a data set.
        steps: number of images per row, both ends included.
        num: number of rows of the data set.
        out: a .png of all rows; a new folder or an .npz for the images, row by row.
    """
    whole_from(1, num=num)
    path = output(out)
    vae = load_vae(model)
    names, parts = [], []
    for told, x in images_for(vae, model, pictures, 2 * num, **images):
        names += told
        parts.append(x)
    x = torch.cat(parts)
    whole_from(2, images=len(x))
    if pictures and len(x) % 2:
        raise ResvaeError(f"pictures: {len(x)} are not allowed; give two for each row")
    half = len(x) // 2
    if pictures:  # as they were given: one after another
        starts, ends = slice(None, None, 2), slice(1, None, 2)
    else:
        starts, ends = slice(half), slice(half, 2 * half)
    rows = vae.interpolate(x[starts], x[ends], steps).flatten(0, 1)
    pairs = zip(names[starts], names[ends], strict=True)
    print(write_images([([f"{a}_{b}_{i:02d}" for a, b in pairs for i in range(steps)], rows)], path, steps))
