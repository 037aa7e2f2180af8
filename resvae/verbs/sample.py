"""``resvae sample``: new images, drawn from the prior."""

import torch

from resvae.errors import whole_from
from resvae.progress import progress
from resvae.storage import load_vae
from resvae.verbs.output import output, write_images


def sample(
    model: str,
    num: int = 64,
    temperature: float | list[float] = 1.0,
    pixel_noise: bool = False,
    seed: int = 0,
    out: str = "samples.png",
) -> None:
    """Draw images from the prior and write them.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num: number of images.
        temperature: factor on the prior's standard deviation; a list: one per level of latents, coarsest first.
        pixel_noise: draw the pixels from p(x|z); default: its mean.
        seed: of the noise.
        out: a .png of all images, a new folder for one .png each, or an .npz (arr_0, uint8 N H W C).
    """
    whole_from(1, num=num)
    path = output(out)
    vae = load_vae(model)
    torch.manual_seed(seed)
    names = [f"{i:06d}" for i in range(num)]
    chunks = [names[i : i + 256] for i in range(0, num, 256)]
    batches = ((each, vae.sample(len(each), temperature, pixel_noise)) for each in progress(chunks, "sampling"))
    print(write_images(batches, path))
