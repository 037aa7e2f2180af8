"""Chains of residual blocks that can forget what is within them, and compute it again for the gradient.

Of a chain in segments only each segment's input is kept in training (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost"). Gradients are the same; a training step needs one more forward pass of these blocks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Blocks(nn.Sequential):
    """Blocks one after another; in training, ``segment`` of them at a time keep their input alone (None: keep all).

    The last of them, ``spared`` of 1, keep all the same.
    """

    segment: int | None = None
    spared: float = 0.0

    def forward(self, input: Tensor) -> Tensor:
        """``input [B, C, H, W]`` through all blocks."""
        return through(list(self), input, self.segment, self.spared)

    def chains(self) -> list[list[nn.Module]]:
        """The blocks, as one chain."""
        return [list(self)]


def through(blocks: Sequence[nn.Module], x: Tensor, segment: int | None, spared: float = 0.0) -> Tensor:
    """``x`` through all blocks, of which some keep their input alone for the gradient; see ``Blocks``."""
    if segment is None or not torch.is_grad_enabled():
        return _through(blocks, x)
    parts, rest = split(blocks, segment, spared)
    for part in parts:
        norms = [module for block in part for module in block.modules() if isinstance(module, _BatchNorm)]
        again: dict[str, Any] = {"context_fn": lambda norms=norms: (nullcontext(), _still(norms))} if norms else {}
        x = cast(Tensor, checkpoint(_through, part, x, use_reentrant=False, **again))
    return _through(rest, x)


def split(chain: Sequence[T], segment: int, spared: float) -> tuple[list[Sequence[T]], Sequence[T]]:
    """A chain's segments, and its last part, which is in none: the gradient, which begins there, soon frees it."""
    end = len(chain) - round(spared * len(chain))
    return [chain[start : min(start + segment, end)] for start in range(0, end, segment)], chain[end:]


def set_segment(model: nn.Module, segment: int | None, spared: float = 0.0) -> None:
    """Let all chains of a model have segments of so many blocks, but for their last part; None for none."""
    for part in _parts(model):
        part.segment, part.spared = segment, spared


def chains(model: nn.Module) -> list[list[nn.Module]]:
    """Blocks that follow one another, for all of a model."""
    return [chain for part in _parts(model) for chain in part.chains()]


def _parts(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(type(module), "segment")]


def _through(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


@contextmanager
def _still(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Normalise by the batch as before, without counting it twice in the running statistics."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
