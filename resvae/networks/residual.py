"""The residual connection itself, around anything, with every way to merge x and F(x)."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from resvae.errors import ResvaeError

MergeName = Literal["sum", "product", "none", "highway"]
Merge = MergeName | Callable[[Tensor, Tensor], Tensor]


class Sum(nn.Module):
    """x + F(x) (He 2015, eq. 1)."""

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        return x + fx


class Product(nn.Module):
    """x F(x)."""

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        return x * fx


class Plain(nn.Module):
    """F(x) alone: a plain network."""

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        return fx


class Highway(nn.Module):
    """T F(x) + (1 - T) x with T = sigmoid(W x + b) (Srivastava 2015, eq. 3).

    Args:
        channels: size of dimension ``dim`` of x.
        bias: where b starts; -1, -2, -3 for about 10, 20, 30 layers: at first the input is carried.
        dim: the dimension that W mixes; 1 for images ``[B, C, H, W]``, -1 for sequences ``[B, T, C]``.
    """

    def __init__(self, channels: int, bias: float = -1.0, dim: int = 1):
        super().__init__()
        self.dim = dim
        self.gate = nn.Linear(channels, channels)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x.movedim(self.dim, -1))).movedim(-1, self.dim)
        return x + t * (fx - x)  # not lerp: under autocast x may be of another type than F(x)


MERGES: dict[str, type[nn.Module]] = {"sum": Sum, "product": Product, "none": Plain}


class Residual(nn.Module):
    """Wraps any module, or whole model, whose output has its input's shape: y = merge(x, F(x)).

    Args:
        module: F.
        merge: ``sum``, ``product``, ``none`` (F alone), or any callable or module of (x, F(x)), as ``Highway(64)``.

    Raises:
        ResvaeError: an unknown merge; in ``forward``, an output of another shape than the input's.
    """

    def __init__(self, module: nn.Module, merge: Merge = "sum"):
        super().__init__()
        self.module = module
        self.merge = make_merge(merge)

    def forward(self, x: Tensor) -> Tensor:
        fx = self.module(x)
        if fx.shape != x.shape:
            raise ResvaeError(
                f"Residual: the module turns {tuple(x.shape)} into {tuple(fx.shape)}; both must have the same shape"
            )
        return self.merge(x, fx)


def make_merge(merge: Merge, channels: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The merge of this name; ``channels`` are what ``highway`` needs to know. Callables pass through."""
    check_merge(merge)
    if callable(merge):
        return merge
    if merge == "highway":
        if channels is None:
            raise ResvaeError("merge: highway needs the number of channels here; give Highway(channels)")
        return Highway(channels)
    return MERGES[merge]()


def check_merge(merge: Merge) -> None:
    """``ResvaeError`` for a merge that is neither a known name nor callable."""
    if not callable(merge) and merge not in get_args(MergeName):
        raise ResvaeError(f"merge: {merge!r} is not allowed; {', '.join(get_args(MergeName))} or a callable")
