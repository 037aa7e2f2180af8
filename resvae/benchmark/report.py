"""The figures of a benchmark as tables (Markdown), as JSON and as a page of plots."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resvae.files import write_atomically, write_text

Row = dict[str, Any]
LINES = ("ms", "memory, MiB")  # what is drawn against a number that grows
DIGITS = {"share": ".1%", "fraction of the ceiling": ".1%", "images/s": ",.1f", "of the whole step": ".1%"}


@dataclass(frozen=True)
class Section:
    """One table: its title, its rows (all with the same keys), and what to know about them."""

    title: str
    rows: list[Row]
    notes: str = ""

    def markdown(self) -> str:
        """The title, the table and the notes."""
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = ["| " + " | ".join(keys) + " |", "|" + "-|" * len(keys)]
        lines += ["| " + " | ".join(_cell(key, row.get(key)) for key in keys) + " |" for row in self.rows]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.notes] if self.notes else [])])


@dataclass(frozen=True)
class Report:
    """What was measured, of what and where.

    Args:
        origin: of the figures: configuration, hardware, versions, commit, precision.
        sections: the tables.
    """

    origin: Row
    sections: list[Section] = field(default_factory=list)

    def markdown(self) -> str:
        """All tables, under a line that says where they come from."""
        told = ", ".join(f"{name} {value}" for name, value in self.origin.items() if value is not None)
        return "\n\n".join([told, *(section.markdown() for section in self.sections)]) + "\n"

    def write(self, out: Path) -> list[Path]:
        """Write ``out`` (JSON), and a .md and a .png beside it; returns the three."""
        sections = {section.title: section.rows for section in self.sections}
        write_text(out, json.dumps(self.origin | {"sections": sections}, indent=2) + "\n")
        table, plots = out.with_suffix(".md"), out.with_suffix(".png")
        write_text(table, self.markdown())
        write_atomically(plots, lambda path: _plot(self.sections, path))
        return [out, table, plots]


def _cell(key: str, value: Any) -> str:
    if isinstance(value, float):
        return format(value, DIGITS.get(key, ",.3g" if abs(value) < 1000 else ",.0f"))
    return "" if value is None else str(value)


def _lines(axes: Any, section: Section, keys: Sequence[str]) -> None:
    """Figures against the first column; the second of them has the axis on the right."""
    name = next(iter(section.rows[0]))
    for i, key in enumerate(keys):
        side = axes if i == 0 else axes.twinx()
        values = [row.get(key) for row in section.rows]
        side.plot([row[name] for row in section.rows], values, "so"[i == 0] + "-", color=f"C{i}", markersize=4)
        side.set_ylim(bottom=0)
        side.set_ylabel(key, color=f"C{i}", fontsize=8)
        side.tick_params(labelsize=8)
    axes.set_title(section.title, loc="left", fontsize=10)
    axes.set_xlabel(name, fontsize=8)
    axes.set_xlim(left=0)


def _plot(sections: Sequence[Section], path: Path) -> None:
    """A panel per section: bars of the first number of each row, or lines where the rows are of a growing number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.35 * sum(len(s.rows) + 2 for s in sections)), layout="constrained")
    panels = figure.subplots(len(sections), squeeze=False, height_ratios=[len(s.rows) + 1 for s in sections])[:, 0]
    for axes, section in zip(panels, sections, strict=True):
        name, *keys = section.rows[0]
        if isinstance(section.rows[0][name], int):
            _lines(axes, section, [key for key in keys if key in LINES])
            continue
        key = next(key for key in keys if isinstance(section.rows[0][key], float))
        rows = [row for row in section.rows[::-1] if key in row]  # of one unit
        bars = axes.barh([str(row[name]) for row in rows], [row[key] for row in rows], height=0.7)
        axes.bar_label(bars, [_cell(key, row[key]) for row in rows], padding=3, fontsize=8)
        axes.set_title(f"{section.title}: {key}", loc="left", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    figure.savefig(path, dpi=130, format="png")
