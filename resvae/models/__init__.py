"""Models: where networks and probability meet."""

from resvae.models.base import ImageVAE
from resvae.models.classifier import ResNetClassifier
from resvae.models.reference import ReferenceVAE
from resvae.models.vae import VAE

__all__ = ["VAE", "ImageVAE", "ReferenceVAE", "ResNetClassifier"]
