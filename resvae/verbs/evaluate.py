"""``resvae evaluate``: the figures of a trained model."""

from pathlib import Path
from typing import Any

from resvae.data import Split
from resvae.evaluation import feature_network, full_report, write_report
from resvae.files import writable
from resvae.progress import progress
from resvae.runs.data import data_of
from resvae.storage import load, load_vae


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
