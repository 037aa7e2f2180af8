"""``resvae evaluate``: the figures of a trained model."""

from functools import partial
from typing import Any

from resvae import evaluation
from resvae.data import Split
from resvae.files import writable
from resvae.models import ImageVAE, ResNetClassifier
from resvae.progress import progress
from resvae.runs.data import data_of
from resvae.storage import load_as


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
        probe: train linear classifiers on the latents and features.
        probe_images: training images of the probe, at most.
        data: the data set; default: the run's own.
        path: of the folder or .npz; default: the run's own.
        root: where data sets are; default: the run's own, or ``data``.
        split: train, val or test.
        out: a .json in a folder that exists; the table (.md) and a page of plots (.png) go beside it.
    """
    written_to = None if out is None else writable(out, ".json")
    vae, network = load_as(model, ImageVAE), None
    if features != "none":
        judge = partial(load_as, kind=ResNetClassifier, field="features")
        network = (
            features,
            evaluation.feature_network(features, vae.image_shape, judge).to(next(vae.parameters()).device),
        )
    report = evaluation.evaluate(
        vae,
        data_of(model, data, path, root, vae.image_shape),
        split=split,
        features=network,
        probe_images=probe_images if probe else None,
        pictures=out is not None,
        more=(),  # classes; given here so that they are no option of the command line
        source=model,
        track=progress,
        **measure,
    )
    print(report.table())
    if written_to is not None:
        print("\n".join(f"wrote {each}" for each in evaluation.write_report(report, written_to)))
