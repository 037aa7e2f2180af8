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
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    rows = 1 + -(-len(pictures) // 2)
    figure, axes = plt.subplots(
        rows,
        2,
        figsize=(10, 2.6 + 4.2 * (rows - 1)),
        layout="constrained",
        squeeze=False,
        height_ratios=[2.6, *[4.2] * (rows - 1)],
    )
    figure.suptitle("\n".join(_title(report)), x=0.01, ha="left", fontsize=9)

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
    plt.close(figure)


def _title(report: Report) -> list[str]:
    figures = [f"ELBO {report.elbo:.2f} nats"]
    if report.bits_per_dim is not None:
        figures += [
            f"{report.bits_per_dim:.4f} bits/dim",
            f"IW-{report.num_samples} {report.bits_per_dim_importance_weighted:.4f} bits/dim",
        ]
    if (d := report.distances) is not None:
        figures.append(f"FID (features: {d.features}) {d.fid:.2f}")
    return [report.title(), f"weights: {report.source or 'given in memory'}", ", ".join(figures)]
