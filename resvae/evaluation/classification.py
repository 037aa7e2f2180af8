"""How often a classifier is wrong."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.evaluation.measure import Asked, Found, Measure, always


@always
class Classification(Measure):
    """The share of errors, and the cross-entropy in nats per image."""

    field = "classifier"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, x: Any, y: Tensor | None) -> None:
        """Keep a batch's logits and labels."""
        if y is None:
            raise ResvaeError("images: batches without labels are not allowed for a classifier; give (images, labels)")
        self._logits.append(self.asked.model(x).cpu())
        self._labels.append(y.cpu())

    def finish(self) -> Found:
        """The share of errors and the cross-entropy."""
        logits, y = torch.cat(self._logits), torch.cat(self._labels)
        self.asked.model.check_labels(y, self.asked.sets.name if self.asked.sets else "the batches")
        error = (logits.argmax(1) != y).double().mean().item()
        loss = F.cross_entropy(logits.double(), y).item()
        rows = [("error, %", f"{100 * error:.2f}"), ("cross-entropy, nats", f"{loss:.4f}")]
        return Found({"error": error, "loss": loss}, rows, ("error",))
