"""What every study writes: one table as Markdown and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

Cell = str | int | float | None


def write_table(rows: Sequence[dict[str, Cell]], folder: Path, name: str, notes: str = "") -> str:
    """Write ``name.md`` and ``name.csv`` into ``folder``; returns the Markdown.

    Args:
        rows: one dict a row; the first row's keys are the columns, a missing cell is empty.
        folder: made where it is missing.
        name: of both files, without ending.
        notes: a paragraph under the Markdown table: what was run, and how.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "-|" * len(columns)]
    lines += ["| " + " | ".join(_text(row.get(column)) for column in columns) + " |" for row in rows]
    text = "\n".join(lines) + "\n" + (f"\n{notes}\n" if notes else "")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return text


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
