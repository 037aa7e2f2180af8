"""The public door for images: what comes in is checked once, here, and becomes float32 in [0, 1]."""

import torch
from torch import Tensor

from resvae.errors import ResvaeError


def to_unit(x: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Images as float32 in [0, 1].

    Args:
        x: uint8 in 0..255 or float in [0, 1], ``[B, C, H, W]``.
        image_shape: ``(C, H, W)`` that the model takes.

    Returns:
        float32 ``[B, C, H, W]``.

    Raises:
        ResvaeError: another shape, another type, values outside [0, 1], or NaN.
    """
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(image_shape):
        raise ResvaeError(
            f"images: shape {tuple(x.shape)} does not fit this model, which takes (batch, "
            + ", ".join(map(str, image_shape))
            + ")"
        )
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise ResvaeError(f"images: type {x.dtype} is not allowed; give uint8 in 0..255 or floats in [0, 1]")
    # The check reads two numbers back from the device; a compiled graph cannot, and training feeds uint8 anyway.
    if not torch.compiler.is_compiling() and x.numel():
        low, high = x.aminmax()
        if not (low >= 0 and high <= 1):
            raise ResvaeError(
                f"images: values from {low.item():.4g} to {high.item():.4g} are not allowed; floats must lie in [0, 1]"
            )
    return x.float()
