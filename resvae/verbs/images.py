"""The images that a verb is used on."""

from typing import Any

from torch import Tensor

from resvae.data import Split
from resvae.errors import at_least
from resvae.runs.data import data_of


def first_images(vae: Any, model: str, num: int, split: Split = "test", **where: Any) -> Tensor:
    """The first ``num`` images of a split, uint8, on the model's device.

    Args:
        split: train, val or test.
    """
    at_least(1, num=num)
    images = data_of(model, image_shape=vae.image_shape, **where).images(split, num)
    return images.to(next(vae.parameters()).device)
