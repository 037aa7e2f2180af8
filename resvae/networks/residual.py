"""The residual connection around any module, the ways to merge x and F(x), and a residual recurrent cell."""

import operator
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from resvae.errors import ResvaeError

MergeName = Literal["sum", "product", "none", "half", "highway", "shortcut_gate"]
Merge = MergeName | Callable[[Tensor, Tensor], Tensor]


def plain(x: Tensor, fx: Tensor) -> Tensor:
    """F(x) alone: a plain network."""
    return fx


def half(x: Tensor, fx: Tensor) -> Tensor:
    """0.5 x + 0.5 F(x) (He 2016, table 1: constant scaling)."""
    return 0.5 * x + 0.5 * fx


class _Gate(nn.Linear):
    """sigmoid(W x + b) over dimension ``dim`` of x at each place. On maps it is a 1x1 convolution."""

    def __init__(self, channels: int, bias: float, dim: int):
        super().__init__(channels, channels)
        self.dim = dim
        nn.init.constant_(self.bias, bias)

    def forward(self, input: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(input.movedim(self.dim, -1), self.weight, self.bias)).movedim(-1, self.dim)


class _Gated(nn.Module):
    def __init__(self, channels: int, bias: float = -1.0, dim: int = 1):
        super().__init__()
        self.gate = _Gate(channels, bias, dim)


class Highway(_Gated):
    """T F(x) + (1 - T) x with T = sigmoid(W x + b) (Srivastava 2015, eq. 3; He 2016, table 1: exclusive gating).

    W mixes dimension ``dim`` of x, of size ``channels``: 1 for maps ``[B, C, H, W]``, -1 for sequences ``[B, T, C]``.
    With an initial b below 0, the gate mostly passes x on at first; see ``gate_bias``.
    """

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Merge x and F(x), which have the same shape."""
        return x + self.gate(x) * (fx - x)  # not lerp: under autocast x and F(x) may have different types


class ShortcutGate(_Gated):
    """F(x) + (1 - g) x with g = sigmoid(W x + b) (He 2016, table 1: shortcut-only gating); arguments as ``Highway``."""

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Merge x and F(x), which have the same shape."""
        return fx + (1 - self.gate(x)) * x


# Functions that have a name, so that a module with one of them can be pickled.
MERGES = {"sum": operator.add, "product": operator.mul, "none": plain, "half": half}
GATES = {"highway": Highway, "shortcut_gate": ShortcutGate}


def gate_bias(depth: int) -> float:
    """The initial b of a gate in a network of ``depth`` layers: -depth/10, at most -1 and at least -6.

    Srivastava 2015 uses -1, -2, -3 for about 10, 20, 30 layers. Above 60 layers b stays at -6, which He 2016 (section
    3.1) found best among 0, -1, ..., -10 for 110 layers. At -11 only 1/60,000 of the branch would pass at first.
    """
    return -min(max(depth / 10, 1.0), 6.0)


class Residual(nn.Module):
    """Wrap a module or model whose output has the shape of its input: y = merge(x, F(x)).

    If F returns a tuple, such as a recurrent layer's (output, state), only its first element is merged with x. If it
    returns a ``PackedSequence``, the data ``[N, C]`` are merged. Further arguments, such as a first state, go to F.

    Args:
        module: F above. For ``nn.LSTM`` and ``nn.GRU``, input_size must be hidden_size times the number of directions.
        merge: ``sum``, ``product``, ``half``, ``none`` (F alone), or any callable or module of (x, F(x)), such as
            ``Highway(64)`` and ``ShortcutGate(64)``, with ``dim=-1`` for sequences.

    Raises:
        ResvaeError: an unknown merge; in ``forward``, an output that differs from the input in shape or packing.
    """

    def __init__(self, module: nn.Module, merge: Merge = "sum"):
        super().__init__()
        self.module = module
        self.merge = make_merge(merge)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The module's output, merged with x."""
        y = self.module(x, *args, **kwargs)
        if isinstance(y, tuple) and not isinstance(y, PackedSequence):
            return self._merged(x, y[0], f", the first of {len(y)} outputs"), *y[1:]
        return self._merged(x, y)

    def _merged(self, x: Any, fx: Any, which: str = "") -> Any:
        if isinstance(x, PackedSequence) and isinstance(fx, PackedSequence):
            pairs = [(a, b) for a, b in zip(x[1:], fx[1:], strict=True) if a is not b]
            if not all(isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b) for a, b in pairs):
                raise ResvaeError("Residual: the module changes lengths or order of a PackedSequence; both must stay")
            return fx._replace(data=self._merged(x.data, fx.data, f", packed data{which}"))
        a, b = (tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in (x, fx))
        if a != b or not isinstance(x, Tensor):
            raise ResvaeError(f"Residual: the module turns {a} into {b}{which}; both must have the same shape")
        return self.merge(x, fx)


