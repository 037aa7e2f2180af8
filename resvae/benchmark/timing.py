"""Seconds of cases that take turns in one process, so that all of them meet the same machine; FLOPs and memory.

Torch's internals used here: ``profile.profiler.kineto_results``, for the memory events.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """What is timed.

    Args:
        name: in the tables.
        step: does it once.
        images: of each step.
        flops: of each step's convolutions and matrix products, two per multiplication and addition.
    """

    name: str
    step: Step
    images: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Timed:
    """A case's seconds per step: the median over the rounds, and the smallest and the largest."""

    case: Case
    seconds: float
    low: float
    high: float

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.case.images / self.seconds

    @property
    def flops_per_second(self) -> float:
        """At the median."""
        return self.case.flops / self.seconds


def take_turns(cases: Sequence[Case], device: torch.device, seconds: float, rounds: int = 5) -> list[Timed]:
    """Time the cases in turns, ``rounds`` times after a first step that does not count, for ``seconds`` in all."""
    for case in cases:
        case.step()
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, found in zip(cases, times, strict=True):
            found.append(per_step(case.step, device, seconds / rounds / len(cases)))
    return [
        Timed(case, statistics.median(found), min(found), max(found)) for case, found in zip(cases, times, strict=True)
    ]


def per_step(step: Step, device: torch.device, seconds: float) -> float:
    """Seconds per step, over about so many seconds and one step at least."""
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    start, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - start < seconds:
        step()
        steps += 1
        if steps % 8 == 0:
            wait()
    wait()
    return (time.perf_counter() - start) / steps


def flops_of(step: Step) -> int:
    """The FLOPs of one step as torch counts them; of what is not compiled."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_memory(step: Step, device: torch.device) -> int:
    """The most bytes that tensors made during one step take at once, of what is alive before it nothing."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
