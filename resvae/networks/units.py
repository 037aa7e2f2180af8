"""The residual units of any model: in order, by name, and with moves that take them out or exchange them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from resvae.errors import ResvaeError
from resvae.networks.blocks import ResidualBlock, ZeroPad
from resvae.networks.residual import Sum

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Unit:
    """One residual block where it stands.

    Args:
        name: of the module: ``encoder.stages.0.2``.
        block: the module.
    """

    name: str
    block: ResidualBlock

    @property
    def stage(self) -> str:
        """The name of what it stands in; units of one stage that do not change the shape are interchangeable."""
        return self.name.rpartition(".")[0]

    @property
    def changes(self) -> bool:
        """Whether resolution or width changes in it."""
        return self.block.stride != 1 or self.block.in_channels != self.block.channels

    def carried(self, x: Tensor) -> Tensor:
        """The block without its branch: what the connection around it hands on.

        A plain block (``merge="none"``) has none: x itself, and where the shape changes x strided and zero-padded to
        it (He's option A).
        """
        block = self.block
        if block.plain:
            return ZeroPad(block.in_channels, block.channels, block.stride, block.up)(x)
        return block.after(block.shortcut(block.before(x)))

    def added(self, x: Tensor) -> Tensor:
        """F(x), what the branch gives to the merge."""
        return self.block.branch(self.block.before(x))

    def weighted(self, factor: float, x: Tensor) -> Tensor:
        """The block with its branch times ``factor``; with 0 what it carries, and the branch is not computed."""
        block = self.block
        if not factor:
            return self.carried(x)
        x = block.before(x)
        return block.after(block.merge(block.shortcut(x), factor * block.branch(x)))


def units(model: nn.Module, within: str = "") -> list[Unit]:
    """The residual blocks of a model, in the order of the data's way through encoder and decoder.

    Args:
        model: anything that holds ``ResidualBlock``s.
        within: the name of a part: ``encoder`` or ``decoder``.

    Raises:
        ResvaeError: there are none.
    """
    found = [
        Unit(name, module)
        for name, module in model.named_modules()
        if isinstance(module, ResidualBlock) and f"{name}.".startswith(f"{within}." if within else "")
    ]
    if not found:
        raise ResvaeError(
            f"model: a {type(model).__name__} has no residual block" + (f" in {within}" if within else "")
        )
    return found


def summed(model: nn.Module, within: str = "") -> list[Unit]:
    """``units`` that all add their branch to what their connection carries.

    Raises:
        ResvaeError: there are none, or one merges otherwise.
    """
    found = units(model, within)
    for unit in found:
        if not isinstance(unit.block.merge, Sum):
            merge = getattr(unit.block.merge, "__name__", type(unit.block.merge).__name__)
            raise ResvaeError(f"model: the units must be merged by sum; {unit.name} is merged by {merge}")
    return found


@contextmanager
def replaced(forwards: Iterable[tuple[Unit, Forward]]) -> Iterator[None]:
    """While inside, each unit computes the function given for it; then it is itself again."""
    changed = []
    try:
        for unit, forward in forwards:
            changed.append(unit.block)
            unit.block.__dict__["forward"] = forward  # before the class's own
        yield
    finally:
        for block in changed:
            block.__dict__.pop("forward", None)
