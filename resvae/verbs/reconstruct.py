"""``resvae reconstruct``: images beside their reconstructions."""

from typing import Any

import torch

from resvae.errors import ResvaeError
from resvae.evaluation.grids import PICTURES, beside
from resvae.models import HierarchicalVAE
from resvae.storage import load_vae
from resvae.verbs.images import images_for
from resvae.verbs.output import output, write_images


def reconstruct(
    model: str,
    pictures: list[str] = [],  # noqa: B006  it is not changed
    num: int = 32,
    num_levels: int | None = None,
    out: str = "reconstructions.png",
    **images: Any,
) -> None:
    """Write a grid of images, each row above the row of its reconstructions; or the reconstructions alone.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        pictures: files of your own, or folders of them: resvae reconstruct MODEL a.jpg b.png; default: a data set.
        num: number of images of the data set.
        num_levels: how many levels of latents see the image, the coarsest first; default: all.
        out: a .png of images and reconstructions; a new folder or an .npz for the reconstructions.
    """
    path = output(out)
    vae = load_vae(model)
    levels = {}
    if num_levels is not None:
        if not isinstance(vae, HierarchicalVAE):
            raise ResvaeError(f"num_levels: {num_levels} is not allowed; {type(vae).__name__} has one level")
        levels = {"num_levels": num_levels}
    batches = images_for(vae, model, pictures, num, **images)
    if path.suffix not in PICTURES or path.is_dir():
        print(write_images(((names, vae.reconstruct(x, **levels)) for names, x in batches), path))
        return
    pairs = [(x.cpu() / 255, vae.reconstruct(x, **levels).cpu()) for _, x in batches]
    originals, reconstructions = (torch.cat(part) for part in zip(*pairs, strict=True))
    print(write_images([([], beside(originals, reconstructions))], path, min(8, len(originals))))
