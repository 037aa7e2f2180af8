"""``resvae encode``: images to the latents of each level."""

from typing import Any

import numpy as np
import torch

from resvae.files import writable, write_npz
from resvae.storage import load_vae
from resvae.verbs.images import images_for


def encode(
    model: str,
    pictures: list[str] = [],  # noqa: B006  it is not changed
    num: int | None = None,
    out: str = "latents.npz",
    **images: Any,
) -> None:
    """Write the posterior's means and standard deviations, level by level, with the names of the images.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        pictures: files of your own, or folders of them: resvae encode MODEL a.jpg folder/; default: a data set.
        num: number of images of the data set; default: all.
        out: an .npz: names [N], mean_00, scale_00, ... [N, ...], the coarsest level first.
    """
    path = writable(out, ".npz")
    vae = load_vae(model)
    names, levels = [], []
    with torch.no_grad():
        for told, x in images_for(vae, model, pictures, num, **images):
            names += told
            levels.append([[part.cpu().numpy() for part in level] for level in vae.latents(x)])
    arrays = {"names": np.array(names)}
    for i, parts in enumerate(zip(*levels, strict=True)):
        for name, each in zip(("mean", "scale"), zip(*parts, strict=True), strict=True):
            arrays[f"{name}_{i:02d}"] = np.concatenate(each)
    write_npz(path, arrays)
    shapes = ", ".join("x".join(map(str, part.shape[1:])) for name, part in arrays.items() if name.startswith("mean"))
    print(f"wrote {path} ({len(names):,} images; latents by level: {shapes})")
