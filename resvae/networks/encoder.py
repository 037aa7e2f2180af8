"""The encoder: a ResNet that publishes its channels and strides, so that anything can stand on it."""

import math
from typing import Literal

from torch import Tensor, nn

from resvae.errors import ResvaeError
from resvae.networks.blocks import BlockConfig, ResidualBlock, check_stages

STEM_STRIDE = {"cifar": 1, "imagenet": 4, "none": 1}


class ResNetEncoder(nn.Module):
    """Images to a pyramid of feature maps.

    ::

        x [B C H W] -> stem -> stage 0 -> stage 1 -> ... -> [B channels[-1] h w]
                                  |          |                     |
                             features[0]  features[1]  ...    features[-1]

    Args:
        image_shape: ``(C, H, W)``; the product of the strides must divide H and W.
        blocks: residual blocks a stage; see ``depth.py`` for one number.
        widths: output channels a stage.
        strides: down-sampling by each stage's first block.
        stem: ``cifar`` 3x3, ``imagenet`` 7x7/2 and max-pooling, or ``none``.
        config: what a block is made of.

    Attributes:
        channels: of each stage's map. strides: of each stage's map against the image, the stem's included.
        out_shape: ``(channels[-1], h, w)`` of the last map.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        blocks: tuple[int, ...] = (1, 1, 1, 1),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        stem: Literal["cifar", "imagenet", "none"] = "cifar",
        config: BlockConfig = BlockConfig(),  # noqa: B008  frozen
    ):
        super().__init__()
        check_stages("encoder", image_shape, blocks=tuple(blocks), widths=tuple(widths), strides=tuple(strides))
        if stem not in STEM_STRIDE:
            raise ResvaeError(f"stem: {stem!r} is not allowed; cifar, imagenet or none")
        _, height, width = image_shape
        total = STEM_STRIDE[stem] * math.prod(strides)
        for size in (height, width):
            if size % total:
                raise ResvaeError(
                    f"image size: {height}x{width} is not divisible by the strides, {total} in all; "
                    f"the nearest to {size} are {size - size % total} and {size - size % total + total}"
                )
        self.image_shape = (image_shape[0], height, width)
        self.channels = tuple(widths)
        self.strides = tuple(STEM_STRIDE[stem] * math.prod(strides[: i + 1]) for i in range(len(strides)))
        self.out_shape = (widths[-1], height // total, width // total)

        # with normalisation and without pre-activation, the stem has its own (He 2015, table 1)
        stem_layers: list[nn.Module] = []
        channels = image_shape[0]
        if stem != "none":
            kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
            convolution = nn.Conv2d(channels, widths[0], kernel, stride, kernel // 2, bias=config.bias)
            nn.init.kaiming_normal_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            stem_layers.append(convolution)
            if not config.pre_activation:
                stem_layers += [config.make_norm(widths[0]), config.make_activation()]
            if stem == "imagenet":
                stem_layers.append(nn.MaxPool2d(3, 2, 1))
            channels = widths[0]
        self.stem = nn.Sequential(*stem_layers)
        scale = config.scale(sum(blocks))
        self.stages = nn.ModuleList()
        for i, (num, out, stride) in enumerate(zip(blocks, widths, strides, strict=True)):
            stage = nn.ModuleList()
            for j in range(num):
                stage.append(
                    ResidualBlock(
                        channels,
                        out,
                        stride=stride if j == 0 else 1,
                        config=config,
                        residual_scale=scale,
                        first=i == j == 0 and stem != "none",
                    )
                )
                channels = out
            self.stages.append(stage)
        self.final = final_layers(channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]``, any float scale, to the last map ``[B, channels[-1], h, w]``."""
        return self.final(self._maps(x)[-1])

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps after each stage, finest first; the last is what ``forward`` returns."""
        maps = self._maps(x)
        return [*maps[:-1], self.final(maps[-1])]

    def _maps(self, x: Tensor) -> list[Tensor]:
        if x.shape[1] != self.image_shape[0]:
            raise ResvaeError(
                f"images: {x.shape[1]} channels do not fit this encoder, which takes {self.image_shape[0]}"
            )
        h = self.stem(x)
        maps = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                h = block(h)
            maps.append(h)
        return maps


def final_layers(channels: int, config: BlockConfig) -> nn.Module:
    """After the last addition of a pre-activation network, one normalisation and activation (He 2016, appendix)."""
    if not config.pre_activation:
        return nn.Identity()
    return nn.Sequential(config.make_norm(channels), config.make_activation())
