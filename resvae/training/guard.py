"""When to skip an update: gradients that are not finite, or far outside what training has seen lately."""

import math
import warnings
from dataclasses import dataclass

from resvae.errors import ResvaeError

WARM_UP = 50  # updates before the statistics are trusted
DECAY = 0.98  # of the running statistics: they reach back about 50 updates
MIN_FACTOR = 8.0  # a norm of up to 8 times the usual one is always accepted
SPREADS = 6.0
MAX_IN_A_ROW = 3  # finite updates skipped one after another before one is taken all the same
MAX_NON_FINITE = 200  # in a row before training ends with an error


@dataclass
class GradientGuard:
    """Compares the gradient norm of each update with the running mean and variance of log-norms.

    There is no fixed threshold that could be wrong for a model or a batch size. The guard cannot skip updates for
    ever: every finite norm enters the statistics, and after ``MAX_IN_A_ROW`` finite skips the next one is taken.
    """

    mean: float = 0.0
    variance: float = 0.0
    seen: int = 0
    skipped: int = 0
    in_a_row: int = 0
    non_finite_in_a_row: int = 0

    def accepts(self, norm: float) -> bool:
        """Whether to apply the update whose gradient norm is ``norm``.

        Raises:
            ResvaeError: no gradient was finite for 200 updates in a row; the message says what to change.
        """
        if not math.isfinite(norm):
            self.non_finite_in_a_row += 1
            if self.non_finite_in_a_row >= MAX_NON_FINITE:
                raise ResvaeError(
                    f"training: the gradient was not finite for {MAX_NON_FINITE} updates in a row; "
                    "lower the learning rate, or train in float32 (model.precision: fp32)"
                )
            return self._skip(norm)
        self.non_finite_in_a_row = 0
        log_norm = math.log(max(norm, 1e-30))
        distance = log_norm - self.mean
        limit = max(SPREADS * math.sqrt(self.variance), math.log(MIN_FACTOR))
        explodes = self.seen >= WARM_UP and distance > limit and self.in_a_row < MAX_IN_A_ROW
        # the plain mean at first, an exponential one later
        rate = max(1 - DECAY, 1 / (self.seen + 1))
        self.mean += rate * distance
        self.variance = (1 - rate) * (self.variance + rate * distance**2)
        self.seen += 1
        if explodes:
            self.in_a_row += 1
            return self._skip(norm)
        self.in_a_row = 0
        return True

    def _skip(self, norm: float) -> bool:
        self.skipped += 1
        if self.skipped & (self.skipped - 1) == 0:  # warns at the 1st, 2nd, 4th, 8th ...
            usual = math.exp(self.mean) if self.seen else float("nan")
            warnings.warn(
                f"update skipped: gradient norm {norm:.3g}, lately about {usual:.3g} ({self.skipped} skipped so far)",
                GradientWarning,
                stacklevel=2,
            )
        return False


class GradientWarning(UserWarning):
    """An update was skipped."""
