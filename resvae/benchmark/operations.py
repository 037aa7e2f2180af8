"""By which kinds of operation a step spends its time, as torch's profiler sees it."""

import re

import torch
from torch.profiler import ProfilerActivity, profile

from resvae.benchmark.timing import Step

STEPS = 3
# The first pattern that a name contains decides.
KINDS = {
    "convolutions": "convolution",
    "matrix products": r"::(add|b|badd)?b?mm|linear",
    "casts, copies, rearrangement": r"copy|::cat|clone|contiguous|fill_|zero|shuffle|empty|::stack|gather|index",
    "activations, transcendental functions": "(si|re|ge|::e)lu|tanh|sigmoid|softplus|softmax|exp|log|pow|sqrt",
    "random numbers": "normal|rand|bernoulli|uniform",
    "other arithmetic": "aten::|triton|cpp_fused|kernel",
}
REST = "Python, autograd, dispatch"


def by_kind(step: Step, device: torch.device) -> dict[str, float]:
    """Shares of a step's time, which sum to 1; on a GPU, of its kernels' time."""
    step()
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
        if cuda:
            torch.cuda.synchronize(device)
    times: dict[str, float] = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), REST)
        times[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    whole = sum(times.values()) or 1.0
    return {kind: time / whole for kind, time in times.items()}
