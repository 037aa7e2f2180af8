"""Models: where networks and probability meet."""

from resvae.models.base import ImageVAE
from resvae.models.classifier import ResNetClassifier
from resvae.models.hierarchical import HierarchicalVAE
from resvae.models.reference import ReferenceVAE
from resvae.models.vae import VAE

__all__ = ["VAE", "HierarchicalVAE", "ImageVAE", "ReferenceVAE", "ResNetClassifier"]

from torch import nn as _nn

ImageModel = _nn.Module
