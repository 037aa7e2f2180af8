"""``LitClassifier``: optimises and logs a ``ResNetClassifier``."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.models import ResNetClassifier
from resvae.training.base import LitModel, OptimizerFactory, Precision, adamw
from resvae.training.schedule import Schedule


class LitClassifier(LitModel):
    """Trains a ``ResNetClassifier`` with the cross-entropy, in nats an image.

    Args:
        classifier: the model.
        optimizer: parameters -> optimiser, any of torch's.
        schedule: the learning rate over time.
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy 2016, section 7).
        ema_decay, precision, compile: as ``LitVAE`` has them.

    Logs ``loss``, the cross-entropy without smoothing, and ``error``, the share of images whose largest logit is not
    their label's, under ``train/``, ``val/`` and ``test/``; each epoch ``train/grad_norm``,
    ``train/skipped_updates``, ``train/images_per_second``.
    """

    field = "classifier"

    def __init__(
        self,
        classifier: ResNetClassifier,
        optimizer: OptimizerFactory = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        label_smoothing: float = 0.0,
        ema_decay: float = 0.999,
        precision: Precision = "auto",
        compile: bool = False,
    ):
        super().__init__(optimizer, schedule, ema_decay, precision)
        if not 0 <= label_smoothing < 1:
            raise ResvaeError(f"label_smoothing: {label_smoothing} is not allowed; 0 (none) up to less than 1")
        self.classifier: ResNetClassifier = classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.label_smoothing = label_smoothing
        self._compile = compile
        self._forward: Callable[[Tensor], Tensor] = classifier.forward

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` that the model takes."""
        return self.classifier.encoder.image_shape

    def monitored(self) -> list[str]:
        """What early stopping can watch: the names of the figures that validation logs an epoch."""
        return ["val/error", "val/loss"]

    def refuse_data(self, data: Any) -> None:
        """Raise ``ResvaeError`` where the images do not fit the model, or their labels do not."""
        super().refuse_data(data)
        if data.num_classes < 2:
            raise ResvaeError(
                f"data.name: the images of {data.name} are not labelled, or all alike; a classifier needs two classes "
                "or more (class subfolders of a folder, an array labels in an .npz)"
            )
        num = self.classifier.classifier.out_features
        if num < data.num_classes:
            raise ResvaeError(
                f"model.classifier.num_classes: {num} is not allowed; the labels are 0 to {data.num_classes - 1}"
            )

    def on_fit_start(self) -> None:
        """Compile when asked: late, so that copies made before (the average's) copy no compiled graph."""
        forward = self.classifier.forward
        self._forward = torch.compile(forward) if self._compile else forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar, nats an image."""
        logits = self._logits(batch[0], self._forward)
        self._log("train", logits.detach(), batch[1])
        return F.cross_entropy(logits, batch[1], label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and error of one batch."""
        self._log("val", self._logits(batch[0], self.classifier.forward), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As validation, on the test set, and in float32 throughout."""
        self._log("test", self._logits(batch[0], self.classifier.forward, reduced=False), batch[1])

    def _logits(self, x: Tensor, forward: Callable[[Tensor], Tensor], reduced: bool = True) -> Tensor:
        """float32 ``[B, num_classes]``, computed in bf16 where ``precision`` wants it and ``reduced`` allows it."""
        with self.autocast(reduced):
            return forward(x.contiguous(memory_format=torch.channels_last)).float()

    def _log(self, split: str, logits: Tensor, y: Tensor) -> None:
        error = (logits.argmax(1) != y).float().mean()
        self._log_means(split, {"loss": F.cross_entropy(logits, y), "error": error}, len(y))
