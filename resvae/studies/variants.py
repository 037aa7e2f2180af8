"""Studies that train one network with other blocks: a grid of variants, depths and seeds, its table and its curves."""

import csv
import itertools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from resvae.data import ImageDataModule
from resvae.files import place, write_figure
from resvae.runs.folder import CONFIG, has_ended, read_summary
from resvae.storage import load
from resvae.studies.grid import Grid, Point, parse_grid
from resvae.studies.processes import Workers
from resvae.studies.record import Record, fingerprint
from resvae.studies.table import Row, over_seeds
from resvae.training.configuration import KINDS, Configuration, numbers, read_configuration

SPLITS = {"train": "training", "val": "validation", "test": "test"}
FIGURES = {"error": ("error, %", 100.0), "bits_per_dim": ("bits/dim", 1.0), "loss": ("loss, nats", 1.0)}
NOTES = (
    "All figures are of the last epoch and its checkpoint: training, the running means over the epoch's batches, in "
    "training mode; validation and test, in eval mode. ±: the standard deviation over the seeds."
)


@dataclass(frozen=True)
class Variant:
    """One kind of network.

    Args:
        name: in tables and plots, and with underscores in its runs' folders.
        block: the fields of ``BlockConfig`` that make it.
        reported: cells of the table that others have published, of classifiers of CIFAR-10.
    """

    name: str
    block: dict[str, Any]
    reported: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Args:
        variant, depth, seed: which.
        parameters: that are trained. weights: the last checkpoint's fingerprint.
        data: the data set. told: a sentence on what was trained and tested.
        epochs: that it was trained.
        history: the values of each figure over the epochs, by its name in the log, such as ``train/error``.
        test: the last checkpoint's figures on the test images, by their names in the log, such as ``test/error``.
    """

    variant: str
    depth: int
    seed: int
    parameters: int
    weights: str
    data: str
    told: str
    epochs: int
    history: dict[str, list[float]]
    test: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """The last value of each figure, by its name in the log."""
        return {name: values[-1] for name, values in self.history.items() if values} | self.test


def result(run: Path, variant: str, depth: int, seed: int) -> Result:
    """Test the last checkpoint of a run's folder, as ``resvae test`` does, and gather what it has logged."""
    import pytorch_lightning as pl

    model = load(run / "checkpoints/last.ckpt")
    data = ImageDataModule(**read_configuration(run / CONFIG).values.data.as_dict())
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (test,) = pl.Trainer(**quiet).test(KINDS[model.field](model), data, verbose=False)
    with (run / "metrics.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    history = {name: [float(row[name]) for row in log if row[name]] for name in log[0]}
    told = (
        f"{type(model).__name__}s, trained on {data.num_train:,} images of {data.name}, validated on {data.num_val:,}, "
        f"tested on all {data.num_test:,} test images."
    )
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    epochs = read_summary(run)["epochs"]
    weights, name = fingerprint(model), str(data.name)
    return Result(variant, depth, seed, parameters, weights, name, told, epochs, history, dict(test))


def deciding(results: Sequence[Result]) -> str:
    """The figure that plots show: ``error``, ``bits_per_dim`` or ``loss``, the first that there is."""
    return next(name for name in FIGURES if all(f"val/{name}" in result.history for result in results))


def curves(
    results: Sequence[Result], path: Path, panel: Callable[[Result, str], str], line: Callable[[Result], str]
) -> None:
    """Write a PNG of training (dashed) and validation (solid) by epoch, as in He 2015, figure 6.

    Args:
        results: each is drawn as two lines.
        path: of the PNG.
        panel: from a result and ``training`` or ``validation`` to the title of the line's panel.
        line: the name of a result's colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator

    name = deciding(results)
    label, scale = FIGURES[name]
    splits = {"train": "--", "val": "-"}
    panels = list(dict.fromkeys(panel(each, SPLITS[split]) for split in splits for each in results))
    lines = list(dict.fromkeys(map(line, results)))
    size = 1.5 + 4 * len(panels), 4
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for each, (split, style) in itertools.product(results, splits.items()):
        y = [scale * value for value in each.history[f"{split}/{name}"]]
        axes = grid[0][panels.index(panel(each, SPLITS[split]))]
        x = [(i + 1) * each.epochs / len(y) for i in range(len(y))]
        axes.plot(x, y, style, color=f"C{lines.index(line(each))}", lw=1.2)
    for axes, title in zip(grid[0], panels, strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    ends = [result.figures[f"{split}/{name}"] for result in results for split in splits]
    if name == "error" and 5 * min(ends) < max(ends):  # the ends are what counts
        grid[0][0].set(yscale="log", ylim=(None, 100))
        grid[0][0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        grid[0][0].yaxis.set_major_formatter("{x:g}")
        grid[0][0].yaxis.set_minor_locator(NullLocator())
    grid[0][0].set_ylabel(f"{label}\ndashed: training, solid: validation")
    keys = [Line2D([], [], color=f"C{i}", label=text) for i, text in enumerate(lines)]
    figure.legend(handles=keys, loc="outside right upper")
    write_figure(path, figure)


def compared(results: Sequence[Result], folder: Path, name: str) -> None:
    """Write ``name.png``: training and validation curves of each depth, one colour per variant."""
    path = folder / f"{name}.png"
    curves(results, path, lambda each, split: f"{each.depth} layers, {split}", lambda each: each.variant)


@dataclass(frozen=True)
class Study:
    """A study by name; ``main`` is its command line.

    Args:
        name: of the study and its files. told: what it trains, for the help text.
        variants: those of a depth.
        config, depths: the command line's defaults.
        plots: writes PNGs of results into a folder, their names beginning with that of the study.
    """

    name: str
    told: str
    variants: Callable[[int], Sequence[Variant]]
    config: str
    depths: str
    plots: Callable[[Sequence[Result], Path, str], None] = compared

    def main(self, verb: str, arguments: list[str]) -> None:
        """Parse ``resvae study NAME``, and train."""

        def add(parser: ArgumentParser) -> None:
            parser.add_argument("--depths", type=str, default=self.depths, help="numbers of layers: 20,56")
            parser.add_argument("--out", type=str, default=f"runs/study_{self.name}", help="the study's folder")

        description = f"Train {self.told}; write the table (.md, .csv, .png)."
        parsed = parse_grid(verb, description, arguments, add, self.config, "0")
        if parsed is not None:
            base, own = parsed
            workers = Workers(own.jobs, own.ray, own.cpus, own.gpus)
            depths, seeds = numbers("depths", own.depths), numbers("seeds", own.seeds)
            self.run(base, place(own.out), depths, seeds, workers)

    def run(
        self,
        base: Configuration,
        folder: Path,
        depths: Sequence[int],
        seeds: Sequence[int] = (0,),
        workers: Workers = Workers(),
    ) -> str:
        """Train one network per variant, depth and seed, and test each once; returns the table in Markdown.

        Raises:
            ResvaeError: the folder's runs were trained otherwise; a run failed.
        """
        model = f"model.{base.field}.init_args"
        points = []
        for depth, seed in itertools.product(depths, seeds):
            for variant in self.variants(depth):
                block = {f"{model}.block.{name}": value for name, value in variant.block.items()}
                name = f"{variant.name.replace(' ', '_')}_depth_{depth:04d}_seed_{seed}"
                labels: Row = {"network": variant.name, "depth": depth, "seed": str(seed)}
                changes = {f"{model}.depth": depth, **block, "seed_everything": seed}
                points.append(Point(name, labels, changes, variant.reported))
        names = list(dict.fromkeys(point.labels["network"] for point in points))
        points.sort(key=lambda point: names.index(point.labels["network"]))
        grid = Grid(f"study {self.name}", folder, base, points, workers)
        return grid.train(lambda: self._table(folder, points), self.name)

    def _table(self, folder: Path, points: Sequence[Point]) -> str:
        """Write the rows of the runs that have ended, one row for all seeds of a network, and the plots."""
        record, results, rows = Record(folder, {"study": self.name}), [], []
        for point in points:
            if has_ended(folder / point.name):
                # by its time, too: a run that was removed and trained again is another
                summary = read_summary(folder / point.name)
                key = f"{point.name}, {summary['seconds']:.3f} s"
                network, depth, seed = point.labels.values()
                which = folder / point.name, str(network), int(depth or 0), int(seed or 0)
                kept = record.measure(key, lambda which=which: asdict(result(*which)))
                results.append(Result(**kept | {"epochs": summary["epochs"]}))  # which older records lack
                rows.append(_row(results[-1], point))
        if not results:
            return ""
        self.plots(results, folder, self.name)
        seeds = ", ".join(map(str, sorted({each.seed for each in results})))
        notes = f"{results[0].told} Seeds: {seeds}. {NOTES}"
        record.write(f"{self.name}_runs", rows, notes)
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            del row["weights"]
            groups.setdefault((row["network"], row["depth"]), []).append(row)
        return record.write(self.name, [over_seeds(group) for group in groups.values()], notes)


def _row(each: Result, point: Point) -> Row:
    row: Row = {**point.labels, "parameters": each.parameters, "epochs": each.epochs}
    for figure, (label, scale) in FIGURES.items():
        for split, word in SPLITS.items():
            if (value := each.figures.get(f"{split}/{figure}")) is not None:
                row[f"{word} {label}"] = scale * value
    comparable = each.data == "cifar10" and "test/error" in each.test
    return row | (point.reported if comparable else {}) | {"weights": each.weights}
