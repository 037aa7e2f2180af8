"""Training with Lightning."""

from resvae.training.classifier import LitClassifier
from resvae.training.module import LitVAE

__all__ = ["LitClassifier", "LitVAE"]
