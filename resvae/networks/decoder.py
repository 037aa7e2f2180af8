"""The decoder mirrors the encoder: from a latent vector or a map to the size of an image."""

import math

import torch
from torch import Tensor, nn

from resvae.errors import at_least
from resvae.networks.blocks import BlockConfig
from resvae.networks.stages import check_stages, coarsest, final_layers, make_stages, start_small


class ResNetDecoder(nn.Module):
    """Turn a latent vector into a map of an image's size. It can be used alone as a generator.

    ::

        z [B D] -> dense -> [B widths[0] h w] -> stage 0 -> stage 1 -> ... -> convolution -> [B out_channels H W]

    Args:
        latent_dim: D.
        image_shape: ``(C, H, W)``; the product of the strides must divide H and W.
        out_channels: channels of the output (default: C). For a likelihood, pass its ``num_features``.
        blocks, widths: residual blocks and channels per stage, coarsest first.
        strides: up-sampling by the first block of each stage; (1, 2, 2, 2) mirrors an encoder with (1, 2, 2, 2).

    Attributes:
        in_shape: ``(widths[0], h, w)``, the shape of the map that ``decode_map`` takes.

    Raises:
        ResvaeError: tuples of different lengths, an image size that the strides do not divide, a size below 1.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        out_channels: int | None = None,
        blocks: tuple[int, ...] = (1, 1, 1, 1),
        widths: tuple[int, ...] = (512, 256, 128, 64),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        config: BlockConfig = BlockConfig(),  # noqa: B008  frozen
    ):
        super().__init__()
        check_stages("decoder", blocks=blocks, widths=widths, strides=strides)
        size = coarsest("decoder", image_shape, math.prod(strides))
        out_channels = image_shape[0] if out_channels is None else out_channels
        at_least(1, latent_dim=latent_dim, out_channels=out_channels)
        self.latent_dim = latent_dim
        self.in_shape = (widths[0], *size)
        self.dense = nn.Linear(latent_dim, math.prod(self.in_shape))
        self.stages = make_stages(widths[0], blocks, widths, strides, config, up=True)
        self.final = final_layers(widths[-1], config)
        self.out = nn.Conv2d(widths[-1], out_channels, 1)
        nn.init.normal_(self.dense.weight, std=latent_dim**-0.5)
        nn.init.zeros_(self.dense.bias)
        start_small(self.out)

    def forward(self, z: Tensor) -> Tensor:
        """``z [B, D]`` to ``[B, out_channels, H, W]``."""
        return self.decode_map(self.dense(z).unflatten(1, self.in_shape))

    def decode_map(self, h: Tensor) -> Tensor:
        """A map ``[B, *in_shape]`` to ``[B, out_channels, H, W]``."""
        h = h.contiguous(memory_format=torch.channels_last)  # the dense layer's rows are channels-first
        for stage in self.stages:
            h = stage(h)
        return self.out(self.final(h))
