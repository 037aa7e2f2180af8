"""``resvae sweep``: one run a depth (or levels, or stochastic depth) and seed, each resumed where it stopped."""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from resvae.errors import ResvaeError
from resvae.storage import write_atomically
from resvae.studies.matching import matched_widths
from resvae.studies.remote import Cluster, train_remotely
from resvae.studies.results import table
from resvae.studies.runs import AXES, Run, train_here


@dataclass(frozen=True)
class Match:
    """What all runs have the same of.

    Args:
        kinds: ``params``, ``time`` or ``steps``, or ``params`` and one of the two.
        params: how many; as many as the configuration as it is written unless told.
        seconds: of training and validation, by the clock. The cosine ends with them.
        steps: updates.

    Raises:
        ResvaeError: another kind, time and steps together, a kind without its number or a number without its kind.
    """

    kinds: tuple[str, ...] = ()
    params: int | None = None
    seconds: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in ("params", "time", "steps") or {"time", "steps"} <= set(self.kinds):
                raise ResvaeError(
                    f"match: {','.join(self.kinds)} is not allowed; params, time, steps, params,time or params,steps"
                )
        for kind, option in (("params", "params"), ("time", "seconds"), ("steps", "steps")):
            number = getattr(self, option)
            if number is None and kind in self.kinds and kind != "params":
                raise ResvaeError(f"match: {kind} needs --{option}")
            if number is not None and kind not in self.kinds:
                raise ResvaeError(f"{option}: {number} is not allowed without --match {kind}")
            if number is not None and number < 1:
                raise ResvaeError(f"{option}: {number} is not allowed; at least 1")

    def limits(self) -> tuple[str, ...]:
        """Where ``resvae fit`` ends, whatever the configuration says of it."""
        if self.seconds:
            time = json.dumps({"seconds": self.seconds})
            return f"--trainer.max_time={time}", "--trainer.max_epochs=-1", "--trainer.max_steps=-1"
        if self.steps:
            return "--trainer.max_time=null", "--trainer.max_epochs=-1", f"--trainer.max_steps={self.steps}"
        return ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ResvaeError(f"sweep: {message}")


def main(arguments: list[str]) -> None:
    """Parse ``resvae sweep``; what it does not know goes to ``resvae fit`` of each run."""
    parser = _Parser(
        prog="resvae sweep",
        allow_abbrev=False,
        description="Train one model a value and seed, resume what was stopped, and write the table: .md, .csv, .png.",
        epilog="Every other option goes to `resvae fit` of each run: --trainer.max_epochs 10 --model.vae.latent_dim 64",
    )
    parser.add_argument("--config", help="the YAML of `resvae fit`")
    varied = parser.add_mutually_exclusive_group()
    varied.add_argument("--depths", help="28,40,70,100")
    varied.add_argument("--levels", help="1,2,4,8, or a number a resolution, coarsest first: 1-1-1,1-2-2")
    varied.add_argument("--stochastic_depths", help="1,2,4: how many of the levels have latents")
    parser.add_argument("--seeds", help="0,1,2: one run a value and seed; the configuration's seed unless told")
    parser.add_argument("--match", help="the same in all runs: params, time or steps; params,time; params,steps")
    parser.add_argument("--params", type=int, help="of --match params; as many as the configuration has unless told")
    parser.add_argument("--seconds", type=int, help="of --match time: training and validation")
    parser.add_argument("--steps", type=int, help="of --match steps: updates")
    parser.add_argument("--jobs", type=int, default=1, help="so many runs at once; their output goes to <run>.log")
    parser.add_argument("--ray", help="run on Ray: a cluster's address, auto, or local; the workers share the disk")
    parser.add_argument("--cpus", type=int, default=1, help="of --ray: cores a run")
    parser.add_argument("--gpus", type=float, default=0, help="of --ray: GPUs a run")
    parser.add_argument("--name", default="sweep", help="the sweep's folder is <runs>/<name>")
    parser.add_argument("--runs", default="runs", help="the folder of all runs")
    known, rest = parser.parse_known_args(arguments)
    given = [(axis, option) for axis, option in AXES.items() if getattr(known, option) is not None]
    if known.config is None or not given:
        raise ResvaeError(
            f"sweep: --config and one of {', '.join(f'--{option}' for option in AXES.values())} are needed"
        )
    (axis, option), seeds = given[0], known.seeds
    sweep(
        axis,
        _values(option, getattr(known, option)),
        known.config,
        Path(known.runs) / known.name,
        rest,
        seeds=[None] if seeds is None else [seed for (seed,) in _values("seeds", seeds, r"\d+")],
        match=Match(tuple(known.match.split(",")) if known.match else (), known.params, known.seconds, known.steps),
        jobs=known.jobs,
        cluster=None if known.ray is None else Cluster(known.ray, known.cpus, known.gpus),
    )


