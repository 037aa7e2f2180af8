"""``resvae reconstruct``: images beside their reconstructions."""

from typing import Any

from resvae.evaluation.grids import PICTURES, beside, save_grid
from resvae.files import writable
from resvae.storage import load_vae
from resvae.verbs.images import first_images


def reconstruct(model: str, num: int = 32, out: str = "reconstructions.png", **images: Any) -> None:
    """Write a grid of images, each row above the row of its reconstructions.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num: number of images.
        out: a .png in a folder that exists.
    """
    writable(out, *PICTURES)
    vae = load_vae(model)
    x = first_images(vae, model, num, **images)
    print(f"wrote {save_grid(beside(x.cpu() / 255, vae.reconstruct(x).cpu()), out, min(8, len(x)))}")
