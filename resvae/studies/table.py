"""What every study writes: one table as Markdown and CSV, rows over seeds, and plots of means."""

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resvae.files import write_atomically, write_text

Cell = str | int | float | None
Row = dict[str, Cell]


def write_table(rows: Sequence[Row], folder: Path, name: str, notes: str = "") -> str:
    """Write ``name.md`` and ``name.csv`` into ``folder``; returns the Markdown.

    Args:
        rows: one dict per row, by column; a missing cell is empty.
        folder: made where it is missing.
        name: of both files, without ending.
        notes: a paragraph under the Markdown table: what was run, and how.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "-|" * len(columns)]
    lines += ["| " + " | ".join(_text(row.get(column)) for column in columns) + " |" for row in rows]
    text = "\n".join(lines) + "\n" + (f"\n{notes}\n" if notes else "")

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.md", text)
    write_atomically(folder / f"{name}.csv", write)
    return text


def over_seeds(rows: Sequence[Row]) -> Row:
    """Rows that differ in the seed as one: mean and spread of what is measured; what differs otherwise is listed."""
    merged: Row = {}
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


def plot_means(axes: Any, points: Sequence[tuple[float, float]], label: str, **look: Any) -> None:
    """A marker per point ``(x, y)``, and a line through the mean y of each x."""
    means = {x: statistics.fmean(y for other, y in points if other == x) for x, _ in points}
    axes.plot(*zip(*points, strict=True), **look | {"ls": "", "marker": "o"})
    axes.plot(list(means), list(means.values()), label=label, **look)


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
