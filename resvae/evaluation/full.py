"""All that is known to measure, on one data set: what ``resvae evaluate`` does."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from resvae.data import ImageSets, Split
from resvae.errors import ResvaeError, at_least
from resvae.evaluation.distances import distances, generate
from resvae.evaluation.grids import beside, image_grid
from resvae.evaluation.neighbours import neighbours as measure_neighbours
from resvae.evaluation.probe import probe
from resvae.evaluation.report import Report, evaluate
from resvae.isolation import isolated
from resvae.models import ImageVAE

BATCH = 250
SHOWN = 64  # samples on the page
NEAREST = 1000  # samples, and test images, whose nearest training image is sought
ROWS, COLUMNS = 8, 8  # of the page's grids of reconstructions and neighbours


def full_report(
    vae: ImageVAE,
    data: ImageSets,
    split: Split = "test",
    *,
    num: int | None = None,
    seed: int = 0,
    features: tuple[str, nn.Module] | None = None,
    num_generated: int | None = None,
    probe_images: int | None = None,
    neighbours: bool = False,
    track: Callable[[Iterable[Any], str], Iterable[Any]] = lambda items, what: items,
    **bounds: Any,
) -> tuple[Report, dict[str, Tensor]]:
    """Measure a model on the images of a split.

    Args:
        num: how many images, the first; all unless told.
        seed: of all noise.
        features: a network's name and the network, for FID, KID and neighbours; none unless told.
        num_generated: samples for FID and KID; as many as images unless told.
        probe_images: training images of the linear probe, at most; no probe unless told.
        neighbours: whether to look for the training images nearest to samples.
        track: wraps long work, of the name given, to show its progress.
        **bounds: as ``evaluate`` has them: ``num_samples``, ``iw_images``, ``source``.

    Returns:
        The report, and pictures ``[3, H, W]`` by their titles.

    Raises:
        ResvaeError: a number under 1; a probe or neighbours of the training images themselves.
    """
    at_least(1, num=num, probe_images=probe_images)
    at_least(2, num_generated=num_generated)
    if split == "train" and (neighbours or probe_images is not None):
        raise ResvaeError("split: train is not allowed with a probe or neighbours, which hold images against it")
    start = time.perf_counter()
    device = next(vae.parameters()).device
    x = data.images(split)[:num]
    batches = x.split(BATCH)
    report = evaluate(vae, track(batches, "evaluating"), seed=seed, data=data.name, split=split, **bounds)
    if features is not None:
        name, network = features
        real = (batch.to(device) for batch in track(batches, "features"))
        generated = track(generate(vae, num_generated or len(x), seed, BATCH), "generating")
        report = replace(report, distances=distances(network, real, generated, name, seed))
    if probe_images is not None:
        train = data.images("train")[:probe_images], data.labels("train")[:probe_images]
        report = replace(report, probe=probe(vae, train, (x, data.labels(split)[:num]), seed, BATCH))
    samples = torch.cat(list(generate(vae, NEAREST if neighbours else SHOWN, seed, BATCH)))
    with isolated(vae, seed):
        pairs = beside(x[: ROWS * COLUMNS // 2] / 255, vae.reconstruct(x[: ROWS * COLUMNS // 2].to(device)).cpu())
    pictures = {
        "samples, the mean of p(x|z)": image_grid(samples[:SHOWN].cpu() / 255, COLUMNS),
        "images, each row over its reconstructions": image_grid(pairs, COLUMNS),
    }
    if neighbours:
        for space, network in (("pixels", None), *((features,) if features else ())):
            found, rows = measure_neighbours(
                samples, x[:NEAREST].to(device), data.images("train"), space, network, ROWS, COLUMNS - 1
            )
            report = replace(report, neighbours=(*report.neighbours, found))
            pictures[f"sample | its nearest training images ({space})"] = image_grid(rows, COLUMNS)
    return replace(report, seconds=time.perf_counter() - start), pictures
