"""``resvae sweep``: one run a depth (or levels, or stochastic depth) and seed, each resumed where it stopped."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from resvae.errors import ResvaeError, at_least
from resvae.studies.launch import Launch, Parser, listed
from resvae.studies.matching import matched_widths
from resvae.studies.results import AXES, Point, table
from resvae.studies.runs import Run


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
            at_least(1, **{option: number})

    def limits(self) -> tuple[str, ...]:
        """Where ``resvae fit`` ends, whatever the configuration says of it; early stopping would end it sooner."""
        patient = f"--early_stopping.patience={10**9}"
        if self.seconds:
            time = json.dumps({"seconds": self.seconds})
            return f"--trainer.max_time={time}", "--trainer.max_epochs=-1", "--trainer.max_steps=-1", patient
        if self.steps:
            return "--trainer.max_time=null", "--trainer.max_epochs=-1", f"--trainer.max_steps={self.steps}", patient
        return ()


def main(arguments: list[str]) -> None:
    """Parse ``resvae sweep``; what it does not know goes to ``resvae fit`` of each run."""
    parser = Parser(
        "sweep", "Train one model a value and seed, resume what was stopped, and write the table: .md, .csv, .png."
    )
    varied = parser.add_mutually_exclusive_group()
    varied.add_argument("--depths", help="28,40,70,100")
    varied.add_argument("--levels", help="1,2,4,8, or a number a resolution, coarsest first: 1-1-1,1-2-2")
    varied.add_argument("--stochastic_depths", help="1,2,4: how many of the levels have latents")
    parser.add_argument("--match", help="the same in all runs: params, time or steps; params,time; params,steps")
    parser.add_argument("--params", type=int, help="of --match params; as many as the configuration has unless told")
    parser.add_argument("--seconds", type=int, help="of --match time: training and validation")
    parser.add_argument("--steps", type=int, help="of --match steps: updates")
    parser.add_argument("--name", default="sweep", help="the sweep's folder is <runs>/<name>")
    parser.add_argument("--runs", default="runs", help="the folder of all runs")
    known, rest = parser.parse_known_args(arguments)
    given = [(axis, option) for axis, option in AXES.items() if getattr(known, option) is not None]
    if known.config is None or not given:
        raise ResvaeError(
            f"sweep: --config and one of {', '.join(f'--{option}' for option in AXES.values())} are needed"
        )
    axis, option = given[0]
    sweep(
        parser.launch(Path(known.runs) / known.name, known, rest),
        axis,
        listed(option, getattr(known, option)),
        [None] if known.seeds is None else [seed for (seed,) in listed("seeds", known.seeds, r"\d+")],
        Match(
            tuple(known.match.replace(" ", "").split(",")) if known.match else (),
            known.params,
            known.seconds,
            known.steps,
        ),
    )


def sweep(
    launch: Launch,
    axis: str,
    values: Sequence[tuple[int, ...]],
    seeds: Sequence[int | None] = (None,),
    match: Match = Match(),
) -> str:
    """Train a model a value and seed.

    A run that has ended is not repeated; one that was stopped goes on from its last checkpoint; one that fails does
    not stop the others. The table is written after every run.

    Args:
        launch: where and how.
        axis: the model's argument that varies: ``depth``, ``levels``, ``stochastic_depth``.
        values: one number each, or one a resolution.
        seeds: one run each; None for the configuration's own.
        match: what all runs have the same of.

    Returns:
        The table in Markdown.

    Raises:
        ResvaeError: a classifier's configuration; the folder's runs were trained otherwise; a run failed.
    """
    launch = replace(launch, more={"match": asdict(match)})
    config = launch.common["config"]
    if isinstance(config, dict) and "classifier" in (config.get("model") or ()):
        raise ResvaeError(f"config: {launch.config} is a classifier's; a sweep is of VAEs (see resvae study --help)")
    common = [*launch.arguments, *match.limits()]

    def run(value: tuple[int, ...], seed: int | None, arguments: Sequence[str] = ()) -> Run:
        point = Point(axis, value, seed)
        seeded = [] if seed is None else [f"--seed_everything={seed}"]
        return Run(launch.folder, point.name, str(point), (*common, *arguments, *seeded))

    chosen = {value: [f"--model.vae.init_args.{axis}={_yaml(value)}"] for value in values}
    if "params" in match.kinds:
        untrained = [value for value in chosen if not all(run(value, seed).ended for seed in seeds)]
        solved = matched_widths(common, [chosen[value] for value in untrained], match.params)
        for value, widths in zip(untrained, solved, strict=True):
            chosen[value].append(f"--model.vae.init_args.widths={list(widths)}")
    runs = [run(value, seed, arguments) for value, arguments in chosen.items() for seed in seeds]
    return launch.train(runs, lambda: table(launch.folder, axis), AXES[axis])


def _yaml(value: Sequence[int]) -> str:
    return str(value[0]) if len(value) == 1 else str(list(value))
