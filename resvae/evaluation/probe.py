"""What a linear classifier reads from a model's representations."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resvae.errors import ResvaeError, one_line
from resvae.evaluation.measure import BATCH, Asked, Found, Measure
from resvae.isolation import isolated
from resvae.models import ImageVAE
from resvae.networks import ResNetEncoder

LIMIT = 4096  # dimensions; longer vectors are projected at random to this many
STRENGTHS = (1e-4, 1e-2, 1.0)  # C of the regression: a long vector needs less than a short one


@dataclass(frozen=True)
class ProbeScore:
    """The accuracy on test images of one representation."""

    representation: str
    dimensions: int  # that the regression saw
    accuracy: float


@dataclass(frozen=True)
class Probe:
    """Logistic regression on standardised features, its C chosen on a fifth of the training images."""

    train_images: int
    test_images: int
    classes: int
    scores: tuple[ProbeScore, ...]


def probe(
    vae: ImageVAE, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int = 0, batch_size: int = BATCH
) -> Probe:
    """Train a linear classifier on each of a model's representations, and on the raw pixels.

    Args:
        vae: the model; its first ``ResNetEncoder`` gives the feature maps.
        train, test: images ``[N, C, H, W]`` and labels ``[N]``.
        seed: of the projections, the split that chooses C, and what noise the model draws.

    Raises:
        ResvaeError: a model without a ``ResNetEncoder``; labels of one class only, as unlabelled sets have.
    """
    (x, y), (test_x, test_y) = train, test
    labels, test_labels = y.numpy(), test_y.numpy()
    if len(np.unique(labels)) < 2:
        raise ResvaeError("probe: all training images have one label; a data set with labels is needed")
    features: list[dict[str, np.ndarray]] = []
    for images in (x, test_x):
        batches = [representations(vae, part, seed) for part in images.split(batch_size)]
        features.append({name: shortened(torch.cat([h[name] for h in batches]).numpy(), seed) for name in batches[0]})
    scores = [
        ProbeScore(name, h.shape[1], linear_probe(h, labels, features[1][name], test_labels, seed))
        for name, h in features[0].items()
    ]
    return Probe(len(x), len(test_x), len(np.unique(labels)), tuple(scores))


def linear_probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int) -> float:
    """The test accuracy of logistic regression on features ``[N, F]``."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, ShuffleSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    fifth = ShuffleSplit(1, test_size=0.2, random_state=seed)
    search: Any = GridSearchCV(regression, {"logisticregression__C": STRENGTHS}, cv=fifth)
    try:
        search.fit(train, labels)
    except ValueError as error:  # one class alone is left for one of the two parts
        raise ResvaeError(f"probe: {len(train)} training images are too few ({one_line(error)})") from error
    return float(search.score(test, test_labels))


def representations(vae: ImageVAE, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Representations of images by their names, each ``[B, F]``, on the CPU."""
    encoder = next((module for module in vae.modules() if isinstance(module, ResNetEncoder)), None)
    if encoder is None:
        raise ResvaeError(f"probe: {type(vae).__name__} has no ResNetEncoder to read feature maps from")
    maps: list[Tensor] = []  # read by hooks: the model scales and feeds its encoder in its own way
    stages = [*list(encoder.stages)[:-1], encoder.final]
    hooks = [stage.register_forward_hook(lambda *given: maps.append(given[2].mean((2, 3)))) for stage in stages]
    try:
        with isolated(vae, seed) as device:
            mean = vae.posterior(x.to(device)).mean
    finally:
        for hook in hooks:
            hook.remove()
    found = {
        "posterior mean": mean.flatten(1),
        "encoder, last map": maps[-1],
        "encoder, all stages": torch.cat(maps, 1),
        "raw pixels": x.flatten(1),
    }
    return {name: h.float().cpu() for name, h in found.items()}


def shortened(x: np.ndarray, seed: int) -> np.ndarray:
    """``[N, F]``; of more than ``LIMIT`` columns, a sparse random projection (Li 2006) that nearly keeps distances."""
    from sklearn.random_projection import SparseRandomProjection

    components: Any = LIMIT  # scikit-learn's own annotation knows its default only, a string
    if x.shape[1] <= LIMIT:
        return x
    return SparseRandomProjection(components, dense_output=True, random_state=seed).fit_transform(x)


class LinearProbe(Measure):
    """What a linear classifier reads, where a number of training images is given."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        if asked.probe_images is not None:
            asked.train()

    def finish(self, samples: Tensor) -> Found:
        asked = self.asked
        if asked.probe_images is None:
            return Found({"probe": None})
        p = probe(asked.model, asked.train(asked.probe_images), asked.tested(), asked.seed)
        rows = [
            (f"linear probe, {score.representation} ({score.dimensions:,})", f"{100 * score.accuracy:.1f} %")
            for score in p.scores
        ]
        protocol = (
            f"linear probe: logistic regression on standardised features, {p.classes} classes, trained on "
            f"{p.train_images:,} training images, C chosen on a fifth of them, tested on {p.test_images:,} images; "
            f"in brackets the dimensions (over {LIMIT:,}: projected at random to this many)"
        )
        return Found({"probe": p}, rows, protocol=(protocol,))
