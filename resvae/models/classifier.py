"""A classifier on any encoder: He's networks, or the encoder of a trained VAE."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from resvae.errors import ResvaeError, whole_from
from resvae.models.base import ImageModel, Shape, json_arguments, to_unit
from resvae.models.registry import register
from resvae.networks import BlockConfig, ResNetEncoder, cifar_blocks
from resvae.networks.blocks import check_block

HE = BlockConfig(order="original", norm="batch", activation="relu", shortcut="zero_pad", residual_scale=1.0)


@register
class ResNetClassifier(ImageModel):
    """Encoder, global average pooling, one linear layer (He 2015, section 4.2).

    ::

        x [B C H W] -> encoder -> [B K h w] -> mean over locations -> linear -> logits [B num_classes]

    Args:
        encoder: any ``ResNetEncoder``; for instance ``vae.encoder``, which then trains along.
        depth: without an encoder, He's CIFAR network of this depth: 6n+2 (basic blocks) or 9n+2 (bottleneck).
        num_classes: number of logits.
        image_shape: ``(C, H, W)``, without an encoder.
        block: without an encoder, the blocks; their kind follows from ``depth``.
    """

    field = "classifier"

    def __init__(
        self,
        encoder: ResNetEncoder | None = None,
        depth: int = 20,
        num_classes: int = 10,
        image_shape: Shape = (3, 32, 32),
        block: BlockConfig = HE,
    ):
        super().__init__()
        whole_from(1, num_classes=num_classes)
        if encoder is None:
            given = {"depth": depth, "num_classes": num_classes, "image_shape": image_shape, "block": block}
            self.arguments = json_arguments(given)  # an encoder does not know its own arguments
            check_block(block)
            kind, blocks = cifar_blocks(depth)
            widths = (16, 32, 64) if kind == "basic" else (64, 128, 256)
            block = replace(block, kind=kind)
            encoder = ResNetEncoder(image_shape, blocks, widths, (1, 2, 2), stem_width=16, config=block)
        self.encoder = encoder
        self.image_shape = self.encoder.image_shape
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.encoder.channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]``, uint8 or float in [0, 1], to logits ``[B, num_classes]``."""
        h = self.encoder(2 * to_unit(x, self.image_shape) - 1)
        return self.classifier(h.mean((2, 3)))

    def figures(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """``loss``: the cross-entropy, nats; ``error``: 1 where the largest logit is not the label's."""
        logits = self(x).float()
        return {"loss": F.cross_entropy(logits, y, reduction="none"), "error": (logits.argmax(1) != y).float()}

    @property
    def deciding(self) -> str:
        """The share of errors."""
        return "error"

    @property
    def chance(self) -> float:
        """1 - 1 / ``num_classes``."""
        return 1 - 1 / self.num_classes

    def check_labels(self, y: Tensor, data: str | None) -> None:
        """Raise ``ResvaeError`` where the labels ``y [N]`` are not among the model's, or are all the same."""
        if not len(y) or y.min() < 0 or y.max() >= self.num_classes:
            allowed = f"0 to {self.num_classes - 1}, of one image or more"
            raise ResvaeError(f"data: the labels of {data} are not allowed; {allowed}")
        if len(y) > 1 and y.min() == y.max():
            raise ResvaeError(f"data: the images of {data} are not labelled, or all alike; two classes are needed")
