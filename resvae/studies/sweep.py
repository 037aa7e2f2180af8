"""``resvae sweep``: one run per depth (or levels, or stochastic depth) and seed, and the table of them all."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from resvae.errors import ResvaeError, at_least
from resvae.files import write_figure
from resvae.runs.folder import read_summary
from resvae.studies.grid import Grid, Point, parse_grid
from resvae.studies.matching import matched_widths
from resvae.studies.processes import Workers
from resvae.studies.table import Row, over_seeds, plot_means, write_table
from resvae.training.configuration import Configuration, listed, numbers

# What can be varied: the model's argument, and what the option and the table's files are called.
AXES = {"depth": "depths", "levels": "levels", "stochastic_depth": "stochastic_depths"}

# Keng, "Residual Networks" (2018): minima over the epochs of the training and validation loss, nats per image.
REPORTED = {28: (1790.4, 1794.7), 40: (1787.5, 1795.7), 70: (1784.8, 1799.0), 100: (1782.3, 1804.0)}
NOTES = "Losses: nats per image, minima over the epochs. Bits/dim, KL (nats), error: at the best validation."
Value = Sequence[int]


@dataclass(frozen=True)
class Match:
    """What all runs have the same of; ``ResvaeError`` where kinds and numbers do not fit together.

    Args:
        kinds: ``params``, ``time`` or ``steps``, or ``params`` and one of the two.
        params: a number of parameters; default: that of the configuration as it is written.
        seconds: of training and validation, by the clock. The cosine ends with them.
        steps: updates.
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

    def limits(self) -> dict[str, Any]:
        """Where each run ends, whatever its configuration says of it; early stopping would end it sooner."""
        if not self.seconds and not self.steps:
            return {}
        time = {"seconds": self.seconds} if self.seconds else None
        ends = {"max_time": time, "max_epochs": -1, "max_steps": self.steps or -1}
        return {f"trainer.{name}": value for name, value in ends.items()} | {"early_stopping.patience": 10**9}


def main(verb: str, arguments: list[str]) -> None:
    """Parse ``resvae sweep``, and train."""

    def add(parser: ArgumentParser) -> None:
        parser.add_argument("--depths", type=str | None, help="28,40,70,100")
        parser.add_argument("--levels", type=str | None, help="1,2,4,8; or one number per resolution: 1-1-1,1-2-2")
        parser.add_argument("--stochastic_depths", type=str | None, help="1,2,4: how many levels have latents")
        parser.add_argument("--match", type=str | None, help="the same in all runs: params, time, steps; params,time")
        parser.add_argument("--params", type=int | None, help="with --match params; default: the configuration's own")
        parser.add_argument("--seconds", type=int | None, help="with --match time: training and validation")
        parser.add_argument("--steps", type=int | None, help="with --match steps: updates")

    description = "Train one model per value and seed, resume what was stopped, and write a table (.md, .csv, .png)."
    parsed = parse_grid(verb, description, arguments, add)
    if parsed is None:
        return
    base, own = parsed
    given = [(axis, option) for axis, option in AXES.items() if own[option] is not None]
    if len(given) != 1:
        options = ", ".join(f"--{option}" for option in AXES.values())
        got = " and ".join(f"--{option}" for _, option in given) or "none"
        raise ResvaeError(f"sweep: {got} of {options} is not allowed; give one of them, beside --config")
    axis, option = given[0]
    kinds = tuple(own.match.replace(" ", "").split(",")) if own.match else ()
    sweep(
        base,
        base.folder,
        axis,
        listed(option, own[option]),
        [None] if own.seeds is None else numbers("seeds", own.seeds),
        Match(kinds, own.params, own.seconds, own.steps),
        Workers(own.jobs, own.ray, own.cpus, own.gpus),
    )


def sweep(
    base: Configuration,
    folder: Path,
    axis: str,
    values: Sequence[Value],
    seeds: Sequence[int | None] = (None,),
    match: Match = Match(),
    workers: Workers = Workers(),
) -> str:
    """Train one model per value and seed; the table, written after every run, is returned in Markdown.

    Args:
        base: the configuration that all runs share.
        folder: of the runs and the table.
        axis: the model's argument that varies: ``depth``, ``levels``, ``stochastic_depth``.
        values: each one number, or one number per resolution.
        seeds: of the runs; None for the configuration's own.
        match: what all runs have the same of.
        workers: where to train, and how many at once.

    Raises:
        ResvaeError: the folder's runs were trained otherwise; a run failed.
    """
    base = base.changed(match.limits())
    model = f"model.{base.field}.init_args"
    chosen: list[dict[str, Any]] = [{f"{model}.{axis}": each[0] if len(each) == 1 else list(each)} for each in values]
    if "params" in match.kinds:
        solved = matched_widths(base, chosen, match.params)
        chosen = [one | {f"{model}.widths": list(widths)} for one, widths in zip(chosen, solved, strict=True)]
    points = [
        Point(
            name_of(axis, value, seed),
            {axis: written(value), **({} if seed is None else {"seed": str(seed)})},
            changes | ({} if seed is None else {"seed_everything": seed}),
        )
        for value, changes in zip(values, chosen, strict=True)
        for seed in seeds
    ]
    return Grid("sweep", folder, base, points, workers).train(lambda: table(folder, axis), AXES[axis])


