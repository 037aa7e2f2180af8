"""The residual units of any model, in order and by name, and a way to remove or exchange them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from resvae.errors import ResvaeError
from resvae.networks.blocks import ResidualBlock, ZeroPad
from resvae.networks.residual import MERGES

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Unit:
    """One residual block and its name in the model, such as ``encoder.stages.0.2``."""

    name: str
    block: ResidualBlock

    @property
    def stage(self) -> str:
        """The name of its stage. Units of one stage that do not change the shape can be exchanged."""
        return self.name.rpartition(".")[0]

    @property
    def changes(self) -> bool:
        """Whether the unit changes the resolution or the width."""
        return self.block.stride != 1 or self.block.in_channels != self.block.channels

    def carried(self, x: Tensor) -> Tensor:
        """The block without its branch: what the shortcut passes on; a plain block's would be He's option A."""
        block = self.block
        if block.plain:
            return ZeroPad(block.in_channels, block.channels, block.stride, block.up)(x)
        return block.after(block.shortcut(block.before(x)))

    def added(self, x: Tensor) -> Tensor:
        """F(x), the output of the branch before the merge."""
        return self.block.branch(self.block.before(x))

    def weighted(self, factor: float, x: Tensor) -> Tensor:
        """The block with its branch multiplied by ``factor``. With 0, the branch is not computed."""
        block = self.block
        if not factor:
            return self.carried(x)
        x = block.before(x)
        return block.after(block.merge(block.shortcut(x), factor * block.branch(x)))


def units(model: nn.Module, within: str = "") -> list[Unit]:
    """The residual blocks of a model, or of its part ``within``, in the data's order; ``ResvaeError`` without any."""
    found = [
        Unit(name, module)
        for name, module in model.named_modules()
        if isinstance(module, ResidualBlock) and f"{name}.".startswith(f"{within}." if within else "")
    ]
    if not found:
        place = f" in {within}" if within else ""
        raise ResvaeError(f"model: a {type(model).__name__} has no residual block{place}")
    return found


def parts(model: nn.Module) -> dict[str, list[Unit]]:
    """The blocks of the encoder and, in a VAE, of the decoder, in the data's order."""
    found = groupby(units(model), lambda unit: "encoder" if unit.name.startswith("encoder.") else "decoder")
    return {part: list(blocks) for part, blocks in found}


def summed(model: nn.Module, within: str = "") -> list[Unit]:
    """The same as ``units``; ``ResvaeError`` where a block is not merged by sum."""
    found = units(model, within)
    for unit in found:
        if unit.block.merge is not MERGES["sum"]:
            merge = getattr(unit.block.merge, "__name__", type(unit.block.merge).__name__)
            raise ResvaeError(f"model: the units must be merged by sum; {unit.name} is merged by {merge}")
    return found


@contextmanager
def replaced(forwards: Iterable[tuple[Unit, Forward]]) -> Iterator[None]:
    """Inside the context, each unit computes the function given for it. Afterwards it is restored."""
    changed = []
    try:
        for unit, forward in forwards:
            changed.append(unit.block)
            unit.block.__dict__["forward"] = forward  # takes precedence over the class's method
        yield
    finally:
        for block in changed:
            block.__dict__.pop("forward", None)


def hidden_convolutions(module: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    """The convolutions between a stem and the heads, once each: what the modules name in ``hidden_layers``."""
    named = [getattr(part, name) for part in module.modules() for name in getattr(part, "hidden_layers", ())]
    layers = [layer for each in named for layer in each.modules()]
    return list(dict.fromkeys(layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)))
