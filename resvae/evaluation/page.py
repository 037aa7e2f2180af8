"""The report on a page: figures as plots, pictures as grids."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from resvae.evaluation.report import Report


def write_report(report: Report, pictures: Mapping[str, Tensor], path: Path) -> list[Path]:
    """Write ``path`` (all fields), and beside it the table (.md) and the page of plots (.png); returns the three."""
    path.write_text(report.json() + "\n")
    table, page = path.with_suffix(".md"), path.with_suffix(".png")
    table.write_text(f"{report.table()}\n\n{report.protocol()}\n")
    write_page(report, pictures, page)
    return [path, table, page]


def write_page(report: Report, pictures: Mapping[str, Tensor], path: Path) -> None:
    """KL a level, the bound against k, and the pictures, each ``[3, H, W]`` in [0, 1] under its title."""
    from matplotlib.figure import Figure

    heights = [2.6, *[4.2] * -(-len(pictures) // 2)]
    figure = Figure((10, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
    wanted = ("ELBO", "bits/dim (ELBO)", f"bits/dim (IW-{report.num_samples})", "FID")
    figures = ", ".join(f"{name}: {text}" for name, text in report.rows() if name.startswith(wanted))
    title = f"{report.title()}\nweights: {report.source or 'given in memory'}\n{figures}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)

    levels, curve = axes[0]
    levels.bar(range(len(report.kl_levels)), report.kl_levels)
    levels.set(xlabel="level, 0 the coarsest", ylabel="KL, nats", title=f"KL a level, {report.kl:.1f} nats in all")
    levels.set_xticks(range(0, len(report.kl_levels), -(-len(report.kl_levels) // 16)))

    bits = report.bits_per_dim is not None
    values = [bound.bits_per_dim if bits else bound.nats for bound in report.importance_curve]
    curve.plot([bound.k for bound in report.importance_curve], values, marker="o", label="IW-k bound")
    if report.iw_images == report.images:
        curve.axhline(report.bits_per_dim if bits else report.elbo, color="grey", linestyle="--", label="ELBO")
    curve.set(xscale="log", xlabel="k", ylabel="bits/dim" if bits else "nats")
    curve.set_title(f"bound on log p(x), first {report.iw_images:,} images")
    curve.legend()
    curve.grid(alpha=0.3)

    for axis in axes[1:].flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes[1:].flat, pictures.items(), strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)
