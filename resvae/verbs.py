"""What the verbs do that use a trained model: every function's signature is its options on the command line."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "val", "test"]


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
    import torch

    from resvae.errors import ResvaeError
    from resvae.evaluation import save_grid

    if num < 1:
        raise ResvaeError(f"num: {num} is not allowed; at least 1")
    _writable(out)
    vae = _load(model)
    torch.manual_seed(seed)
    chunks = [min(256, num - i) for i in range(0, num, 256)]
    images = [vae.sample(n, temperature, pixel_noise).cpu() for n in _progress(chunks, "sampling")]
    print(f"wrote {save_grid(torch.cat(images), out)}")


def reconstruct(
    model: str,
    num: int = 32,
    data: str | None = None,
    path: str | None = None,
    root: str = "data",
    split: Split = "test",
    out: str = "reconstructions.png",
) -> None:
    """Write images, each row over its reconstructions.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num: how many.
        data: the data set; a run's own unless told.
        path: of the folder or .npz, for the data sets of those names.
        root: where data sets are.
        split: train, val or test.
        out: a .png in a folder that exists.
    """
    from resvae.evaluation import beside, save_grid

    _writable(out)
    vae = _load(model)
    x = _images(vae, model, num, data, path, root, split)
    print(f"wrote {save_grid(beside(x.cpu() / 255, vae.reconstruct(x).cpu()), out, min(8, len(x)))}")


def interpolate(
    model: str,
    steps: int = 8,
    num: int = 8,
    data: str | None = None,
    path: str | None = None,
    root: str = "data",
    split: Split = "test",
    out: str = "interpolations.png",
) -> None:
    """Write rows of images from one image to another, along a line between their latents.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        steps: images a row, both ends included.
        num: rows.
        data: the data set; a run's own unless told.
        path: of the folder or .npz, for the data sets of those names.
        root: where data sets are.
        split: train, val or test.
        out: a .png in a folder that exists.
    """
    from resvae.evaluation import save_grid

    _writable(out)
    vae = _load(model)
    x = _images(vae, model, 2 * num, data, path, root, split)
    rows = vae.interpolate(x[: len(x) // 2], x[len(x) // 2 : len(x) // 2 * 2], steps)
    print(f"wrote {save_grid(rows.flatten(0, 1).cpu(), out, steps)}")


def evaluate(
    model: str,
    num_samples: int = 1,
    num: int | None = None,
    iw_images: int | None = None,
    features: str = "none",
    num_generated: int | None = None,
    probe: bool = False,
    probe_images: int = 10_000,
    neighbours: bool = False,
    data: str | None = None,
    path: str | None = None,
    root: str = "data",
    split: Split = "test",
    seed: int = 0,
    out: str | None = None,
) -> None:
    """Measure a model: bounds, KL, active units, PSNR, SSIM, and on request FID, KID, a linear probe, neighbours.

    Args:
        model: a run's folder, a .ckpt, a saved folder or the name of shipped weights.
        num_samples: the largest k of the importance-weighted bound; 1, 10, 100, ... under it are told too.
        num: how many images, the first; all unless told.
        iw_images: how many of them the importance-weighted bound is taken of; all unless told.
        features: the network of FID and KID: none, inception, or a MODEL that is a ResNetClassifier.
        num_generated: samples for FID and KID; as many as images unless told.
        probe: whether to train linear classifiers on the representations.
        probe_images: training images of the probe, at most.
        neighbours: whether to look for the training images nearest to samples.
        data: the data set; a run's own unless told.
        path: of the folder or .npz, for the data sets of those names.
        root: where data sets are.
        split: train, val or test.
        seed: of all noise.
        out: a .json in a folder that exists; the table (.md) and a page of plots (.png) go beside it.
    """
    from resvae.errors import ResvaeError
    from resvae.evaluation import feature_network, full_report, write_report
    from resvae.storage import load
    from resvae.training.run import data_of

    if out is not None:
        _writable(out)
        if Path(out).suffix != ".json":
            raise ResvaeError(f"out: {out} is not allowed; end it with .json")
    vae = _load(model)
    network = None
    if features != "none":
        network = features, feature_network(features, vae.image_shape, load).to(next(vae.parameters()).device)
    report, pictures = full_report(
        vae,
        data_of(model, data, path, root, vae.image_shape),
        split,
        source=model,
        num=num,
        num_samples=num_samples,
        iw_images=iw_images,
        seed=seed,
        features=network,
        num_generated=num_generated,
        probe_images=probe_images if probe else None,
        neighbours=neighbours,
        track=_progress,
    )
    print(report.table())
    if out is not None:
        print("\n".join(f"wrote {path}" for path in write_report(report, pictures, Path(out))))


def export(
    run: str,
    out: str,
    half: bool = False,
    num_samples: int = 1,
    iw_images: int | None = None,
    data: str | None = None,
    path: str | None = None,
    root: str = "data",
) -> None:
    """Write a run's best model as a folder to give away: weights, configuration, scores on the test images, a card.

    Args:
        run: its folder.
        out: the new folder; its name is the model's.
        half: keep the weights in float16.
        num_samples: the largest k of the importance-weighted bound.
        iw_images: how many test images that bound is taken of; all unless told.
        data: the data set; the run's own unless told.
        path: of the folder or .npz, for the data sets of those names.
        root: where data sets are.
    """
    from resvae.training.export import export as write
    from resvae.training.run import data_of

    _writable(out)
    images = data_of(run, data, path, root, _load(run).image_shape)
    report = write(Path(run), images, Path(out), half=half, num_samples=num_samples, iw_images=iw_images)
    print(f"{report.table()}\nwrote {out}")


def _load(model: str) -> Any:
    import torch

    from resvae.errors import ResvaeError
    from resvae.models import ImageVAE
    from resvae.storage import load

    vae = load(model)
    if not isinstance(vae, ImageVAE):
        raise ResvaeError(f"model: {model} is a {type(vae).__name__}, not a VAE")
    return vae.to("cuda" if torch.cuda.is_available() else "cpu")


def _images(vae: Any, model: str, num: int | None, data: str | None, path: str | None, root: str, split: Split) -> Any:
    """The first ``num`` images of a split, uint8, on the model's device."""
    from resvae.errors import ResvaeError
    from resvae.training.run import data_of

    if num is not None and num < 1:
        raise ResvaeError(f"num: {num} is not allowed; at least 1")
    module = data_of(model, data, path, root, vae.image_shape)
    return module.images(split)[:num].to(next(vae.parameters()).device)


def _writable(out: str) -> None:
    from resvae.errors import ResvaeError

    folder = Path(out).parent
    if not folder.is_dir():
        raise ResvaeError(f"out: {out} cannot be written; the folder {folder} does not exist")


def _progress(items: Iterable[Any], what: str) -> Iterator[Any]:
    from rich.progress import track

    return iter(track(items, what, transient=True, disable=not sys.stderr.isatty()))
