"""``resvae decode``: latents to images."""

from pathlib import Path

import numpy as np
import torch

from resvae.errors import ResvaeError
from resvae.files import place
from resvae.progress import progress
from resvae.storage import load_vae
from resvae.verbs.images import BATCH
from resvae.verbs.output import output, write_images


def decode(model: str, latents: str, out: str = "decoded.png") -> None:
    """Write the means of p(x|z) at latents that ``resvae encode`` wrote, or that you made or changed.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        latents: an .npz: mean_00, mean_01, ... [N, ...], the coarsest level first, and names [N], if there are any.
        out: a .png of all images, a new folder for one .png each, or an .npz (arr_0, uint8 N H W C).
    """
    path = output(out)
    vae = load_vae(model)
    try:
        with np.load(place(latents), allow_pickle=False) as file:
            parts = [file[name] for name in sorted(file.files) if name.startswith("mean_")]
            told = file["names"].tolist() if "names" in file.files else None
    except FileNotFoundError as error:
        raise ResvaeError(f"latents: {latents} does not exist") from error
    except Exception as error:  # a reader of damaged archives may stop at anything
        raise ResvaeError(f"latents: {latents} is not an .npz of plain arrays, or it is damaged") from error
    if not parts or len({len(part) for part in parts}) != 1 or not len(parts[0]):
        raise ResvaeError(f"latents: {latents} must hold mean_00, mean_01, ... with as many rows each")
    device = next(vae.parameters()).device
    z = torch.cat([torch.from_numpy(part).flatten(1).float() for part in parts], 1)
    num, latent = z.shape
    if (wanted := vae.sample_prior(1).shape[1]) != latent:
        raise ResvaeError(f"latents: {latents} holds {latent} numbers for each image; this model takes {wanted}")
    names = [f"{i:06d}" for i in range(num)] if told is None or len(told) != num else told
    names = [Path(str(name)).name for name in names]  # a file says where nothing is written
    starts = progress(range(0, num, BATCH), "decoding")
    with torch.no_grad():
        batches = ((names[i : i + BATCH], vae.decode(z[i : i + BATCH].to(device)).mean.clamp(0, 1)) for i in starts)
        print(write_images(batches, path))
