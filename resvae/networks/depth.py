"""Translate one number, the depth or the number of levels, into a number per stage."""

import operator
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, SupportsIndex

from resvae.errors import ResvaeError, whole_from

CONVOLUTIONS = {"bottleneck": 3, "basic": 2}  # on the main path of a block
OTHER_LAYERS = 4  # a VAE's stem, latent head, dense layer of the decoder and last convolution
PROPORTIONS = (3, 4, 6, 3)  # those of a ResNet-50
TABLED = {33: (3, 4, 23, 3), 50: (3, 8, 36, 3)}  # He 2015, table 1: 101 and 152 layers
IMAGENET = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def is_sequence(value: Any) -> bool:
    """Whether it is a tuple, a list or the like, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def per_stage(**fields: Sequence[int]) -> int:
    """The number of stages; ``ResvaeError`` where a field is not a whole number, at least 1, for each of them."""
    for field, value in fields.items():
        if not is_sequence(value) or not value or not all(isinstance(n, Integral) and n >= 1 for n in value):
            raise ResvaeError(f"{field}: {value!r} is not allowed; one whole number per stage, each at least 1")
    for (first, a), (field, b) in pairwise(fields.items()):
        if len(a) != len(b):
            given = f"{field}: {tuple(b)} is not allowed with {first} {tuple(a)}"
            raise ResvaeError(f"{given}; each must have one number per stage")
    return len(next(iter(fields.values())))


def check_shape(image_shape: Sequence[int]) -> None:
    """Raise ``ResvaeError`` for what is no ``(C, H, W)``."""
    if not _is_counts(image_shape, 3, 1):
        raise ResvaeError(f"image_shape: {image_shape!r} is not allowed; (channels, height, width), each at least 1")


def vae_blocks(depth: int | Sequence[int], num_stages: int = 4, kind: str = "bottleneck") -> tuple[int, ...]:
    """Blocks per stage of a VAE's encoder (its decoder mirrors them) that give ``depth`` weighted layers in total.

    With B blocks, depth = 2 c B + 4, where a block has c = 3 (bottleneck) or 2 (basic) convolutions on the main path.
    28, 40, 70 and 100 give the article's 4, 6, 11 and 16 blocks; 202 and 304 give He's (3, 4, 23, 3) and (3, 8, 36, 3).

    Shortcuts do not count. ``depth`` can be the blocks per stage, too. Where no number of blocks gives a depth, the
    ``ResvaeError`` names the two nearest that work.
    """
    whole_from(1, num_stages=num_stages)
    if kind not in CONVOLUTIONS:
        raise ResvaeError(f"kind: {kind!r} is not allowed; one of {', '.join(CONVOLUTIONS)}")
    depth = _plain(depth)
    if not isinstance(depth, int):
        return _checked(depth, num_stages)
    per_block = 2 * CONVOLUTIONS[kind]
    least = per_block * num_stages + OTHER_LAYERS
    num, rest = divmod(depth - OTHER_LAYERS, per_block)
    if depth < least or rest:
        below, hint = max(depth - rest, least), ""
        if depth < least:
            hint = f" ({'basic blocks or ' if kind == 'bottleneck' else ''}fewer stages allow smaller depths)"
        raise ResvaeError(
            f"depth: {depth} is not allowed with {num_stages} stages of {kind} blocks; "
            f"the nearest are {below} and {below + per_block}{hint}"
        )
    if num_stages == 4:
        return TABLED.get(num) or _share(num, PROPORTIONS)
    return _share(num, (1,) * num_stages)


def latent_levels(levels: int | Sequence[int], num_stages: int = 4) -> tuple[int, ...]:
    """Levels of latents per stage of a hierarchical VAE's decoder, coarsest first.

    A total is shared out evenly: fewer levels than stages go to the coarsest stages, one each; a remainder goes to the
    finest stages. ``levels`` can be the levels per stage, too, where 0 is allowed. No level at all, or not one number
    per stage, raises ``ResvaeError``.
    """
    levels = _plain(levels)
    if isinstance(levels, int):
        whole_from(1, levels=levels)
        each, rest = divmod(levels, num_stages)
        if not each:
            return (1,) * rest + (0,) * (num_stages - rest)
        return (each,) * (num_stages - rest) + (each + 1,) * rest
    if not _is_counts(levels, num_stages, 0) or not any(levels):
        raise ResvaeError(
            f"levels: {levels!r} is not allowed; give a whole number, "
            f"or {num_stages} numbers of levels, one per stage and one of them above 0"
        )
    return tuple(map(int, levels))


def cifar_blocks(depth: int | Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Kind and blocks per stage of He's CIFAR networks: 6n+2 with basic, 9n+2 with bottleneck blocks (164, 1001).

    Where both fit (20, 38, 56, 110 ...), blocks are basic below depth 164, as published. A tuple is the basic blocks.
    """
    depth = _plain(depth)
    if not isinstance(depth, int):
        return "basic", _checked(depth, 3)
    kind = _cifar_kind(depth)
    if kind is None:
        around = range(depth - 6, depth + 7) if depth > 14 else range(8, 21)
        allowed = [d for d in around if _cifar_kind(d)]
        raise ResvaeError(f"depth: {depth} is neither 6n+2 nor 9n+2; the nearest are {_nearest(depth, allowed)}")
    return kind, (depth // (6 if kind == "basic" else 9),) * 3


def imagenet_blocks(depth: int | Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Kind and blocks per stage of He's ImageNet networks: 18, 34 are basic; 50, 101, 152 and any tuple bottleneck."""
    depth = _plain(depth)
    if not isinstance(depth, int):
        return "bottleneck", _checked(depth, 4)
    if depth not in IMAGENET:
        allowed, nearest = ", ".join(map(str, IMAGENET)), _nearest(depth, sorted(IMAGENET))
        raise ResvaeError(f"depth: {depth} is not an ImageNet depth ({allowed}); the nearest are {nearest}")
    return IMAGENET[depth]


def _cifar_kind(depth: int) -> str | None:
    basic, bottleneck = depth >= 8 and depth % 6 == 2, depth >= 11 and depth % 9 == 2
    if bottleneck and (depth >= 164 or not basic):
        return "bottleneck"
    return "basic" if basic else None


def _share(num: int, proportions: Sequence[int]) -> tuple[int, ...]:
    """Share out ``num`` blocks by largest remainder, at least one per stage; later stages come first where equal."""
    total = sum(proportions)
    blocks = [max(1, num * p // total) for p in proportions]
    by_remainder = sorted(range(len(blocks)), key=lambda i: (num * proportions[i] / total - blocks[i], i), reverse=True)
    for i in by_remainder[: num - sum(blocks)]:
        blocks[i] += 1
    return tuple(blocks)


def _plain(value: int | Sequence[int]) -> int | Sequence[int]:
    """A whole number, numpy's too, as Python's; all else as it is."""
    return operator.index(value) if isinstance(value, SupportsIndex) else value


def _checked(blocks: Sequence[int], num_stages: int) -> tuple[int, ...]:
    if not _is_counts(blocks, num_stages, 1):
        raise ResvaeError(
            f"depth: {blocks!r} is not allowed; give a whole number, or {num_stages} numbers of blocks, each at least 1"
        )
    return tuple(map(int, blocks))


def _is_counts(values: Sequence[int], num: int, least: int) -> bool:
    return is_sequence(values) and len(values) == num and all(isinstance(n, Integral) and n >= least for n in values)


def _nearest(depth: int, allowed: Sequence[int]) -> str:
    return " and ".join(map(str, sorted(sorted(allowed, key=lambda d: abs(d - depth))[:2])))
