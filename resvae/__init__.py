# ruff: noqa: F401  (names imported for type checkers and editors alone)
"""Residual variational autoencoders of any depth: train, sample and reuse them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time each name is imported when it is first used
    from resvae.data import ImageDataModule
    from resvae.models import (
        VAE,
        HierarchicalVAE,
        ImageModel,
        ImageVAE,
        LatentMap,
        ReferenceVAE,
        ResNetClassifier,
        register,
    )
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

ROOMS = {
    "models": "VAE HierarchicalVAE ImageModel ImageVAE LatentMap ReferenceVAE ResNetClassifier register",
    "networks": "BlockConfig Highway Residual ResidualGRUCell ResNetDecoder ResNetEncoder ShortcutGate",
    "storage": "load save",
    "data": "ImageDataModule",
    "training": "LitClassifier LitVAE",
}
__all__ = [name for names in ROOMS.values() for name in names.split()]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Fetch a public name, or the version of the installed package, when it is first used."""
    if name == "__version__":
        return import_module("importlib.metadata").version("resvae")
    for room, names in ROOMS.items():
        if name in names.split():
            return getattr(import_module(f"resvae.{room}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
