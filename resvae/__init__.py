"""Residual variational autoencoders of any depth: train, sample and reuse them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resvae.data import ImageDataModule
    from resvae.models import VAE, HierarchicalVAE, ImageModel, ImageVAE, ReferenceVAE, ResNetClassifier, register
    from resvae.networks import (
        BlockConfig,
        Highway,
        Residual,
        ResidualGRUCell,
        ResNetDecoder,
        ResNetEncoder,
        ShortcutGate,
    )
    from resvae.storage import load, save
    from resvae.training import LitClassifier, LitVAE

# Where each name lives; it is imported when it is first used, so that a name costs only what it needs.
_ROOMS = {
    "models": ("VAE", "HierarchicalVAE", "ImageModel", "ImageVAE", "ReferenceVAE", "ResNetClassifier", "register"),
    "networks": (
        "BlockConfig",
        "Highway",
        "ResNetDecoder",
        "ResNetEncoder",
        "Residual",
        "ResidualGRUCell",
        "ShortcutGate",
    ),
    "storage": ("load", "save"),
    "data": ("ImageDataModule",),
    "training": ("LitClassifier", "LitVAE"),
}
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "VAE",
    "BlockConfig",
    "HierarchicalVAE",
    "Highway",
    "ImageDataModule",
    "ImageModel",
    "ImageVAE",
    "LitClassifier",
    "LitVAE",
    "ReferenceVAE",
    "ResNetClassifier",
    "ResNetDecoder",
    "ResNetEncoder",
    "Residual",
    "ResidualGRUCell",
    "ShortcutGate",
    "load",
    "register",
    "save",
]


def __getattr__(name: str) -> Any:
    """Fetch a public name, or the version of the installed package, when it is first used."""
    if name == "__version__":
        return import_module("importlib.metadata").version("resvae")
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"resvae.{room}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
