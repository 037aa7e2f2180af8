"""What a machine can do at most: matrix products, copies, and convolutions, a model's own and the fastest.

Torch's internals used here: ``TorchDispatchMode``, which torch documents and yet keeps in a private module.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resvae.benchmark.timing import Case, flops_of

SIDE = 2048  # of the matrices
COPIED = 2**27  # bytes: more than any cache holds
SQUARES = ((256, 64, 32), (256, 256, 16), (128, 512, 16), (64, 256, 8), (16, 64, 32))  # batch, channels, size


@dataclass(frozen=True)
class Shape:
    """A convolution: the shapes of its input and weight ``[O I/groups k k]`` or, transposed, ``[I O/groups k k]``."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    transposed: bool = False
    output_padding: int = 0
    groups: int = 1

    def __str__(self) -> str:
        batch, channels, height, width = self.input
        out = self.weight[1] * self.groups if self.transposed else self.weight[0]
        what = f"{self.weight[2]}x{self.weight[3]}" + (", transposed" if self.transposed else "")
        what += (f", stride {self.stride}" if self.stride > 1 else "") + (
            f", {self.groups} groups" if self.groups > 1 else ""
        )
        return f"{what}: {batch}x{channels}x{height}x{width} to {out} channels"


def matrix_product(device: torch.device, dtype: torch.dtype) -> Case:
    """Two square matrices."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return Case(f"matrix product, {SIDE}x{SIDE}x{SIDE}", lambda: torch.mm(a, b, out=out), flops=2 * SIDE**3)


def copy(device: torch.device) -> Case:
    """Reading and writing; its FLOPs are bytes."""
    a = torch.ones(COPIED // 4, device=device)
    b = torch.empty_like(a)
    return Case(f"copy, {COPIED >> 20} MiB", lambda: b.copy_(a), flops=2 * COPIED)


def squares(device: torch.device, dtype: torch.dtype) -> list[Case]:
    """3x3 convolutions of as many channels out as in, forward and backward: the fastest is the ceiling."""
    fewer = 16 if device.type == "cpu" else 1  # as fast there, and no minutes on a slow core
    shapes = [Shape((batch // fewer, c, size, size), (c, c, 3, 3), padding=1) for batch, c, size in SQUARES]
    return [convolution(shape, device, dtype) for shape in shapes]


def convolution(shape: Shape, device: torch.device, dtype: torch.dtype) -> Case:
    """One convolution, forward and backward, channels last."""
    x, weight = (
        torch.randn(size, device=device).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        for size in (shape.input, shape.weight)
    )
    rest = (shape.stride,), (shape.padding,), (1,), shape.transposed, (shape.output_padding,), shape.groups

    def forward() -> Tensor:
        return torch.convolution(x, weight, None, *rest)

    gradient = torch.ones_like(forward())

    def step() -> None:
        forward().backward(gradient)
        x.grad = weight.grad = None

    return Case(str(shape), step, flops=flops_of(step))


class Recorded(TorchDispatchMode):
    """Counts, while it is on, how often each ``shape`` of convolution over images is used."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a convolution, and do what would have been done."""
        if func is torch.ops.aten.convolution.default and args[0].dim() == 4:
            x, weight, _, stride, padding, _, transposed, output_padding, groups = args
            sizes = tuple(x.shape), tuple(weight.shape)
            self.shapes[Shape(*sizes, stride[0], padding[0], transposed, output_padding[0], groups)] += 1
        return func(*args, **(kwargs or {}))