def written(value: Value) -> str:
    """As the command line has it: 4, or 1-2-2-1."""
    return "-".join(map(str, value))


def name_of(axis: str, value: Value, seed: int | None) -> str:
    """The name of a run's folder: ``depth_0028``, ``levels_1-2-2-1_seed_0``."""
    number = f"{value[0]:04d}" if len(value) == 1 else written(value)
    return f"{axis}_{number}" + ("" if seed is None else f"_seed_{seed}")


def runs_in(folder: Path, axis: str) -> list[tuple[Value, int | None, dict[str, Any]]]:
    """The value, seed and summary of each run that has a summary, by value and seed."""
    names = [re.fullmatch(rf"{axis}_(\d+(?:-\d+)*)(?:_seed_(\d+))?", path.name) for path in folder.glob("*")]
    found = [
        (tuple(map(int, name[1].split("-"))), None if name[2] is None else int(name[2]), summary)
        for name in names
        if name and (summary := read_summary(folder / name[0]))
    ]
    return sorted(found, key=lambda run: (sum(run[0]), run[0], run[1] or 0))


def table(folder: Path, axis: str = "depth") -> str:
    """The table of the runs along ``axis`` that ``folder`` holds, as Markdown; writes it as CSV and PNG too.

    Where runs have seeds it has one row per value, and ``<axis>_runs`` one row per run.
    """
    runs, name = runs_in(folder, axis), AXES[axis]
    if not runs:
        return ""
    # of a sweep with seeds only what has ended is averaged, each seed once; the table of runs has all
    ended = [seed is not None and summary["ended"] != "running" for _, seed, summary in runs]
    averaged = [run for run, whole in zip(runs, ended, strict=True) if whole]
    write_plot(averaged or runs, axis, folder / f"{name}.png")
    rows = [_row(axis, *run) for run in runs]
    if len({row["widths"] for row in rows}) == 1:
        rows = [{key: cell for key, cell in row.items() if key != "widths"} for row in rows]
    if all(seed is None for _, seed, _ in runs):
        return write_table(rows, folder, name, NOTES)
    text = write_table(rows, folder, f"{name}_runs", NOTES)
    if not averaged:
        return text
    groups: dict[tuple[int, ...], list[Row]] = {}
    for (value, *_), row, whole in zip(runs, rows, ended, strict=True):
        if whole:
            groups.setdefault(tuple(value), []).append(row)
    notes = f"{NOTES} ±: the standard deviation over the seeds."
    return write_table([over_seeds(group) for group in groups.values()], folder, name, notes)


def write_plot(runs: Sequence[tuple[Value, int | None, dict[str, Any]]], axis: str, path: Path) -> None:
    """Error, bits/dim, or the losses where there are none, against the axis: a marker per run, a line through means."""
    from matplotlib.figure import Figure

    values = dict.fromkeys(value for value, *_ in runs)
    place = {value: value[0] if max(map(len, values)) == 1 else i for i, value in enumerate(values)}
    lines, unit = {"train_loss": "training", "val_loss": "validation"}, "loss, nats per image"
    for figure, label in (("error", "error, share"), ("bits_per_dim", "bits/dim")):
        if all(figure in summary for *_, summary in runs):
            lines, unit = {figure: "validation"}, label
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for i, (key, label) in enumerate(lines.items()):
        points = [(place[value], summary[key]) for value, _, summary in runs if key in summary]
        plot_means(axes, points, label, color=f"C{i}")
    axes.set_xticks(list(place.values()), [written(value) for value in place])
    axes.set(xlabel=axis.replace("_", " "), ylabel=unit)
    axes.legend()
    axes.grid(alpha=0.3)
    write_figure(path, figure)


def _row(axis: str, value: Value, seed: int | None, summary: dict[str, Any]) -> Row:
    arguments = {name: written(v) if isinstance(v, list) else v for name, v in (summary.get("arguments") or {}).items()}
    row: Row = {axis: written(value), **({} if seed is None else {"seed": str(seed)})}
    row |= {"levels": str(arguments["levels"])} if "levels" in arguments and axis != "levels" else {}
    row |= {
        "parameters": summary["parameters"],
        "hours": summary["seconds"] / 3600,
        "epochs": summary["epochs"],
        "train loss": summary.get("train_loss"),
        "validation loss": summary.get("val_loss"),
    }
    row |= {} if "error" in summary else {"bits/dim": summary.get("bits_per_dim"), "KL": summary.get("kl")}
    for name, figure in (("validation error", "error"), ("validation loss over the floor", "loss_over_floor")):
        row |= {name: summary[figure]} if figure in summary else {}
    if summary["model"] == "ReferenceVAE" and value[0] in REPORTED:
        row["reported train loss"], row["reported validation loss"] = REPORTED[value[0]]
    return row | {"widths": arguments.get("widths"), "ended": summary["ended"]}
