"""Images as tensors (``ImageSets``) and in batches for training (``ImageDataModule``)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resvae.data.sets import ImageSets, Split
from resvae.data.sources import Images

if TYPE_CHECKING:
    from resvae.data.module import ImageDataModule

__all__ = ["ImageDataModule", "ImageSets", "Images", "Split"]


def __getattr__(name: str) -> Any:
    """Import Lightning only for the class that needs it."""
    if name == "ImageDataModule":
        return import_module("resvae.data.module").ImageDataModule
    raise AttributeError(f"module {__name__} has no attribute {name}")
