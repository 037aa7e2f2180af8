"""Whether it pays to compile a run: the run must be long, and there must be a compiler."""

import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resvae.training.memory import imitate

COMPILERS = ("g++", "clang++", "c++", "cl")
# By device: FLOP/s that a run is taken to reach, to tell how long it will be, and the seconds from which on compiling,
# which takes one or two minutes on a CPU, is paid back.
RATES = {"cpu": 1e11, "cuda": 1e13}
REPAYS = {"cpu": 900.0, "cuda": 300.0}


def missing_compiler(device: str) -> str | None:
    """What is missing for compiling, or None."""
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if any(shutil.which(name) for name in (os.environ.get("CXX"), *COMPILERS) if name):
        return None
    return "there is no C++ compiler"


def expected_seconds(
    model: nn.Module, objective: Callable[[Tensor], Any], batch: Tensor, steps: float, device: str
) -> float:
    """About how long a run of so many updates is, from the FLOPs of one; a backward pass takes twice a forward one."""
    if not math.isfinite(steps):
        return math.inf
    counter = FlopCounterMode(display=False)
    imitate(model, objective, batch, False, counter)
    return steps * 3 * counter.get_total_flops() / RATES[device]


def choose(
    model: nn.Module,
    objective: Callable[[Tensor], Any],
    batch: Tensor,
    steps: float,
    seconds: float | None,
    device: str,
) -> tuple[bool, str]:
    """Whether to compile, and why, as a sentence.

    Args:
        model: that trains.
        objective: of its images.
        batch: uint8 ``[B, C, H, W]``; its shape counts.
        steps: updates of the run.
        seconds: the time that the run has, if that is limited.
        device: the type of the device that it trains on.
    """
    if device not in REPAYS:
        return False, f"not compiled: on {device} it is not tried"
    expected = expected_seconds(model, objective, batch, steps, device)
    length = min(expected, math.inf if seconds is None else seconds)
    minutes = math.ceil(min(length, 1e9) / 60)
    told = "without an end" if math.isinf(length) else f"of {minutes:,} minute{'s' * (minutes != 1)} at the most"
    if length < REPAYS[device]:
        return False, f"not compiled: a run {told} does not pay it back (model.compile true does it all the same)"
    if reason := missing_compiler(device):
        return False, f"not compiled: {reason}"
    return True, f"compiled, which takes a minute or two: the run is one {told} (model.compile false leaves it out)"
