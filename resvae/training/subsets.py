"""Training with some of the residual units, which are drawn again for each update."""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks.units import Unit, replaced, summed


class UnitSubset(Callback, ABC):
    """Leaves units out of an update: only their connection passes its input on, and their weights do not change.

    A branch that is kept with probability p is divided by p in training. Huang 2016 (eq. 5) multiplies it by p at test
    time instead. The expectation is the same, and validation, test and the saved model use the network unchanged.
    The draw depends only on ``seed`` and the update's number. DDP needs ``ddp_find_unused_parameters_true``.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._changed = ExitStack()

    @abstractmethod
    def draw(self, rng: np.random.Generator, num_units: int) -> list[float]:
        """The factor on each unit's branch in one update: 0 or 1/p; ``ResvaeError`` where it cannot be drawn."""

    def drawn(self, module: nn.Module, step: int) -> list[tuple[Unit, float]]:
        """The units and their factors; ``ResvaeError`` where a unit does not merge by sum, or the model is compiled."""
        if getattr(module, "compiled", False):
            raise ResvaeError("model.compile: it must be false with subsets of units; each draw is another graph")
        units = summed(module)
        return list(zip(units, self.draw(np.random.default_rng((self.seed, step)), len(units)), strict=True))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Leave the drawn units out."""
        drawn = self.drawn(pl_module, trainer.global_step)
        self._changed.enter_context(replaced((unit, partial(unit.weighted, factor)) for unit, factor in drawn))

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Put them back."""
        self._changed.close()

    on_exception = on_train_batch_end


class RandomSubset(UnitSubset):
    """Keeps ``num`` of the units, each with the same probability (Veit 2016, section 5: 23 of 54, error 5.96%)."""

    def __init__(self, num: int, seed: int = 0):
        super().__init__(seed)
        self.num = num

    def draw(self, rng: np.random.Generator, num_units: int) -> list[float]:
        """Factors of which ``num`` are above 0."""
        if not 1 <= self.num <= num_units:
            raise ResvaeError(f"num: {self.num} is not allowed; 1 to the number of units, {num_units}")
        return [num_units / self.num if place < self.num else 0.0 for place in rng.permutation(num_units)]


class StochasticDepth(UnitSubset):
    """Keeps the l-th of L units with probability 1 - (1 - ``last``) l / L (Huang 2016, eq. 4)."""

    def __init__(self, last: float = 0.5, seed: int = 0):
        super().__init__(seed)
        if not 0 < last <= 1:
            raise ResvaeError(f"last: {last} is not allowed; more than 0, at most 1")
        self.last = last

    def draw(self, rng: np.random.Generator, num_units: int) -> list[float]:
        """Factors of which any number are above 0."""
        survival = np.linspace(1, self.last, num_units + 1)[1:].tolist()
        return [1 / p if rng.random() < p else 0.0 for p in survival]
