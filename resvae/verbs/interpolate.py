"""``resvae interpolate``: rows of images from one image to another."""

from typing import Any

from resvae.errors import at_least
from resvae.evaluation.grids import PICTURES, save_grid
from resvae.files import writable
from resvae.storage import load_vae
from resvae.verbs.images import first_images


def interpolate(model: str, steps: int = 8, num: int = 8, out: str = "interpolations.png", **images: Any) -> None:
    """Write rows of images that lead from one image to another, along a line between their latents.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        steps: number of images per row, both ends included.
        num: number of rows.
        out: a .png in a folder that exists.
    """
    at_least(1, num=num)
    writable(out, *PICTURES)
    vae = load_vae(model)
    x = first_images(vae, model, 2 * num, **images)
    at_least(2, images=len(x))
    rows = vae.interpolate(x[: len(x) // 2], x[len(x) // 2 : len(x) // 2 * 2], steps)
    print(f"wrote {save_grid(rows.flatten(0, 1).cpu(), out, steps)}")
