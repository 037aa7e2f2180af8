"""``resvae study degradation``: with depth, plain networks get worse even in training; residual ones do not."""

from collections.abc import Sequence
from pathlib import Path

from resvae.files import write_figure
from resvae.networks import gate_bias
from resvae.studies.table import plot_means
from resvae.studies.variants import FIGURES, Result, Study, Variant, curves, deciding

REPORTED = "reported test error, %"
RESIDUAL = {20: "8.75", 32: "7.51", 44: "7.17", 56: "6.97", 110: "6.43"}  # He 2015, table 6
PLAIN = {20: "8.7 to 9.6", 56: "12.3 to 14.2", 110: "over 60"}  # repeats by others; He 2015, section 4.2


def kinds(depth: int) -> list[Variant]:
    """Plain, residual (He 2015), and highway (Srivastava 2015), whose gates start by depth.

    A highway's branch starts at full scale in any configuration: behind a nearly closed gate it would hardly train.
    """
    return [
        Variant("plain", {"merge": "none"}, {REPORTED: PLAIN.get(depth)}),
        Variant("residual", {"merge": "sum"}, {REPORTED: RESIDUAL.get(depth)}),
        Variant(
            "highway", {"merge": "highway", "gate_bias": gate_bias(depth), "residual_scale": 1.0}, {REPORTED: None}
        ),
    ]


def plots(results: Sequence[Result], folder: Path, name: str) -> None:
    """Write ``name_curves.png``, one panel per kind, and ``name.png``, the last epoch's figures against depth."""
    path = folder / f"{name}_curves.png"
    curves(results, path, lambda each, _: each.variant, lambda each: f"{each.depth} layers")
    by_depth(results, folder / f"{name}.png")


def by_depth(results: Sequence[Result], path: Path) -> None:
    """Write a PNG of training (dashed) and test (solid) against depth: one marker per run, lines through the means."""
    from matplotlib.figure import Figure

    name = deciding(results)
    label, scale = FIGURES[name]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for i, kind in enumerate(dict.fromkeys(result.variant for result in results)):
        for split, word, style in (("train", "training", "--"), ("test", "test", "-")):
            points = [(r.depth, scale * r.figures[f"{split}/{name}"]) for r in results if r.variant == kind]
            plot_means(axes, points, f"{kind}, {word}", color=f"C{i}", ls=style)
    axes.set_xticks(sorted({result.depth for result in results}))
    axes.set(xlabel="depth, layers", ylabel=label)
    axes.legend()
    axes.grid(alpha=0.3)
    write_figure(path, figure)


CONFIG = "configs/cifar10_degradation_cpu.yaml"
STUDY = Study("degradation", "plain, residual and highway networks by depth", kinds, CONFIG, "20,56", plots)
main = STUDY.main
