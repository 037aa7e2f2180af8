"""How often a classifier is wrong, with the protocol that gave it."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.isolation import isolated
from resvae.models import ResNetClassifier
from resvae.provenance import origin

BATCH = 250


@dataclass(frozen=True)
class Classification:
    """What was measured of a classifier, and how."""

    model: str
    arguments: dict[str, Any] | None  # the constructor's; None around a given encoder
    source: str | None  # of the weights: a run, a file or a name
    parameters: int
    data: str | None
    split: str | None
    images: int
    error: float  # share of the images
    loss: float  # cross-entropy, nats an image
    hardware: str
    torch: str
    resvae: str
    commit: str | None  # of the checkout that the package lies in

    def json(self) -> str:
        """All fields, indented."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """A Markdown table, a figure a row."""
        images = " ".join(part for part in (f"{self.images:,}", self.data, self.split, "images") if part)
        return (
            f"| {self.model}, {self.parameters:,} parameters, {images} | |\n|-|-|\n"
            f"| error, % | {100 * self.error:.2f} |\n| cross-entropy, nats | {self.loss:.4f} |"
        )

    def protocol(self) -> str:
        """How the figures were obtained: a Markdown list."""
        told = ", ".join(f"{name}={value}" for name, value in (self.arguments or {}).items())
        at = f" at {self.commit}" if self.commit else ""
        return f"- {self.model}: {told}\n- {self.hardware}, torch {self.torch}, resvae {self.resvae}{at}"


def check_labels(classifier: ResNetClassifier, y: Tensor, data: str | None) -> None:
    """Raise ``ResvaeError`` where a data set's labels ``[N]`` are not some of a classifier's, or all are the same."""
    classes = classifier.classifier.out_features
    if not len(y) or y.min() < 0 or y.max() >= classes:
        raise ResvaeError(f"data: the labels of {data} are not allowed; 0 to {classes - 1}, of one image or more")
    if len(y) > 1 and y.min() == y.max():
        raise ResvaeError(f"data: the images of {data} are not labelled, or all alike; two classes or more are needed")


def classify(
    classifier: ResNetClassifier,
    x: Tensor,
    y: Tensor,
    *,
    source: str | None = None,
    data: str | None = None,
    split: str | None = None,
) -> Classification:
    """Count a classifier's errors.

    Args:
        classifier: put into eval mode, and back.
        x, y: uint8 images ``[N, C, H, W]`` and labels ``[N]``.
        source, data, split: for the record.

    Raises:
        ResvaeError: images without labels, of one class alone, or of more classes than the classifier has.
    """
    check_labels(classifier, y, data)
    with isolated(classifier, 0) as device:
        logits = torch.cat([classifier(images.to(device)).cpu() for images in x.split(BATCH)])
    return Classification(
        model=type(classifier).__name__,
        arguments=classifier.arguments,
        source=source,
        parameters=sum(p.numel() for p in classifier.parameters()),
        data=data,
        split=split,
        images=len(x),
        error=(logits.argmax(1) != y).double().mean().item(),
        loss=F.cross_entropy(logits.double(), y).item(),
        **origin(device),
    )
