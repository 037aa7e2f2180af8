"""Residual networks, built on torch alone."""

from resvae.networks.blocks import BlockConfig, ResidualBlock
from resvae.networks.depth import cifar_blocks, imagenet_blocks, latent_levels, vae_blocks
from resvae.networks.residual import Highway, Residual, ResidualGRUCell, ShortcutGate, gate_bias
from resvae.networks.resnet import ResNetDecoder, ResNetEncoder

__all__ = [
    "BlockConfig",
    "Highway",
    "ResNetDecoder",
    "ResNetEncoder",
    "Residual",
    "ResidualBlock",
    "ResidualGRUCell",
    "ShortcutGate",
    "cifar_blocks",
    "gate_bias",
    "imagenet_blocks",
    "latent_levels",
    "vae_blocks",
]
