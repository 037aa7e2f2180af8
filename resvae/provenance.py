"""Where figures come from: the machine and the code."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def hardware(device: torch.device) -> str:
    """The accelerator, or the processor and how many threads compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def origin(device: torch.device) -> dict[str, Any]:
    """Of a report: ``hardware``, the versions ``torch`` and ``resvae``, and the ``commit``."""
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "resvae": version("resvae"),
        "commit": commit(),
    }


def commit() -> str | None:
    """The checkout's commit, where this very file is tracked in one; an installed package lies in none."""
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
