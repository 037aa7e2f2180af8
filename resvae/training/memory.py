"""A model's activations within a budget of memory: which of its chains of blocks have segments, and how long.

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
from resvae.networks.segments import chains, set_segment, split

MIB = 2**20
SHARES = [i / 16 for i in range(16)]  # of the blocks, that may keep everything
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

    def with_segments(self, segment: int | None, spared: float = 0.0) -> int:
        """Bytes at the most, where chains have segments of so many blocks: what is kept, and one segment's inside.

        The last part of each chain, ``spared`` of 1, keeps everything.
        """
        if segment is None:
            return self.total
        saved, most = 0, 0
        for chain in self.chains:
            for part in split(chain, segment, spared)[0]:
                inside = sum(kept for kept, _ in part)
                saved += inside - part[0][1]
                most = max(most, inside)
        return self.total - saved + most

    def best(self, spared: float = 0.0) -> tuple[int, int]:
        """The length of segments that needs the least, and the bytes of it."""
        longest = max((len(chain) for chain in self.chains), default=1)
        needs, segment = min((self.with_segments(segment, spared), segment) for segment in range(1, longest + 1))
        return segment, needs


def keep_to(budget: int, model: nn.Module, objective: Callable[[Tensor], Any], x: Tensor, bf16: bool) -> str:
    """Let a model's chains have segments if its activations of a batch need more bytes; what was chosen, as a sentence.

    As many of the blocks keep everything as the budget allows.

    Args:
        budget: in bytes.
        model, objective, x, bf16: as ``Kept`` has them.

    Raises:
        ResvaeError: no segments are short enough.
    """
    set_segment(model, None)  # what an earlier call chose would be seen as the model's own need
    kept = Kept(model, objective, x, bf16)
    whole, least = kept.total, kept.best()[1]
    if whole <= budget:
        set_segment(model, None)
        return f"memory: about {whole / MIB:,.1f} MiB of activations"
    if least > budget:
        raise ResvaeError(
            f"memory_budget: {budget / MIB:,.1f} MiB is not enough for the activations of {len(x)} images; "
            f"{min(whole, least) / MIB:,.1f} MiB is the least"
        )
    # The more blocks keep everything, the less is computed again.
    spared = max(share for share in SHARES if kept.best(share)[1] <= budget)
    segment, needs = kept.best(spared)
    set_segment(model, segment, spared)
    return (
        f"memory: about {needs / MIB:,.1f} MiB of activations instead of {whole / MIB:,.1f}; the inside of "
        f"{1 - spared:.0%} of the residual blocks, {segment} at a time, is computed again for the gradient"
    )
