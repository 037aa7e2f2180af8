"""Training with Lightning."""

from resvae.training.module import LitVAE

__all__ = ["LitVAE"]
