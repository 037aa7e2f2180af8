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
    """Whether reading a number makes the host wait for all that the device has still to do, and it need not be read.

    On other accelerators torch's kernels are not known to skip an update by themselves.
    """
    return device.type in ("cuda", "meta")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device; 0 on others."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
