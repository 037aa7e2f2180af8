"""A model's activations within a budget of memory: how long the segments of its chains of blocks must be.

Torch's internals used here: ``FakeTensorMode``, which runs a model without computing or allocating anything.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from resvae.errors import ResvaeError
from resvae.networks.segments import chains, set_segment

MIB = 2**20
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def in_bytes(field: str, text: str) -> int:
    """The bytes of ``4GiB``, ``500MB`` or ``1000000``; ``ResvaeError`` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise ResvaeError(f"{field}: {text} is not allowed; bytes, such as 4GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])


def imitate(
    model: nn.Module, objective: Callable[[Tensor], Any], x: Tensor, bf16: bool, within: AbstractContextManager[Any]
) -> None:
    """Call an ``objective`` of a model ``within`` a context that looks on; nothing is computed or allocated.

    Args:
        model: whose weights the objective uses.
        objective: of images ``[B, C, H, W]``.
        x: a batch of uint8; its shape and device count.
        bf16: whether under autocast.
        within: sees all operations on tensors that have a shape and a type, and no values.
    """

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Any:
            return objective(x)

    fake, wrapped = FakeTensorMode(), Objective()
    named = [*wrapped.named_parameters(), *wrapped.named_buffers()]
    tensors: dict[str, Any] = {name: fake.from_tensor(tensor) for name, tensor in named}
    batch = fake.from_tensor(x)
    with fake, within, torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        torch.func.functional_call(wrapped, tensors, (batch,))


class Kept:
    """What a training step keeps for its gradient, of each block and of the rest; nothing is computed.

    Args:
        model: whose ``chains`` are looked at.
        objective: of images ``[B, C, H, W]``, something with a Tensor that has a gradient in it.
        x: a batch of uint8; its shape and device count.
        bf16: whether under autocast.
    """

    def __init__(self, model: nn.Module, objective: Callable[[Tensor], Any], x: Tensor, bf16: bool):
        self.chains = [[(0, 0)] * len(chain) for chain in chains(model)]  # of each block, what it keeps, and its input
        places = {block: (i, j) for i, chain in enumerate(chains(model)) for j, block in enumerate(chain)}
        storages: dict[int, torch.UntypedStorage] = {}  # alive, so that no two have one number
        begun: list[int] = []

        def total() -> int:
            return sum(storage.nbytes() for storage in storages.values())

        def keep(tensor: Tensor) -> Tensor:
            if not (tensor.is_leaf and tensor.requires_grad):  # weights are there anyway
                storage = tensor.untyped_storage()
                storages[storage._cdata] = storage
            return tensor

        def before(*_: Any) -> None:
            begun.append(total())

        def after(block: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
            i, j = places[block]
            self.chains[i][j] = total() - begun.pop(), inputs[0].numel() * inputs[0].element_size()

        hooks = [block.register_forward_pre_hook(before) for block in places]
        hooks += [block.register_forward_hook(after) for block in places]
        try:
            imitate(model, objective, x, bf16, saved_tensors_hooks(keep, lambda tensor: tensor))
        finally:
            for hook in hooks:
                hook.remove()
        self.total = total()

    def with_segments(self, segment: int | None) -> int:
        """Bytes at the most, where chains have segments of so many blocks: what is kept, and one segment's inside."""
        if segment is None:
            return self.total
        inside = sum(kept for chain in self.chains for kept, _ in chain)
        inputs, most = 0, 0
        for chain in self.chains:
            for start in range(0, len(chain), segment):
                inputs += chain[start][1]
                most = max(most, sum(kept for kept, _ in chain[start : start + segment]))
        return self.total - inside + inputs + most

    def best(self) -> int:
        """The length of segments that needs the least."""
        longest = max((len(chain) for chain in self.chains), default=1)
        return min(range(1, longest + 1), key=self.with_segments)


def keep_to(budget: int, model: nn.Module, objective: Callable[[Tensor], Any], x: Tensor, bf16: bool) -> str:
    """Let a model's chains have segments if its activations of a batch need more bytes; what was chosen, as a sentence.

    Args:
        budget: in bytes.
        model, objective, x, bf16: as ``Kept`` has them.

    Raises:
        ResvaeError: no segments are short enough.
    """
    kept = Kept(model, objective, x, bf16)
    whole, segment = kept.with_segments(None), kept.best()
    least = kept.with_segments(segment)
    if whole <= budget:
        set_segment(model, None)
        return f"memory: about {whole / MIB:,.1f} MiB of activations"
    if least > budget:
        raise ResvaeError(
            f"memory_budget: {budget / MIB:,.1f} MiB is not enough for the activations of {len(x)} images; "
            f"{min(whole, least) / MIB:,.1f} MiB is the least"
        )
    set_segment(model, segment)
    return (
        f"memory: about {least / MIB:,.1f} MiB of activations instead of {whole / MIB:,.1f}; of every {segment} blocks "
        "that follow one another, what is inside is computed again for the gradient"
    )
