"""Residual variational autoencoders of any depth: train, sample and reuse them."""

from resvae.data import ImageDataModule
from resvae.models import VAE, HierarchicalVAE, ImageVAE, ReferenceVAE, ResNetClassifier
from resvae.networks import BlockConfig, Highway, Residual, ResidualGRUCell, ResNetDecoder, ResNetEncoder, ShortcutGate
from resvae.storage import load, save
from resvae.training import LitClassifier, LitVAE

__version__ = "0.1.0"
__all__ = [
    "VAE",
    "BlockConfig",
    "HierarchicalVAE",
    "Highway",
    "ImageDataModule",
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
    "save",
]
