"""The encoder and the decoder: a ResNet that states its channels and strides, and its mirror."""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, channels_last, nn

from resvae.errors import ResvaeError, whole_from
from resvae.networks.blocks import BlockConfig, ResidualBlock, check_block
from resvae.networks.depth import check_shape, per_stage
from resvae.networks.segments import Blocks

STEM_STRIDE = {"cifar": 1, "imagenet": 4, "none": 1}
PerStage = Sequence[int]  # one number per stage


class ResNetEncoder(nn.Module):
    """Turn images into a pyramid of feature maps.

    ::

        x [B C H W] -> stem -> stage 0 -> stage 1 -> ... -> [B channels[-1] h w]
                                  |          |                     |
                             features[0]  features[1]  ...    features[-1]

    Args:
        image_shape: ``(C, H, W)``; the product of the strides must divide H and W.
        blocks: residual blocks per stage; ``depth.py`` computes them from one number.
        widths: channels per stage.
        strides: down-sampling by the first block of each stage.
        stem: ``cifar`` (3x3), ``imagenet`` (7x7 with stride 2, and max-pooling) or ``none``. Without a stem, the first
            activation of a pre-activation order is applied to x itself.
        stem_width: channels of the stem (default: ``widths[0]``). He's bottleneck networks have 16 (CIFAR, widths from
            64) and 64 (ImageNet, widths from 256).
        patch: the stem sees squares of ``patch`` x ``patch`` pixels, moved into the channels, as one pixel each.

    Attributes:
        channels: the channels of each stage's map.
        strides: the image's size divided by that of each stage's map.
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
        patch: int = 1,
    ):
        super().__init__()
        if stem not in STEM_STRIDE:
            raise ResvaeError(f"stem: {stem!r} is not allowed; one of {', '.join(STEM_STRIDE)}")
        whole_from(1, stem_width=stem_width, patch=patch)
        check_block(config)
        first = STEM_STRIDE[stem] * patch
        size = _coarsest("encoder", image_shape, first, blocks=blocks, widths=widths, strides=strides)
        in_channels, height, width = image_shape
        self.image_shape = (in_channels, height, width)
        self.channels = tuple(widths)
        self.strides = tuple(itertools.accumulate((first, *strides), operator.mul))[1:]
        self.out_shape = (widths[-1], *size)
        channels = in_channels * patch**2 if stem == "none" else stem_width or widths[0]
        self.stem = _stem(stem, in_channels * patch**2, channels, config)
        if patch > 1:
            self.stem.insert(0, nn.PixelUnshuffle(patch))
        self.stages = _stages(channels, blocks, widths, strides, config, up=False, stem=stem != "none")
        self.final = final_layers(widths[-1], config)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]``, floats of any scale, to the last map ``[B, channels[-1], h, w]``."""
        return self.features(x)[-1]

    def features(self, x: Tensor) -> list[Tensor]:
        """The map after each stage, finest first. ``forward`` returns the last."""
        if x.ndim != 4 or x.shape[1] != self.image_shape[0]:
            taken = f"{self.image_shape[0]} channels: (batch, {', '.join(map(str, self.image_shape))})"
            raise ResvaeError(f"images: shape {tuple(x.shape)} does not fit this encoder, which takes {taken}")
        h = self.stem(x)
        maps = []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return [*maps[:-1], self.final(h)]


