"""What the tests of data share."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

GREY = np.zeros((20, 4, 4), np.uint8)


def npz(path: Path, **arrays: Any) -> str:
    """The path of a new .npz of these arrays."""
    np.savez(path / "set.npz", **arrays)
    return str(path / "set.npz")


def rows(x: torch.Tensor) -> list[bytes]:
    """Each image as bytes, to be counted."""
    return [image.numpy().tobytes() for image in x]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Whether two lists of batches are equal."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
