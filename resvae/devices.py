"""The device to compute on: what ``RESVAE_DEVICE`` names, or this machine's accelerator, or its CPU."""

import os

import torch
from torch import Tensor

from resvae.environment import DEVICE
from resvae.errors import ResvaeError


def chosen() -> torch.device:
    """The device that was asked for, or the best one that there is.

    Raises:
        ResvaeError: it is not there.
    """
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    name = os.environ.get(DEVICE)
    if not name:
        return best
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except Exception as error:  # each kind of device has its own
        there = sorted({"cpu", best.type})
        raise ResvaeError(f"device: {name} is not here; this machine has {', '.join(there)}") from error
    return device


def double(x: Tensor) -> Tensor:
    """``x`` as float64, on the CPU where its device has none (Apple's)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def reading_waits(device: torch.device) -> bool:
    """Whether reading a number makes the host wait for all that the device has still to do."""
    return device.type != "cpu"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on an accelerator with memory of its own; 0 on others."""
    if device.type not in ("cuda", "xpu"):
        return 0
    return torch.accelerator.get_memory_info(device)[0]
