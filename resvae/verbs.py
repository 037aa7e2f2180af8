"""What the verbs do that use a trained model: every function's signature is its options on the command line.

``**images`` and ``**measure`` stand for the options of the function that they are handed to.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resvae.data import Split
from resvae.errors import at_least
from resvae.evaluation import beside, feature_network, full_report, save_grid, write_report
from resvae.evaluation.grids import PICTURES
from resvae.files import writable
from resvae.progress import progress
from resvae.storage import load, load_vae
from resvae.training.export import export
from resvae.training.run import data_of

__all__ = ["evaluate", "export", "interpolate", "reconstruct", "sample"]  # what the command line offers


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
        num: how many.
        temperature: factor on the prior's standard deviation; a list: one a level of latents, coarsest first.
        pixel_noise: draw pixels from p(x|z) in place of its mean.
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


def reconstruct(model: str, num: int = 32, out: str = "reconstructions.png", **images: Any) -> None:
    """Write images, each row over its reconstructions.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num: how many.
        out: a .png in a folder that exists.
    """
    writable(out, *PICTURES)
    vae = load_vae(model)
    x = _images(vae, model, num, **images)
    print(f"wrote {save_grid(beside(x.cpu() / 255, vae.reconstruct(x).cpu()), out, min(8, len(x)))}")


def interpolate(model: str, steps: int = 8, num: int = 8, out: str = "interpolations.png", **images: Any) -> None:
    """Write rows of images from one image to another, along a line between their latents.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        steps: images a row, both ends included.
        num: rows.
        out: a .png in a folder that exists.
    """
    at_least(1, num=num)
    writable(out, *PICTURES)
    vae = load_vae(model)
    x = _images(vae, model, 2 * num, **images)
    at_least(2, images=len(x))
    rows = vae.interpolate(x[: len(x) // 2], x[len(x) // 2 : len(x) // 2 * 2], steps)
    print(f"wrote {save_grid(rows.flatten(0, 1).cpu(), out, steps)}")


def evaluate(
    model: str,
    features: str = "none",
    probe: bool = False,
    probe_images: int = 10_000,
    data: str | None = None,
    path: str | None = None,
    root: str | None = None,
    split: Split = "test",
    out: str | None = None,
    **measure: Any,
) -> None:
    """Measure a model: bounds, KL, active units, PSNR, SSIM, and on request FID, KID, a linear probe, neighbours.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        features: the network of FID and KID: none, inception, or a MODEL that is a ResNetClassifier.
        probe: whether to train linear classifiers on the representations.
        probe_images: training images of the probe, at most.
        data: the data set; a run's own unless told.
        path: of the folder or .npz, for the data sets of those names; the run's own unless told.
        root: where data sets are; the run's own unless told, or ``data``.
        split: train, val or test.
        out: a .json in a folder that exists; the table (.md) and a page of plots (.png) go beside it.
    """
    if out is not None:
        writable(out, ".json")
    vae = load_vae(model)
    network = None
    if features != "none":
        network = features, feature_network(features, vae.image_shape, load).to(next(vae.parameters()).device)
    report, pictures = full_report(
        vae,
        data_of(model, data, path, root, vae.image_shape),
        split,
        source=model,
        features=network,
        probe_images=probe_images if probe else None,
        track=progress,
        **measure,
    )
    print(report.table())
    if out is not None:
        print("\n".join(f"wrote {path}" for path in write_report(report, pictures, Path(out))))


def _images(vae: Any, model: str, num: int, split: Split = "test", **where: Any) -> Tensor:
    """The first ``num`` images of a split, uint8, on the model's device.

    Args:
        split: train, val or test.
    """
    at_least(1, num=num)
    images = data_of(model, image_shape=vae.image_shape, **where).images(split)
    return images[:num].to(next(vae.parameters()).device)
