"""The report on a page: plots, and pictures as grids."""

from pathlib import Path

from torch import Tensor

from resvae.evaluation.report import Report


def write_report(report: Report, path: Path) -> list[Path]:
    """Write ``path`` (all fields), and beside it the table (.md) and the page of plots (.png); returns the three."""
    path.write_text(report.json() + "\n")
    table, page = path.with_suffix(".md"), path.with_suffix(".png")
    table.write_text(f"{report.table()}\n\n{report.protocol()}\n")
    write_page(report, page)
    return [path, table, page]


def write_page(report: Report, path: Path) -> None:
    """All pictures, two per row, each under its title."""
    from matplotlib.figure import Figure

    panels = list(report.pictures().items())
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    heights = [4.2 if any(isinstance(picture, Tensor) for _, picture in row) else 2.6 for row in rows]
    figure = Figure((10, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
    figures = ", ".join(f"{name}: {text}" for name, text in report.headlines())
    figure.suptitle(f"{report.title()}\n{report.weights()}\n{figures}", x=0.01, ha="left", fontsize=9)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, panels, strict=False):
        axis.set_title(title, fontsize=10)
        if isinstance(picture, Tensor):
            axis.axis("off")
            axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        else:
            picture(axis)
    figure.savefig(path, dpi=150)
