"""The encoder: a ResNet that states its channels and strides, so that any model can be built on it."""

import itertools
import math
import operator
from typing import Literal

from torch import Tensor, nn

from resvae.errors import ResvaeError, at_least
from resvae.networks.blocks import BlockConfig
from resvae.networks.stages import check_stages, checked_shape, coarsest, final_layers, make_stages

STEM_STRIDE = {"cifar": 1, "imagenet": 4, "none": 1}


class ResNetEncoder(nn.Module):
    """Turn images into a pyramid of feature maps.

    ::

        x [B C H W] -> stem -> stage 0 -> stage 1 -> ... -> [B channels[-1] h w]
                                  |          |                     |
                             features[0]  features[1]  ...    features[-1]

    Args:
        image_shape: ``(C, H, W)``; the product of the strides must divide H and W.
        blocks, widths: residual blocks (``depth.py`` computes them from one number) and channels per stage.
        strides: down-sampling by the first block of each stage.
        stem: ``cifar`` (3x3), ``imagenet`` (7x7 with stride 2, and max-pooling) or ``none``. Without a stem, the first
            activation of a pre-activation order is applied to x itself.
        stem_width: channels of the stem (default: ``widths[0]``). He's bottleneck networks have 16 (CIFAR, widths from
            64) and 64 (ImageNet, widths from 256).

    Attributes:
        channels: the channels of each stage's map. strides: the image's size divided by that of each stage's map.
        out_shape: ``(channels[-1], h, w)``, the shape of the last map.

    Raises:
        ResvaeError: tuples of different lengths, an unknown stem, an image size that the strides do not divide.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        blocks: tuple[int, ...] = (1, 1, 1, 1),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        stem: Literal["cifar", "imagenet", "none"] = "cifar",
        stem_width: int | None = None,
        config: BlockConfig = BlockConfig(),  # noqa: B008  frozen
    ):
        super().__init__()
        check_stages("encoder", blocks=blocks, widths=widths, strides=strides)
        if stem not in STEM_STRIDE:
            raise ResvaeError(f"stem: {stem!r} is not allowed; one of {', '.join(STEM_STRIDE)}")
        at_least(1, stem_width=stem_width)
        size = coarsest("encoder", image_shape, STEM_STRIDE[stem] * math.prod(strides))
        self.image_shape = checked_shape("encoder", image_shape)
        self.channels = tuple(widths)
        self.strides = tuple(itertools.accumulate((STEM_STRIDE[stem], *strides), operator.mul))[1:]
        self.out_shape = (widths[-1], *size)

        channels = image_shape[0] if stem == "none" else stem_width or widths[0]
        self.stem = _stem(stem, image_shape[0], channels, config)
        self.stages = make_stages(channels, blocks, widths, strides, config, stem=stem != "none")
        self.final = final_layers(widths[-1], config)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]``, floats of any scale, to the last map ``[B, channels[-1], h, w]``."""
        return self.features(x)[-1]

    def features(self, x: Tensor) -> list[Tensor]:
        """The map after each stage, finest first. ``forward`` returns the last."""
        if x.ndim != 4 or x.shape[1] != self.image_shape[0]:
            raise ResvaeError(
                f"images: shape {tuple(x.shape)} does not fit this encoder, "
                f"which takes {self.image_shape[0]} channels: (batch, {', '.join(map(str, self.image_shape))})"
            )
        h = self.stem(x)
        maps = []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return [*maps[:-1], self.final(h)]


def _stem(kind: str, in_channels: int, channels: int, config: BlockConfig) -> nn.Sequential:
    """The first layers. An activation follows unless blocks begin with one (He 2015, table 1)."""
    if kind == "none":
        return nn.Sequential()
    kernel, stride = (3, 1) if kind == "cifar" else (7, 2)
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=config.bias)
    nn.init.kaiming_normal_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    stem = nn.Sequential(convolution)
    if not config.pre_activation:
        stem.extend([config.make_norm(channels), config.make_activation()])
    if kind == "imagenet":
        stem.append(nn.MaxPool2d(3, 2, 1))
    return stem
