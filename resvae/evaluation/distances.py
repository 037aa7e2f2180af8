"""Fréchet and kernel distances between real and generated images, in the features of a network of your choice."""

import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resvae.errors import ResvaeError, one_line
from resvae.evaluation.measure import BATCH, Asked, Found, Measure
from resvae.isolation import isolated

KID_SUBSET = 1000


@dataclass(frozen=True)
class Distances:
    """How far generated images lie from real ones. Figures of different networks do not compare."""

    features: str  # the network's name
    num_features: int
    real: int
    generated: int
    pixels: str  # what the generated images are
    fid: float  # Heusel 2017; biased upwards, the more the fewer images
    kid: float  # Bińkowski 2018, unbiased; the mean over 100 random subsets
    kid_deviation: float | None  # over the subsets; None where each holds all images
    kid_subset: int


def distances(
    features: nn.Module,
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    name: str,
    seed: int = 0,
    pixels: str = "as given",
) -> Distances:
    """FID and KID between two sets of images, by torchmetrics.

    ``real`` and ``generated`` are batches of images as the network ``features`` takes them, on its device; it turns
    them into vectors ``[B, F]``. ``seed`` is that of KID's subsets; ``pixels`` says what was generated. Fewer than two
    images raise ``ResvaeError``.
    """
    a, b = ([embedded(features, x) for x in batches] for batches in (real, generated))
    return between(a, b, name, seed, pixels)


def embedded(features: nn.Module, x: Tensor) -> Tensor:
    """The features ``[B, F]`` of images."""
    with isolated(features, 0):
        return features(x)


def between(real: list[Tensor], generated: list[Tensor], name: str, seed: int, pixels: str) -> Distances:
    """As ``distances``, of batches of features."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = (torch.cat(part) if part else torch.zeros(0, 1) for part in (real, generated))
    with torch.random.fork_rng(devices=[a.device] if a.is_cuda else []):
        torch.manual_seed(seed)
        subset = min(KID_SUBSET, len(a), len(b))
        if subset < 2:
            raise ResvaeError(f"images: {len(a)} real and {len(b)} generated are not allowed; at least 2 of each")
        # Both metrics take the features as they are: the network runs once, on images of any size.
        fid = FrechetInceptionDistance(nn.Identity(), input_img_size=(1, 1, a.shape[1])).to(a.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that KID keeps all features: N x F numbers
            kid = KernelInceptionDistance(nn.Identity(), subset_size=subset).to(a.device)
        for metric in (fid, kid):
            metric.update(a, real=True)
            metric.update(b, real=False)
        mean, deviation = kid.compute()
        spread = deviation.item() if subset < max(len(a), len(b)) else None
        figures = fid.compute().item(), mean.item()
        return Distances(name, a.shape[1], len(a), len(b), pixels, *figures, spread, subset)


class GeneratedDistances(Measure):
    """FID and KID of generated images, where a feature network is given."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        if asked.features is not None:
            self.generated = asked.num_generated or len(asked.tested()[0])
        self._made: list[Tensor] = []

    def sampled(self, x: Tensor) -> None:
        """Keep the features of the samples, not the samples."""
        if self.asked.features is not None:
            self._made.append(embedded(self.asked.features[1], x))

    def finish(self) -> Found:
        """FID and KID between the measured images and the samples."""
        if self.asked.features is None:
            return Found({"distances": None})
        name, network = self.asked.features
        device = self.asked.device
        batches = self.asked.track(self.asked.tested()[0].split(BATCH), "features")
        d = between(
            [embedded(network, x.to(device)) for x in batches],
            self._made,
            name,
            self.asked.seed,
            f"{self.asked.pixels}, rounded to uint8",
        )
        deviation = "" if d.kid_deviation is None else f" ± {d.kid_deviation:.2g}"
        rows = [(f"FID (features: {name})", f"{d.fid:.2f}"), (f"KID (features: {name})", f"{d.kid:.4g}{deviation}")]
        protocol = (
            f"FID, KID: features: {name} ({d.num_features}), {d.real:,} real and {d.generated:,} generated "
            f"images ({d.pixels}); KID over 100 subsets of {d.kid_subset:,}"
        )
        return Found({"distances": d}, rows, ("FID",), (protocol,))


class InceptionFeatures(nn.Module):
    """The 2048 features that published FIDs are made of, from uint8 images of 1 or 3 channels."""

    def __init__(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        super().__init__()
        self.inception = FrechetInceptionDistance().inception

    def forward(self, x: Tensor) -> Tensor:
        """uint8 ``x [B, 1 or 3, H, W]`` to Inception's pooled features ``[B, 2048]``."""
        return self.inception(x.expand(-1, 3, -1, -1))


def feature_network(name: str, image_shape: tuple[int, int, int], load: Callable[[str], Any]) -> nn.Module:
    """The network of a name: ``inception``, or the penultimate layer of the ``ResNetClassifier`` from ``load(name)``.

    Raises ``ResvaeError`` for images of a shape that it does not take, and where Inception is not available.
    """
    if name == "inception":
        if image_shape[0] not in (1, 3):
            raise ResvaeError(f"features: inception takes images of 1 or 3 channels; these have {image_shape[0]}")
        try:
            return InceptionFeatures().eval()
        except (ModuleNotFoundError, OSError) as error:
            raise ResvaeError(
                "features: inception needs the package torch-fidelity and its weights, which are downloaded"
                f" ({one_line(error)}); or name a trained ResNetClassifier: --features runs/classifier"
            ) from error
    classifier = load(name)
    if classifier.image_shape != image_shape:
        raise ResvaeError(f"features: {name} takes images {classifier.image_shape}; these are {image_shape}")
    features = deepcopy(classifier)
    features.set_submodule("classifier", nn.Identity())  # what its linear layer sees: the last map's mean, [B, K]
    return features.eval()
