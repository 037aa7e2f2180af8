"""The learning rate over time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Timer

from resvae.errors import ResvaeError

Kind = Literal["constant", "cosine", "steps", "plateau"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up; then the rate is constant, follows a cosine, or falls in steps or when validation stalls.

    The cosine ends with the run: at its last update or, with ``trainer.max_time``, when its time is over, whichever
    comes first. A rate that follows the clock differs between runs, so that these cannot be repeated bit for bit.

    Args:
        kind: ``constant``; ``cosine`` down to ``final`` times the rate at the end; ``steps``: times
            ``factor`` at each milestone (He 2015); ``plateau`` (the article's).
        warmup_steps: updates of linear warm-up; not with ``plateau``.
        final: where ``cosine`` ends, as a share of the rate.
        milestones: of ``steps``: after how many updates.
        factor: on the rate, of ``steps`` and ``plateau``.
        patience: of ``plateau``: the rate falls after this many epochs without progress.
        min_lr: of ``plateau``: the least rate.
    """

    kind: Kind = "cosine"
    warmup_steps: int = 100
    final: float = 0.0
    milestones: tuple[int, ...] = ()
    factor: float = 0.5
    patience: int = 25
    min_lr: float = 1e-6

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ResvaeError(f"schedule.kind: {self.kind!r} is not allowed; one of {', '.join(KINDS)}")
        if self.warmup_steps < 0:
            raise ResvaeError(f"schedule.warmup_steps: {self.warmup_steps} is not allowed; 0 or more")
        if not 0 < self.factor < 1:
            raise ResvaeError(f"schedule.factor: {self.factor} is not allowed; above 0 and below 1")
        if self.kind == "plateau" and self.warmup_steps:
            raise ResvaeError(
                f"schedule.warmup_steps: {self.warmup_steps} is not allowed with kind plateau; set it to 0"
            )
        if (self.kind == "steps") != bool(self.milestones):
            raise ResvaeError(
                f"schedule.milestones: {self.milestones} is not allowed with kind {self.kind}; "
                "steps needs one or more, the other kinds none"
            )

    def of(self, trainer: pl.Trainer) -> Callable[[int], float]:
        """``at`` for a trainer's updates and time; a resumed run counts its earlier time too."""
        callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        timer = next((callback for callback in callbacks if isinstance(callback, Timer)), None)
        if timer is None or (remaining := timer.time_remaining()) is None:
            return self.at(trainer.estimated_stepping_batches)
        duration = remaining + timer.time_elapsed()

        def elapsed() -> float:
            # The first process's clock: otherwise the processes would train with different rates.
            return trainer.strategy.broadcast(timer.time_elapsed()) / duration

        return self.at(trainer.estimated_stepping_batches, elapsed)

    def at(self, total_steps: float, elapsed: Callable[[], float] | None = None) -> Callable[[int], float]:
        """The factor on the learning rate as a function of the update's number.

        Args:
            total_steps: number of updates of the whole run; infinite where nothing limits it.
            elapsed: the share of the run's time that has passed, 0 to 1, where its time is limited.
        """
        if self.kind == "cosine" and elapsed is None and not math.isfinite(total_steps):
            raise ResvaeError(
                "schedule.kind: cosine needs an end; set trainer.max_epochs, trainer.max_steps or trainer.max_time"
            )

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
            if self.kind == "steps":
                return warm * self.factor ** sum(step >= milestone for milestone in self.milestones)
            if self.kind != "cosine":
                return warm
            progress = (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps)
            progress = max(0.0, progress, elapsed() if elapsed else 0.0)
            return warm * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

        return factor
