"""Models: where networks and probability meet."""

from resvae.models.base import Encoded, ImageModel, ImageVAE
from resvae.models.classifier import ResNetClassifier
from resvae.models.hierarchical import HierarchicalVAE
from resvae.models.latent_map import LatentMap
from resvae.models.reference import ReferenceVAE
from resvae.models.registry import MODELS, register
from resvae.models.vae import VAE, OneLatentVAE

__all__ = [
    "MODELS",
    "VAE",
    "Encoded",
    "HierarchicalVAE",
    "ImageModel",
    "ImageVAE",
    "LatentMap",
    "OneLatentVAE",
    "ReferenceVAE",
    "ResNetClassifier",
    "register",
]
