"""A classifier on any encoder: He's networks, or the encoder of a trained VAE."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from resvae.errors import at_least
from resvae.models.base import Shape, json_arguments
from resvae.models.images import to_unit
from resvae.networks import BlockConfig, ResNetEncoder, cifar_blocks

HE = BlockConfig(order="original", norm="batch", activation="relu", shortcut="zero_pad", residual_scale=1.0)


class ResNetClassifier(nn.Module):
    """Encoder, global average pooling, one linear layer (He 2015, section 4.2).

    ::

        x [B C H W] -> encoder -> [B K h w] -> mean over places -> linear -> logits [B num_classes]

    Args:
        encoder: any ``ResNetEncoder``; for instance ``vae.encoder``, which then trains along.
        depth: without an encoder, He's CIFAR network of this depth: 6n+2 (basic blocks) or 9n+2 (bottleneck).
        num_classes: number of logits.
        image_shape: ``(C, H, W)``, without an encoder.
        block: without an encoder, the blocks; their kind follows from ``depth``.
    """

    arguments: dict[str, Any] | None  # as JSON can hold them; None around a given encoder, which does not know its own

    def __init__(
        self,
        encoder: ResNetEncoder | None = None,
        depth: int = 20,
        num_classes: int = 10,
        image_shape: Shape = (3, 32, 32),
        block: BlockConfig = HE,
    ):
        super().__init__()
        at_least(1, num_classes=num_classes)
        self.arguments = None
        if encoder is None:
            self.arguments = json_arguments(
                {"depth": depth, "num_classes": num_classes, "image_shape": image_shape, "block": block}
            )
        self.encoder = encoder or _he_encoder(depth, image_shape, block)
        self.classifier = nn.Linear(self.encoder.channels[-1], num_classes)

    @property
    def image_shape(self) -> Shape:
        """``(C, H, W)`` of its images."""
        return self.encoder.image_shape

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]``, uint8 or float in [0, 1], to logits ``[B, num_classes]``."""
        h = self.encoder(2 * to_unit(x, self.image_shape) - 1)
        return self.classifier(h.mean((2, 3)))


def _he_encoder(depth: int, image_shape: Shape, block: BlockConfig) -> ResNetEncoder:
    kind, blocks = cifar_blocks(depth)
    widths = (16, 32, 64) if kind == "basic" else (64, 128, 256)
    return ResNetEncoder(image_shape, blocks, widths, (1, 2, 2), stem_width=16, config=replace(block, kind=kind))
