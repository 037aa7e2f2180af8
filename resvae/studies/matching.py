"""Widths that give models of different depth or levels the same number of parameters."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError
from resvae.models import ImageVAE
from resvae.training import LitVAE
from resvae.training.run import RunCLI, with_environment

UNIT = 4  # of widths: a bottleneck is a quarter as wide
Widths = tuple[int, ...]


def matched_widths(arguments: Sequence[str], varied: Sequence[Sequence[str]], target: int | None) -> list[Widths]:
    """For each of ``varied``, added to the arguments of ``resvae fit``, the widths whose parameters are nearest.

    Prints what they give.

    Args:
        arguments: what all have in common.
        varied: further arguments of each.
        target: how many parameters; as many as with ``arguments`` alone unless told.

    Raises:
        ResvaeError: the model has no ``widths``.
    """
    if target is None:
        target = parameters(_model(arguments))
    solved = []
    for more in varied:
        model = _model([*arguments, *more])
        count = functools.partial(parameters, model)
        solved.append(nearest_widths(tuple(model["init_args"]["widths"]), target, count))
        num, option = count(solved[-1]), " ".join(more).removeprefix("--model.vae.init_args.")
        print(f"{option}: widths {solved[-1]}, {num:,} parameters, {num / target - 1:+.2%} of {target:,}")
    return solved


def nearest_widths(widths: Widths, target: int, count: Callable[[Widths], int]) -> Widths:
    """Multiples of 4, in about the proportions of ``widths``, whose ``count`` is nearest to ``target``.

    One factor on all by bisection, then single widths 4 up or down for as long as that comes nearer.
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


def parameters(model: dict[str, Any], widths: Widths | None = None) -> int:
    """How many a model has that are trained, without the memory for them where its constructor looks at no value.

    Args:
        model: ``class_path`` and ``init_args``.
        widths: in place of its own.
    """
    arguments = model["init_args"] | ({} if widths is None else {"widths": list(widths)})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--vae", type=ImageVAE)  # alone: in a union the model's own errors get lost
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the name of this method is newer than the oldest jsonargparse that serves
        config = parser.parse_object({"vae": model | {"init_args": arguments}})
        try:
            with torch.device("meta"):
                vae = parser.instantiate_classes(config)["vae"]
        except (NotImplementedError, RuntimeError):
            vae = parser.instantiate_classes(config)["vae"]
    return sum(p.numel() for p in vae.parameters() if p.requires_grad)


class _Parsed(RunCLI):
    """The configuration as ``resvae fit`` reads it, with nothing made of it."""

    def _parse_ckpt_path(self) -> None: ...
    def _set_seed(self) -> None: ...
    def instantiate_classes(self) -> None: ...
    def _run_subcommand(self, subcommand: str) -> None: ...


def _model(arguments: Sequence[str]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the arguments are not this process's own
        parsed = _Parsed(
            LitVAE,
            ImageDataModule,
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
            auto_configure_optimizers=False,
            args=["fit", *with_environment("fit", list(arguments))],
        )
    model = parsed.config.fit.model.vae.as_dict()
    if "widths" not in model["init_args"]:
        raise ResvaeError(f"match: params needs a model with widths; {model['class_path'].split('.')[-1]} has none")
    return model
