"""Widths that give models of different depth or levels the same number of parameters."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser

from resvae.errors import ResvaeError
from resvae.models import ImageModel
from resvae.training.configuration import Configuration

UNIT = 4  # of widths: a bottleneck is a quarter as wide
Widths = tuple[int, ...]
Tree = dict[str, Any]


def matched_widths(base: Configuration, varied: Sequence[Mapping[str, Any]], target: int | None) -> list[Widths]:
    """For each change of the base configuration, the widths that bring its model nearest to ``target`` parameters.

    Prints what they give.

    Args:
        base: what all have in common.
        varied: the changes of each, by the fields' full names.
        target: a number of parameters; default: that of the base configuration.

    Raises:
        ResvaeError: the model has no ``widths``.
    """
    if target is None:
        target = parameters(_model(base))
    solved = []
    for changes in varied:
        model = _model(base.changed(changes))
        count = functools.partial(parameters, model)
        solved.append(nearest_widths(tuple(model["init_args"]["widths"]), target, count))
        num = count(solved[-1])
        told = ", ".join(f"{field.split('.')[-1]} {value}" for field, value in changes.items())
        print(f"{told}: widths {solved[-1]}, {num:,} parameters, {num / target - 1:+.2%} of {target:,}")
    return solved


def nearest_widths(widths: Widths, target: int, count: Callable[[Widths], int]) -> Widths:
    """Multiples of 4, in about the proportions of ``widths``, whose ``count`` is nearest to ``target``.

    One factor on all widths is found by bisection; then single widths move by 4 for as long as that comes nearer.
    """
    count = functools.cache(count)

    def scaled(factor: float) -> Widths:
        return tuple(UNIT * max(1, round(width * factor / UNIT)) for width in widths)

    def distance(candidate: Widths) -> int:
        return abs(count(candidate) - target)

    low, high = 0.0, 1.0
    while count(scaled(high)) < target:
        low, high = high, 2 * high
    while scaled(low) != scaled(high) and high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if count(scaled(middle)) < target else (low, middle)
    best, last = min(scaled(low), scaled(high), key=distance), None
    while best != last:
        steps = [(i, best[i] + step) for i in range(len(best)) for step in (-UNIT, UNIT)]
        near = [(*best[:i], width, *best[i + 1 :]) for i, width in steps if width >= UNIT]
        best, last = min([best, *near], key=distance), best
    return best


def parameters(model: Tree, widths: Widths | None = None) -> int:
    """The number of trained parameters of a model, counted without memory for them where its constructor allows.

    Args:
        model: ``class_path`` and ``init_args``.
        widths: in the place of its own.
    """
    arguments = model["init_args"] | ({} if widths is None else {"widths": list(widths)})
    parser = _parser()
    config = parser.parse_object({"model": model | {"init_args": arguments}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                built = parser.instantiate(config).model
        except (NotImplementedError, RuntimeError):  # the constructor looks at a value
            built = parser.instantiate(config).model
    return sum(p.numel() for p in built.parameters() if p.requires_grad)


@functools.cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=ImageModel)  # alone: in a union the model's own errors get lost
    return parser


def _model(configuration: Configuration) -> Tree:
    model = configuration.tree()["model"][configuration.field]
    if "widths" not in model["init_args"]:
        raise ResvaeError(f"match: params needs a model with widths; {model['class_path'].split('.')[-1]} has none")
    return model
