"""What a sweep has found: a row a run, or a row a value with the spread over its seeds, and the plot."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resvae.studies.table import Cell, write_table
from resvae.training.summary import read_summary

# What can be varied: the model's argument, and what the option and the table's files are called.
AXES = {"depth": "depths", "levels": "levels", "stochastic_depth": "stochastic_depths"}

# Keng, "Residual Networks" (2018): minima over the epochs of the training and validation loss, nats an image.
REPORTED = {28: (1790.4, 1794.7), 40: (1787.5, 1795.7), 70: (1784.8, 1799.0), 100: (1782.3, 1804.0)}
NOTES = "Losses: nats an image, minima over the epochs. Bits/dim, KL (nats): at the best validation."


@dataclass(frozen=True)
class Point:
    """Where a run of a sweep stands.

    Args:
        axis: the model's argument that varies.
        value: what it is here: one number, or one a resolution.
        seed: None for the configuration's own.
    """

    axis: str
    value: tuple[int, ...]
    seed: int | None = None

    @property
    def name(self) -> str:
        """Of the run's folder: ``depth_0028``, ``levels_1-2-2-1_seed_0``."""
        value = f"{self.value[0]:04d}" if len(self.value) == 1 else written(self.value)
        return f"{self.axis}_{value}" + ("" if self.seed is None else f"_seed_{self.seed}")

    def __str__(self) -> str:
        return f"{self.axis} {written(self.value)}" + ("" if self.seed is None else f", seed {self.seed}")


def runs_in(folder: Path, axis: str) -> list[tuple[Point, dict[str, Any]]]:
    """The runs that have something to tell, by value and seed, with their summaries."""
    names = [re.fullmatch(rf"{axis}_(\d+(?:-\d+)*)(?:_seed_(\d+))?", path.name) for path in folder.glob("*")]
    points = [
        Point(axis, tuple(map(int, name[1].split("-"))), None if name[2] is None else int(name[2]))
        for name in names
        if name
    ]
    points.sort(key=lambda point: (sum(point.value), point.value, point.seed or 0))
    return [(point, summary) for point in points if (summary := read_summary(folder / point.name))]


def written(value: Sequence[int]) -> str:
    """As the command line has it: 4, or 1-2-2-1."""
    return "-".join(map(str, value))


def table(folder: Path, axis: str = "depth") -> str:
    """The table of the runs along ``axis`` that ``folder`` holds, as Markdown; writes it as CSV and PNG too.

    Where runs have seeds it has a row a value, and ``<axis>_runs`` a row a run.
    """
    runs, name = runs_in(folder, axis), AXES[axis]
    if not runs:
        return ""
    # of a sweep with seeds only what has ended is averaged, each seed once; the table of runs has all
    ended = [(run, summary) for run, summary in runs if run.seed is not None and summary["ended"] != "running"]
    write_plot(ended or runs, folder / f"{name}.png")
    rows = [_row(run, summary) for run, summary in runs]
    if len({row["widths"] for row in rows}) == 1:
        rows = [{key: cell for key, cell in row.items() if key != "widths"} for row in rows]
    if all(run.seed is None for run, _ in runs):
        return write_table(rows, folder, name, NOTES)
    text = write_table(rows, folder, f"{name}_runs", NOTES)
    if not ended:
        return text
    groups: dict[tuple[int, ...], list[dict[str, Cell]]] = {}
    for (run, summary), row in zip(runs, rows, strict=True):
        if (run, summary) in ended:
            groups.setdefault(run.value, []).append(row)
    notes = f"{NOTES} ±: the standard deviation over the seeds."
    return write_table([over_seeds(group) for group in groups.values()], folder, name, notes)


def write_plot(runs: Sequence[tuple[Point, dict[str, Any]]], path: Path) -> None:
    """Bits/dim, or the losses where there is none, against the axis: a marker a run, a line through the means."""
    from matplotlib.figure import Figure

    values = dict.fromkeys(run.value for run, _ in runs)
    numbers = all(len(value) == 1 for value in values)
    place = {value: value[0] if numbers else i for i, value in enumerate(values)}
    lines, unit = {"train_loss": "training", "val_loss": "validation"}, "loss, nats an image"
    if all("bits_per_dim" in summary for _, summary in runs):
        lines, unit = {"bits_per_dim": "validation"}, "bits/dim"
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for i, (key, label) in enumerate(lines.items()):
        points = [(place[run.value], summary[key]) for run, summary in runs if key in summary]
        plot_means(axes, points, label, color=f"C{i}")
    axes.set_xticks(list(place.values()), [written(value) for value in place])
    axes.set(xlabel=runs[0][0].axis.replace("_", " "), ylabel=unit)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_means(axes: Any, points: Sequence[tuple[float, float]], label: str, **look: Any) -> None:
    """A marker a point ``(x, y)``, and a line through the mean y of each x."""
    means = {x: statistics.fmean(y for other, y in points if other == x) for x, _ in points}
    axes.plot(*zip(*points, strict=True), **look | {"ls": "", "marker": "o"})
    axes.plot(list(means), list(means.values()), label=label, **look)


def _row(run: Point, summary: dict[str, Any]) -> dict[str, Cell]:
    arguments = {name: written(v) if isinstance(v, list) else v for name, v in (summary.get("arguments") or {}).items()}
    row: dict[str, Cell] = {run.axis: written(run.value)}
    row |= {} if run.seed is None else {"seed": str(run.seed)}
    row |= {"levels": str(arguments["levels"])} if "levels" in arguments and run.axis != "levels" else {}
    row |= {
        "parameters": summary["parameters"],
        "hours": summary["seconds"] / 3600,
        "epochs": summary["epochs"],
        "train loss": summary.get("train_loss"),
        "validation loss": summary.get("val_loss"),
        "bits/dim": summary.get("bits_per_dim"),
        "KL": summary.get("kl"),
    }
    if "loss_over_floor" in summary:
        row["validation loss over the floor"] = summary["loss_over_floor"]
    if summary["model"] == "ReferenceVAE" and run.value[0] in REPORTED:
        row["reported train loss"], row["reported validation loss"] = REPORTED[run.value[0]]
    return row | {"widths": arguments.get("widths"), "ended": summary["ended"]}


def over_seeds(rows: Sequence[dict[str, Cell]]) -> dict[str, Cell]:
    """Rows that differ in the seed as one: mean and spread of what is measured, and what differs otherwise listed."""
    merged: dict[str, Cell] = {}
    for name in rows[0]:
        cells = [cell for row in rows if (cell := row.get(name)) is not None]
        numbers = [cell for cell in cells if isinstance(cell, float)]
        different = list(dict.fromkeys(cells))
        if name == "seed":
            merged["seeds"] = len(rows)
        elif numbers and not name.startswith("reported"):
            whole = len(numbers) == len(rows)  # a mean of some of the seeds alone would pass for one of all
            merged[name] = statistics.fmean(numbers) if whole else None
            if len(numbers) > 1 and whole:
                merged[f"{name} ±"] = statistics.stdev(numbers)
        else:
            merged[name] = different[0] if len(different) == 1 else ", ".join(map(str, different))
    return merged
