"""What a sweep has found: a row a run, or a row a value with the spread over its seeds, and the plot."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resvae.studies.runs import AXES, Run, runs_in, written
from resvae.studies.table import Cell, write_table

# Keng, "Residual Networks" (2018): minima over the epochs of the training and validation loss, nats an image.
REPORTED = {28: (1790.4, 1794.7), 40: (1787.5, 1795.7), 70: (1784.8, 1799.0), 100: (1782.3, 1804.0)}
NOTES = "Losses: nats an image, minima over the epochs. Bits/dim, KL (nats): at the best validation."


def table(folder: Path, axis: str = "depth") -> str:
    """The table of the runs along ``axis`` that ``folder`` holds, as Markdown; writes it as CSV and PNG too.

    Where runs have seeds it has a row a value, and ``<axis>_runs`` a row a run.
    """
    runs, name = runs_in(folder, axis), AXES[axis]
    if not runs:
        return ""
    write_plot(runs, folder / f"{name}.png")
    rows = [_row(run, summary) for run, summary in runs]
    if len({row["widths"] for row in rows}) == 1:
        rows = [{key: cell for key, cell in row.items() if key != "widths"} for row in rows]
    if all(run.seed is None for run, _ in runs):
        return write_table(rows, folder, name, NOTES)
    write_table(rows, folder, f"{name}_runs", NOTES)
    values = dict.fromkeys(run.value for run, _ in runs)
    groups = [[row for (run, _), row in zip(runs, rows, strict=True) if run.value == value] for value in values]
    notes = f"{NOTES} ±: the standard deviation over the seeds."
    return write_table([_over_seeds(group) for group in groups], folder, name, notes)


def write_plot(runs: Sequence[tuple[Run, dict[str, Any]]], path: Path) -> None:
    """Bits/dim, or the losses where there is none, against the axis: a marker a run, a line through the means."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    values = dict.fromkeys(run.value for run, _ in runs)
    numbers = all(len(value) == 1 for value in values)
    place = {value: value[0] if numbers else i for i, value in enumerate(values)}
    lines, unit = {"train_loss": "training", "val_loss": "validation"}, "loss, nats an image"
    if all("bits_per_dim" in summary for _, summary in runs):
        lines, unit = {"bits_per_dim": "validation"}, "bits/dim"
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, (key, label) in enumerate(lines.items()):
        points = [(place[run.value], summary[key]) for run, summary in runs if key in summary]
        means = {x: statistics.fmean(y for other, y in points if other == x) for x, _ in points}
        axes.plot([x for x, _ in points], [y for _, y in points], "o", color=f"C{i}")
        axes.plot(list(means), list(means.values()), color=f"C{i}", label=label)
    axes.set_xticks(list(place.values()), [written(value) for value in place])
    axes.set(xlabel=runs[0][0].axis.replace("_", " "), ylabel=unit)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _row(run: Run, summary: dict[str, Any]) -> dict[str, Cell]:
    arguments = {name: written(v) if isinstance(v, list) else v for name, v in summary.get("arguments", {}).items()}
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


def _over_seeds(rows: Sequence[dict[str, Cell]]) -> dict[str, Cell]:
    """The rows of one value as one: mean and spread of what is measured, and what differs otherwise listed."""
    merged: dict[str, Cell] = {}
    for name in rows[0]:
        cells = [cell for row in rows if (cell := row.get(name)) is not None]
        numbers = [cell for cell in cells if isinstance(cell, float)]
        different = list(dict.fromkeys(cells))
        if name == "seed":
            merged["seeds"] = len(rows)
        elif numbers and not name.startswith("reported"):
            merged[name] = statistics.fmean(numbers)
            if len(numbers) > 1:
                merged[f"{name} ±"] = statistics.stdev(numbers)
        else:
            merged[name] = different[0] if len(different) == 1 else ", ".join(map(str, different))
    return merged
