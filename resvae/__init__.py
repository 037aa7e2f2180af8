"""Residual variational autoencoders of any depth: train, sample and reuse them."""

from resvae.data import ImageDataModule
from resvae.models import VAE, ImageVAE, ReferenceVAE, ResNetClassifier
from resvae.networks import BlockConfig, Residual, ResNetDecoder, ResNetEncoder
from resvae.storage import load, save
from resvae.training import LitVAE

__version__ = "0.1.0"
__all__ = [
    "VAE",
    "BlockConfig",
    "ImageDataModule",
    "ImageVAE",
    "LitVAE",
    "ReferenceVAE",
    "ResNetClassifier",
    "ResNetDecoder",
    "ResNetEncoder",
    "Residual",
    "load",
    "save",
]