class ResNetDecoder(nn.Module):
    """Turn a latent vector into a map of an image's size. It can be used alone as a generator.

    ::

        z [B D] -> dense -> [B widths[0] h w] -> stage 0 -> stage 1 -> ... -> convolution -> [B out_channels H W]

    Args:
        latent_dim: D, the number of latents.
        image_shape: ``(C, H, W)``; the product of the strides must divide H and W.
        out_channels: channels of the output (default: C). For a likelihood, pass its ``num_features``.
        blocks: residual blocks per stage, coarsest first.
        widths: channels per stage, coarsest first.
        strides: up-sampling by the first block of each stage; (1, 2, 2, 2) mirrors an encoder with (1, 2, 2, 2).
        patch: the last convolution makes ``patch`` x ``patch`` pixels of each of its own.

    Attributes:
        in_shape: ``(widths[0], h, w)``, the shape of the map that ``decode_map`` takes.

    Raises:
        ResvaeError: tuples of different lengths, an image size that the strides do not divide, a size below 1.
    """

    hidden_layers: Sequence[str] = ()

    def __init__(
        self,
        latent_dim: int,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        out_channels: int | None = None,
        blocks: tuple[int, ...] = (1, 1, 1, 1),
        widths: tuple[int, ...] = (512, 256, 128, 64),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        config: BlockConfig = BlockConfig(),  # noqa: B008  frozen
        patch: int = 1,
    ):
        super().__init__()
        whole_from(1, patch=patch)
        check_block(config)
        size = _coarsest("decoder", image_shape, patch, blocks=blocks, widths=widths, strides=strides)
        out_channels = image_shape[0] if out_channels is None else out_channels
        whole_from(1, latent_dim=latent_dim, out_channels=out_channels)
        self.latent_dim = latent_dim
        self.in_shape = (widths[0], *size)
        self.dense = nn.Linear(latent_dim, math.prod(self.in_shape))
        self.stages = _stages(widths[0], blocks, widths, strides, config, up=True, stem=False)
        self.final = final_layers(widths[-1], config)
        self.out = LastLayer(widths[-1], out_channels, patch)
        nn.init.normal_(self.dense.weight, std=latent_dim**-0.5)
        nn.init.zeros_(self.dense.bias)

    def forward(self, z: Tensor) -> Tensor:
        """``z [B, D]`` to ``[B, out_channels, H, W]``."""
        return self.decode_map(self.dense(z).unflatten(1, self.in_shape))

    def decode_map(self, h: Tensor) -> Tensor:
        """A map ``[B, *in_shape]`` to ``[B, out_channels, H, W]``."""
        h = h.contiguous(memory_format=channels_last)  # the dense layer's rows are channels-first
        for stage in self.stages:
            h = stage(h)
        return self.out(self.final(h))


def _stages(
    in_channels: int, blocks: PerStage, widths: PerStage, strides: PerStage, config: BlockConfig, up: bool, stem: bool
) -> nn.ModuleList:
    """The blocks of each stage; its first block changes the shape. ``stem``: behind a convolution."""
    scale = config.scale(sum(blocks))
    stages = nn.ModuleList()
    for num, channels, stride in zip(blocks, widths, strides, strict=True):
        stage = Blocks()
        for _ in range(num):
            block = ResidualBlock(
                in_channels, channels, stride=stride, up=up, config=config, residual_scale=scale, first=stem
            )
            stage.append(block)
            in_channels, stride, stem = channels, 1, False
        stages.append(stage)
    return stages


def final_layers(channels: int, config: BlockConfig) -> nn.Module:
    """The normalisation and activation that end a pre-activation network (He 2016, appendix); else the identity."""
    if not config.pre_activation:
        return nn.Identity()
    return nn.Sequential(config.make_norm(channels), config.make_activation())


class LastLayer(nn.Conv2d):
    """A decoder's last layer: a convolution of 1x1 that makes ``patch`` x ``patch`` pixels of each of its own.

    ::

        [B in_channels h w] -> [B out_channels H W], or with an ``order`` [B 4 out_channels h w]

    Args:
        in_channels: channels of the map.
        out_channels: channels of each pixel.
        patch: pixels on each side.
        order: row and column of the four pixels of a square of 2x2, which then stay side by side in this order, for a
            likelihood that would only part them again. It counts where ``patch`` is 2. The weights are the same.
    """

    def __init__(
        self, in_channels: int, out_channels: int, patch: int = 1, order: Sequence[tuple[int, int]] | None = None
    ):
        super().__init__(in_channels, out_channels * patch**2, 1)
        self.patch, self.order = patch, order if patch == 2 else None
        nn.init.normal_(self.weight, std=0.1 * in_channels**-0.5)  # the start is the likelihood's own, at any depth
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """``[B, in_channels, h, w]`` to pixels, as the picture above shows."""
        if self.order is None:
            return F.pixel_shuffle(super().forward(input), self.patch)
        assert self.bias is not None
        squares = [rows.unflatten(0, (-1, 2, 2)) for rows in (self.weight, self.bias)]
        weight, bias = (torch.cat([rows[:, row, column] for row, column in self.order]) for rows in squares)
        return F.conv2d(input, weight, bias)


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


def _coarsest(name: str, image_shape: Sequence[int], stem_stride: int = 1, **stages: PerStage) -> tuple[int, int]:
    """Height and width of the coarsest map of images ``(C, H, W)``, after all checks of the sizes."""
    per_stage(**stages)
    check_shape(image_shape)
    _, height, width = image_shape
    total = stem_stride * math.prod(stages["strides"])
    for size in (height, width):
        if size % total:
            below = size - size % total
            nearest = f"{below} and {below + total}" if below else f"{total} and {2 * total}"
            raise ResvaeError(
                f"image size: {height}x{width} is not divisible by the {name}'s strides, {total} in all; "
                f"the nearest to {size} are {nearest}"
            )
    return height // total, width // total
