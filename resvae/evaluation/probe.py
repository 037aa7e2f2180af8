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
    """What a linear classifier reads from a model's representations and from the raw pixels, where it is asked for.

    The model's first ``ResNetEncoder`` gives the feature maps. ``finish`` raises ``ResvaeError`` for a model without
    one, and for labels of one class only, as unlabelled sets have.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        if asked.probe_images is not None:
            asked.train()

    def finish(self) -> Found:
        """Train a linear classifier on each representation, and test it."""
        asked = self.asked
        if asked.probe_images is None:
            return Found({"probe": None})
        (x, y), (test_x, test_y) = asked.train(asked.probe_images), asked.tested()
        if (classes := len(y.unique())) < 2:
            raise ResvaeError("probe: all training images have one label; a data set with labels is needed")
        seen, unseen = (self._features(images) for images in (x, test_x))
        scores, rows = [], []
        for name, h in seen.items():
            accuracy = linear_probe(h, y.numpy(), unseen[name], test_y.numpy(), asked.seed)
            scores.append(ProbeScore(name, h.shape[1], accuracy))
            rows.append((f"linear probe, {name} ({h.shape[1]:,})", f"{100 * accuracy:.1f} %"))
        protocol = (
            f"linear probe: logistic regression on standardised features, {classes} classes, trained on "
            f"{len(x):,} training images, C chosen on a fifth of them, tested on {len(test_x):,} images; "
            f"in brackets the dimensions (over {LIMIT:,}: projected at random to this many)"
        )
        return Found({"probe": Probe(len(x), len(test_x), classes, tuple(scores))}, rows, protocol=(protocol,))

    def _features(self, images: Tensor) -> dict[str, np.ndarray]:
        model, seed = self.asked.model, self.asked.seed
        batches = [representations(model, part, seed) for part in images.split(BATCH)]
        return {name: shortened(torch.cat([h[name] for h in batches]).numpy(), seed) for name in batches[0]}