def make_merge(
    merge: Merge, channels: int | None = None, bias: float = -1.0, dim: int = 1
) -> Callable[[Tensor, Tensor], Tensor]:
    """The merge of this name; a callable is returned as it is. Gates use the other arguments and need ``channels``."""
    check_merge(merge)
    if callable(merge):
        return merge
    if merge not in GATES:
        return MERGES[merge]
    if channels is None:
        raise ResvaeError(f"merge: {merge} needs the number of channels here; give {GATES[merge].__name__}(channels)")
    return GATES[merge](channels, bias, dim)


def check_merge(merge: Merge) -> None:
    """Raise ``ResvaeError`` for a merge that is neither a known name nor callable."""
    if not callable(merge) and merge not in get_args(MergeName):
        raise ResvaeError(f"merge: {merge!r} is not allowed; {', '.join(get_args(MergeName))} or a callable")


class ResidualGRUCell(nn.Module):
    """A convolutional GRU with one residual connection in its state and one around the cell (Toderici 2017).

    ::

        z, r = sigmoid(W x + U h), each with its own W and U
        h'   = (1 - z) h + z tanh(W x + U (r h)) + a_h W_h h
        o    = h' + a_x W_ox x

    W, U, W_h and W_ox are convolutions that keep the size; those of x have biases. With kernels of size 1 on 1x1 maps,
    this is a cell of vectors. With a_h = a_x = 0 it is the plain GRU, o = h'.

    Args:
        in_channels: those of x.
        channels: those of the state and the output.
        kernel_size: of W and W_ox. Odd, else ``ResvaeError``.
        hidden_kernel_size: of U and W_h. Odd, else ``ResvaeError``.
        a_h: the factor on the residual of the state.
        a_x: the factor on the residual around the cell.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        hidden_kernel_size: int = 1,
        a_h: float = 0.1,
        a_x: float = 0.1,
    ):
        super().__init__()
        for field, size in (("kernel_size", kernel_size), ("hidden_kernel_size", hidden_kernel_size)):
            if size < 1 or size % 2 == 0:
                raise ResvaeError(f"{field}: {size} is not allowed; it must be odd and at least 1")
        self.a_h, self.a_x = a_h, a_x
        self.input = nn.Conv2d(in_channels, 4 * channels, kernel_size, padding="same")  # z, r, candidate, output
        self.hidden = nn.Conv2d(
            channels, 3 * channels, hidden_kernel_size, padding="same", bias=False
        )  # z, r, residual
        self.candidate = nn.Conv2d(channels, channels, hidden_kernel_size, padding="same", bias=False)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``x [B, in_channels, H, W]`` and the state ``h [B, channels, H, W]`` (default: zeros) to (o, h')."""
        z, r, candidate, out = self.input(x).chunk(4, 1)
        old = torch.zeros_like(z) if h is None else h
        hidden_z, hidden_r, residual = self.hidden(old).chunk(3, 1)
        z, r = torch.sigmoid(z + hidden_z), torch.sigmoid(r + hidden_r)
        new = (1 - z) * old + z * torch.tanh(candidate + self.candidate(r * old)) + self.a_h * residual
        return new + self.a_x * out, new
