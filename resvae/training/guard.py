"""When to skip an update: gradients that are not finite, or far outside what training has seen lately."""

import math
import warnings

import torch
from torch import Tensor

from resvae.devices import double
from resvae.errors import ResvaeError

WARM_UP = 50  # updates before the statistics are trusted
DECAY = 0.98  # of the running statistics: they reach back about 50 updates
MIN_FACTOR = 8.0  # a norm of up to 8 times the usual one is always accepted
SPREADS = 6.0
MAX_IN_A_ROW = 3  # finite updates skipped one after another before one is taken all the same
MAX_NON_FINITE = 200  # in a row before training ends with an error
LOOK_EVERY = 50  # updates, where reading a number makes the host wait for its device


class GradientGuard:
    """Compares the gradient norm of each update with the running mean and variance of log-norms.

    There is no fixed threshold that could be wrong for a model or a batch size. The guard cannot skip updates for
    ever: every finite norm enters the statistics, and after ``MAX_IN_A_ROW`` finite skips the next one is taken.

    It judges on the device of the norm, without making the host wait; what it warns of is read when ``look`` is called.

    Args:
        mean, variance: of the log-norms.
        seen: finite norms so far.
        skipped: updates so far, and the norm of the ``last`` of them.
        in_a_row: finite updates that were skipped since the last one that was taken.
        non_finite_in_a_row: norms since the last finite one.
    """

    def __init__(
        self,
        mean: float = 0.0,
        variance: float = 0.0,
        seen: int = 0,
        skipped: int = 0,
        in_a_row: int = 0,
        non_finite_in_a_row: int = 0,
        last: float = 0.0,
    ):
        numbers = [mean, variance, seen, skipped, in_a_row, non_finite_in_a_row, last]
        self._numbers = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        self._told = skipped
        self._since = 0  # judgements since the last look

    def accepts(self, norm: Tensor) -> Tensor:
        """Whether to apply the update whose gradient norm is ``norm``, a scalar: a scalar of bool on its device."""
        self._since += 1
        norm = double(norm)
        mean, variance, seen, skipped, in_a_row, non_finite, last = self._numbers.to(norm.device).unbind()
        finite = norm.isfinite()
        distance = torch.where(finite, norm.clamp(min=1e-30).log() - mean, 0.0)
        limit = (SPREADS * variance.sqrt()).clamp(min=math.log(MIN_FACTOR))
        explodes = (seen >= WARM_UP) & (distance > limit) & (in_a_row < MAX_IN_A_ROW)
        accepted = finite & ~explodes
        # the plain mean at first, an exponential one later
        rate = (1 / (seen + 1)).clamp(min=1 - DECAY) * finite
        self._numbers = torch.stack(
            [
                mean + rate * distance,
                (1 - rate) * (variance + rate * distance**2),
                seen + finite,
                skipped + ~accepted,
                (in_a_row + explodes) * ~accepted,
                (non_finite + 1) * ~finite,
                torch.where(accepted, last, norm),
            ]
        )
        return accepted

    def look(self, every: int = 1) -> None:
        """Read what happened since the last look, and warn when 1, 2, 4, 8 ... updates are skipped.

        Args:
            every: judgements; after fewer than these nothing is read.

        Raises:
            ResvaeError: no gradient was finite for 200 updates in a row; the message says what to change.
        """
        if self._since < every:
            return
        self._since = 0
        now = self.state()
        skipped = int(now["skipped"])
        if skipped.bit_length() > self._told.bit_length():
            usual = math.exp(now["mean"]) if now["seen"] else math.nan
            warnings.warn(
                f"update skipped: gradient norm {now['last']:.3g}, lately about {usual:.3g} ({skipped} skipped so far)",
                GradientWarning,
                stacklevel=2,
            )
        self._told = skipped
        if now["non_finite_in_a_row"] >= MAX_NON_FINITE:
            raise ResvaeError(
                f"training: the gradient was not finite for {MAX_NON_FINITE} updates in a row; "
                "lower the learning rate, or train in float32 (model.precision: fp32)"
            )

    def state(self) -> dict[str, float]:
        """Its arguments, as they are now."""
        mean, variance, *counts, last = self._numbers.tolist()
        seen, skipped, in_a_row, non_finite = map(int, counts)
        named = {"seen": seen, "skipped": skipped, "in_a_row": in_a_row, "non_finite_in_a_row": non_finite}
        return {"mean": mean, "variance": variance, **named, "last": last}

    @property
    def skipped(self) -> int:
        """Updates that were skipped so far."""
        return int(self._numbers[3])


class GradientWarning(UserWarning):
    """An update was skipped."""
