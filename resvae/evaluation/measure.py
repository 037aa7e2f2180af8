"""What a report is made of: a measure sees all batches, and finds figures, table rows, protocol lines and pictures."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resvae.data import ImageSets, Split
from resvae.errors import ResvaeError

BATCH = 250
COLUMNS = 8  # of the pictures' grids
Picture = Tensor | Callable[[Any], None]  # [3, H, W] in [0, 1], or what draws on matplotlib's axes


@dataclass(frozen=True)
class Asked:
    """What is measured, and how. All fields but ``device`` and ``sets`` are arguments of ``evaluate``."""

    model: Any
    device: torch.device
    sets: ImageSets | None  # None: the images were given as batches
    split: Split
    num: int | None
    seed: int
    track: Callable[[Iterable[Any], str], Iterable[Any]]
    num_samples: int
    iw_images: int | None
    features: tuple[str, nn.Module] | None
    num_generated: int | None
    probe_images: int | None
    neighbours: bool
    pictures: bool
    pixels: str = "the mean of p(x|z)"  # what generated images are

    def tested(self) -> tuple[Tensor, Tensor]:
        """The measured images ``[N, C, H, W]``, uint8, and their labels ``[N]``."""
        if self.sets is None:
            raise ResvaeError("images: batches are not allowed with features, a probe or neighbours; give an ImageSets")
        return self.sets.images(self.split, self.num), self.sets.labels(self.split, self.num)

    def train(self, num: int | None = None) -> tuple[Tensor, Tensor]:
        """The first ``num`` training images and their labels; all by default."""
        self.tested()
        if self.split == "train":
            raise ResvaeError("split: train is not allowed with a probe or neighbours, which hold images against it")
        assert self.sets is not None
        return self.sets.images("train", num), self.sets.labels("train", num)


@dataclass(frozen=True)
class Found:
    """What a measure found."""

    figures: dict[str, Any]  # added to ``report.json``: numbers, None, dataclasses, or tuples of them
    rows: list[tuple[str, str]] = field(default_factory=list)  # what was measured, and the figure as text
    headlines: tuple[str, ...] = ()  # how the rows begin that stand above the page of plots
    protocol: tuple[str, ...] = ()  # how the figures were obtained, one line each
    pictures: dict[str, Picture] = field(default_factory=dict)  # by their titles


class Measure(ABC):
    """One part of a report. A new one is a subclass in a file of its own, decorated with ``always``.

    The constructor raises ``ResvaeError`` for what cannot be measured, before any work. A measure that was not asked
    for finds no rows, and its figures are None.
    """

    field: ClassVar[str] = "vae"  # the kind of model that it is of: ``ImageModel.field``
    generated: int = 0  # how many generated images it wants; ``sampled`` gets them

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def update(self, x: Any, y: Tensor | None) -> None:
        """Take a batch: what ``model.encoded`` returned, and labels ``[B]``. All measures share one stream of noise."""
        return

    def sampled(self, x: Tensor) -> None:
        """Take a batch of generated images, uint8 ``[B, C, H, W]``, after all batches of ``update``."""
        return

    @abstractmethod
    def finish(self) -> Found:
        """After all batches."""


ALWAYS: list[type[Measure]] = []  # measures without options, in the order of the report


def always(kind: type[Measure]) -> type[Measure]:
    """A class decorator: every report of models of its ``field`` then has this measure."""
    ALWAYS.append(kind)
    return kind
