"""Stages of residual blocks, which the encoder and the decoder share."""

from collections.abc import Sequence

from torch import nn

from resvae.errors import ResvaeError
from resvae.networks.blocks import BlockConfig, ResidualBlock


def make_stages(
    in_channels: int,
    blocks: Sequence[int],
    widths: Sequence[int],
    strides: Sequence[int],
    config: BlockConfig,
    *,
    up: bool = False,
    stem: bool = False,
) -> nn.ModuleList:
    """One ``nn.Sequential`` of residual blocks per stage. Its first block changes resolution and width.

    ``blocks``, ``widths`` and ``strides`` have one number per stage. ``stem``: the input comes from a convolution.
    """
    scale = config.scale(sum(blocks))
    stages = nn.ModuleList()
    for num, channels, stride in zip(blocks, widths, strides, strict=True):
        stage = nn.Sequential()
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


def start_small(last: nn.Conv2d) -> None:
    """Initialise a decoder's last layer so that training starts from the likelihood's own start at any depth."""
    nn.init.normal_(last.weight, std=0.1 * last.in_channels**-0.5)
    assert last.bias is not None
    nn.init.zeros_(last.bias)


def check_stages(name: str, **values: Sequence[int]) -> None:
    """Raise ``ResvaeError`` unless each tuple has one positive number per stage."""
    if len(set(map(len, values.values()))) != 1:
        said = ", ".join(f"{field} {tuple(value)}" for field, value in values.items())
        raise ResvaeError(f"{name}: {said} must each have one number per stage")
    for field, value in values.items():
        if not value or min(value) < 1:
            raise ResvaeError(f"{name}: {field} {tuple(value)} is not allowed; each must be at least 1")


def checked_shape(name: str, image_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``(C, H, W)``, or raise ``ResvaeError`` if it is not three positive numbers."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ResvaeError(f"{name}: image_shape {tuple(image_shape)} is not allowed; give (channels, height, width)")
    channels, height, width = image_shape
    return channels, height, width


def coarsest(name: str, image_shape: Sequence[int], total: int) -> tuple[int, int]:
    """Height and width of the coarsest map of images ``(C, H, W)``; the total stride ``total`` must divide both."""
    _, height, width = checked_shape(name, image_shape)
    for size in (height, width):
        if size % total:
            below = size - size % total
            nearest = f"{below} and {below + total}" if below else f"{total} and {2 * total}"
            raise ResvaeError(
                f"image size: {height}x{width} is not divisible by the {name}'s strides, {total} in all; "
                f"the nearest to {size} are {nearest}"
            )
    return height // total, width // total
