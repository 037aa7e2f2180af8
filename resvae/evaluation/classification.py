"""How often a classifier is wrong."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.evaluation.measure import Asked, Measure, always


@always
class Classification(Measure):
    """The share of errors, and the cross-entropy in nats per image."""

    field = "classifier"

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, asked: Asked, x: Any, y: Tensor | None) -> None:
        if y is None:
            raise ResvaeError("images: batches without labels are not allowed for a classifier; give (images, labels)")
        self._logits.append(asked.model(x).cpu())
        self._labels.append(y.cpu())

    def finish(self, asked: Asked, samples: Tensor) -> None:
        logits, y = torch.cat(self._logits), torch.cat(self._labels)
        asked.model.check_labels(y, asked.sets.name if asked.sets else "the batches")
        error = (logits.argmax(1) != y).double().mean().item()
        self._fields = {"error": error, "loss": F.cross_entropy(logits.double(), y).item()}
        self._logits, self._labels = [], []

    def fields(self) -> dict[str, Any]:
        return self._fields

    def rows(self) -> list[tuple[str, str]]:
        error, loss = self._fields["error"], self._fields["loss"]
        return [("error, %", f"{100 * error:.2f}"), ("cross-entropy, nats", f"{loss:.4f}")]

    def headlines(self) -> tuple[str, ...]:
        return ("error",)
