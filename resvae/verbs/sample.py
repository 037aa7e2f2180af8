"""``resvae sample``: new images, drawn from the prior."""

import torch

from resvae.errors import at_least
from resvae.evaluation.grids import PICTURES, save_grid
from resvae.files import writable
from resvae.progress import progress
from resvae.storage import load_vae


def sample(
    model: str,
    num: int = 64,
    temperature: float | list[float] = 1.0,
    pixel_noise: bool = False,
    seed: int = 0,
    out: str = "samples.png",
) -> None:
    """Draw images from the prior and write them as one grid.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num: number of images.
        temperature: factor on the prior's standard deviation; a list: one per level of latents, coarsest first.
        pixel_noise: draw the pixels from p(x|z); default: its mean.
        seed: of the noise.
        out: a .png in a folder that exists.
    """
    at_least(1, num=num)
    writable(out, *PICTURES)
    vae = load_vae(model)
    torch.manual_seed(seed)
    chunks = [min(256, num - i) for i in range(0, num, 256)]
    images = [vae.sample(n, temperature, pixel_noise).cpu() for n in progress(chunks, "sampling")]
    print(f"wrote {save_grid(torch.cat(images), out)}")
