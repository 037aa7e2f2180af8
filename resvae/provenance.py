"""Where figures come from: the machine and the code that measured them."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def hardware(device: torch.device) -> str:
    """The name of the accelerator, or of the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def origin(device: torch.device) -> dict[str, Any]:
    """The fields of a report that state its origin: ``hardware``, ``torch``, ``resvae`` (versions), ``commit``."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "resvae": version("resvae"),
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the checkout that tracks this file; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