def sweep(
    axis: str,
    values: Sequence[tuple[int, ...]],
    config: str | Path,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    seeds: Sequence[int | None] = (None,),
    match: Match = Match(),
    jobs: int = 1,
    cluster: Cluster | None = None,
) -> str:
    """Train a model a value and seed, each in a process of its own.

    A run that has ended is not repeated; one that was stopped goes on from its last checkpoint; one that fails does
    not stop the others. The table is written after every run.

    Args:
        axis: the model's argument that varies: ``depth``, ``levels``, ``stochastic_depth``.
        values: one number each, or one a resolution.
        config: the YAML of ``resvae fit``.
        folder: where the runs and the table go, and ``sweep.json``: what the runs have in common.
        overrides: further arguments of ``resvae fit``.
        seeds: one run each; None for the configuration's own.
        match: what all runs have the same of.
        jobs: runs at once on this machine.
        cluster: where to train instead.

    Returns:
        The table in Markdown.

    Raises:
        ResvaeError: no such configuration; the folder's runs were trained otherwise; a run failed.
    """
    if jobs < 1:
        raise ResvaeError(f"jobs: {jobs} is not allowed; at least 1")
    if not Path(config).is_file():
        raise ResvaeError(f"sweep: the configuration {config} does not exist")
    environment = {name: value for name, value in os.environ.items() if name.startswith("RESVAE_FIT__")}
    given = {"config": _content(config), "overrides": overrides, "match": asdict(match), "environment": environment}
    same = json.loads(json.dumps(given, default=str))
    _refuse_other(folder, same)

    common = ["--config", str(config), *overrides, *match.limits()]
    chosen = {value: [f"--model.vae.init_args.{axis}={_yaml(value)}"] for value in values}
    if "params" in match.kinds:
        untrained = [value for value in chosen if not all(Run(folder, axis, value, seed).ended for seed in seeds)]
        solved = matched_widths(common, [chosen[value] for value in untrained], match.params)
        for value, widths in zip(untrained, solved, strict=True):
            chosen[value].append(f"--model.vae.init_args.widths={_yaml(widths)}")
    runs = [
        Run(folder, axis, value, seed, (*common, *arguments, *([] if seed is None else [f"--seed_everything={seed}"])))
        for value, arguments in chosen.items()
        for seed in seeds
    ]
    runs = [run for run in runs if not run.ended]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "sweep.json", lambda path: path.write_text(json.dumps(same, indent=2) + "\n"))

    failed, text = [], table(folder, axis)
    if runs:
        trained = train_remotely(runs, cluster, environment) if cluster else train_here(runs, jobs, environment)
        for run, code in trained:
            failed += [run] if code else []
            text = table(folder, axis)
    if text:
        print(text)
        print("\n".join(f"wrote {path}" for path in sorted(folder.glob(f"{AXES[axis]}*.*"))))
    if failed:
        told = "; ".join(f"{run} ({run.log})" if cluster or jobs > 1 else str(run) for run in failed)
        raise ResvaeError(f"sweep: failed: {told}; the same command goes on with what is left")
    return text


def _refuse_other(folder: Path, here: dict[str, Any]) -> None:
    """Raise where ``folder`` holds runs that were trained with something else in common."""
    if not any(folder.glob("*/checkpoints/*.ckpt")):
        return
    kept = folder / "sweep.json"
    there = json.loads(kept.read_text()) if kept.is_file() else {}
    other = [name for name, value in here.items() if there.get(name) != value]
    if other:
        raise ResvaeError(
            f"sweep: the runs in {folder} were trained with another {' and '.join(other)} (see {kept}); "
            "choose another --name, or remove that folder"
        )


def _content(config: str | Path) -> Any:
    """What the configuration says; its comments may change."""
    try:
        return yaml.safe_load(Path(config).read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ResvaeError(f"sweep: {config} is not YAML: {error}") from error


def _values(option: str, text: str, each: str = r"\d+(-\d+)*") -> list[tuple[int, ...]]:
    parts = text.replace(" ", "").split(",")
    if not all(re.fullmatch(each, part) for part in parts):
        raise ResvaeError(f"{option}: {text!r} is not allowed; give numbers with commas: 28,40,70,100")
    return list(dict.fromkeys(tuple(map(int, part.split("-"))) for part in parts))


def _yaml(value: Sequence[int]) -> str:
    return str(value[0]) if len(value) == 1 else str(list(value))
