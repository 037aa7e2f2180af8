"""``LitClassifier``: optimises and logs a ``ResNetClassifier``."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.models import ResNetClassifier
from resvae.training.base import Compile, LitModel, OptimizerFactory, Precision, adamw
from resvae.training.schedule import Schedule


class LitClassifier(LitModel):
    """Trains a ``ResNetClassifier`` with the cross-entropy, in nats per image.

    Args:
        classifier: the model.
        optimizer: a function from parameters to an optimiser, such as a class of torch.optim.
        schedule: the learning rate over time.
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy 2016, section 7).
        ema_decay, precision, compile, memory_budget: as ``LitVAE`` has them.

    Logs ``loss``, the cross-entropy without smoothing, and ``error``, the share of images whose largest logit is not
    their label's, under ``train/``, ``val/`` and ``test/``; each epoch ``train/grad_norm``,
    ``train/skipped_updates``, ``train/images_per_second``.
    """

    field = "classifier"
    draws = False
    defaults: ClassVar[dict[str, Any]] = {
        "model.classifier": {"class_path": "resvae.ResNetClassifier"},
        "early_stopping.monitor": "val/error",
    }

    def __init__(
        self,
        classifier: ResNetClassifier,
        optimizer: OptimizerFactory = adamw,
        schedule: Schedule = Schedule(),  # noqa: B008  frozen
        label_smoothing: float = 0.0,
        ema_decay: float = 0.999,
        precision: Precision = "auto",
        compile: Compile = "auto",
        memory_budget: str | None = None,
    ):
        if not isinstance(classifier, ResNetClassifier):
            raise ResvaeError(f"classifier: {type(classifier).__name__} is not allowed; a ResNetClassifier")
        shape = classifier.encoder.image_shape
        super().__init__(shape, optimizer, schedule, ema_decay, precision, compile, memory_budget=memory_budget)
        if not 0 <= label_smoothing < 1:
            raise ResvaeError(f"label_smoothing: {label_smoothing} is not allowed; 0 (none) up to less than 1")
        self.classifier: ResNetClassifier = classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.label_smoothing = label_smoothing

    @property
    def objective(self) -> Callable[[Tensor], Tensor]:
        """The classifier: images to logits."""
        return self.classifier.forward

    def monitored(self) -> dict[str, str]:
        """What early stopping may watch."""
        return {"val/error": "min", "val/loss": "min"}

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

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar, nats per image."""
        logits = self.compute("train", batch).float()
        self._log("train", logits.detach(), batch[1])
        return F.cross_entropy(logits, batch[1], label_smoothing=self.label_smoothing)

    def evaluate(self, split: str, batch: Any, batch_idx: int) -> None:
        """Loss and error of one batch, without smoothing."""
        self._log(split, self.compute(split, batch).float(), batch[1])

    def _log(self, split: str, logits: Tensor, y: Tensor) -> None:
        error = (logits.argmax(1) != y).float().mean()
        self.means.add(split, {"loss": F.cross_entropy(logits, y), "error": error}, len(y))
