"""The learning rate over time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from resvae.errors import ResvaeError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then constant, cosine, or halved when the validation loss stalls.

    Args:
        kind: ``constant``; ``cosine`` down to ``final`` times the rate at the last step; ``plateau`` (the article's).
        warmup_steps: updates of linear warm-up; not with ``plateau``.
        final: where ``cosine`` ends, as a share of the rate.
        factor, patience, min_lr: ``plateau``: multiply by ``factor`` after ``patience`` epochs without progress.
    """

    kind: Literal["constant", "cosine", "plateau"] = "cosine"
    warmup_steps: int = 100
    final: float = 0.0
    factor: float = 0.5
    patience: int = 25
    min_lr: float = 1e-6

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ResvaeError(f"schedule.warmup_steps: {self.warmup_steps} is not allowed; 0 or more")
        if self.kind == "plateau" and self.warmup_steps:
            raise ResvaeError(
                f"schedule.warmup_steps: {self.warmup_steps} is not allowed with kind plateau; set it to 0"
            )

    def at(self, total_steps: float) -> Callable[[int], float]:
        """The factor on the learning rate as a function of the update's number."""
        if self.kind == "cosine" and not math.isfinite(total_steps):
            raise ResvaeError("schedule.kind: cosine needs an end; set trainer.max_epochs or trainer.max_steps")

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
            if self.kind != "cosine":
                return warm
            progress = (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
            return warm * (self.final + (1 - self.final) * cosine)

        return factor
