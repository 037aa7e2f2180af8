"""Measuring changes nothing: the model's mode and the caller's random stream are restored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def isolated(model: nn.Module, seed: int) -> Iterator[torch.device]:
    """Eval mode, no gradients, and a random stream that starts at ``seed``; yields the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield device
    finally:
        for module, training in modes:
            module.training = training
