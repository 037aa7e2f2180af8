"""``resvae sweep``: one run a depth, each resumed where it stopped, ending in the article's table."""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from resvae.errors import ResvaeError
from resvae.studies.table import Cell, write_table

# Keng, "Residual Networks" (2018): minima over the epochs of the training and validation loss, nats an image.
REPORTED = {28: (1790.4, 1794.7), 40: (1787.5, 1795.7), 70: (1784.8, 1799.0), 100: (1782.3, 1804.0)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ResvaeError(f"sweep: {message}")


def main(arguments: list[str]) -> None:
    """Parse ``resvae sweep``; what it does not know goes to ``resvae fit`` of each run."""
    parser = _Parser(
        prog="resvae sweep",
        description="Train one model a depth, resume what was stopped, and write the table: depths.md, .csv, .png.",
        epilog="Every other option goes to `resvae fit` of each run: --trainer.max_epochs 10 --model.vae.latent_dim 64",
    )
    parser.add_argument("--config", required=True, help="the YAML of `resvae fit`")
    parser.add_argument("--depths", required=True, help="28,40,70,100")
    parser.add_argument("--name", default="sweep", help="the sweep's folder is <runs>/<name>")
    parser.add_argument("--runs", default="runs", help="the folder of all runs")
    known, rest = parser.parse_known_args(arguments)
    sweep(_depths(known.depths), known.config, Path(known.runs) / known.name, rest)


def sweep(depths: Sequence[int], config: str | Path, folder: Path, overrides: Sequence[str] = ()) -> str:
    """Train a model at each depth, one process a run, one after another.

    A run that has ended is not repeated; one that was stopped goes on from its last checkpoint. The table is written
    after every run.

    Args:
        depths: as ``VAE`` takes them.
        config: the YAML of ``resvae fit``.
        folder: where the runs and the table go.
        overrides: further arguments of ``resvae fit``.

    Returns:
        The table in Markdown.

    Raises:
        ResvaeError: the configuration is missing, or a run failed; the runs before it are kept.
        SystemExit: with code 2, where ``resvae fit`` refused its input and said why.
    """
    if not Path(config).is_file():
        raise ResvaeError(f"sweep: the configuration {config} does not exist")
    text = ""
    for depth in depths:
        run = folder / f"depth_{depth:04d}"
        if _summary(run).get("ended", "running") == "running":
            _fit(depth, config, run, overrides)
        text = table(folder)
    print(text)
    print("\n".join(f"wrote {folder / f'depths.{ending}'}" for ending in ("md", "csv", "png")))
    return text


def table(folder: Path) -> str:
    """The article's table of the runs that ``folder`` holds, as Markdown; writes it as CSV and PNG too."""
    summaries = [s for run in sorted(folder.glob("depth_*")) if (s := _summary(run))]
    write_plot(summaries, folder / "depths.png")
    return write_table([_row(s) for s in summaries], folder, "depths", "Losses: nats an image, minima over the epochs.")


def write_plot(summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """Training and validation loss against depth."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    depths = [_depth(s) for s in summaries]
    for key, label in (("train_loss", "training"), ("val_loss", "validation")):
        axes.plot(depths, [s.get(key, math.nan) for s in summaries], marker="o", label=label)
    axes.set(xlabel="depth, weighted layers", ylabel="loss, nats an image", xticks=depths)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _fit(depth: int, config: str | Path, run: Path, overrides: Sequence[str]) -> None:
    saved = [path for name in ("last", "interrupted") if (path := run / "checkpoints" / f"{name}.ckpt").is_file()]
    resume = ["--ckpt_path", str(max(saved, key=lambda path: path.stat().st_mtime))] if saved else []
    if not saved and run.exists():  # killed before its first checkpoint: there is nothing to go on from
        shutil.rmtree(run)
    command = ["fit", "--config", str(config), *overrides, f"--model.vae.init_args.depth={depth}"]
    command += ["--name", run.name, "--runs", str(run.parent), *resume]
    print(f"depth {depth}: {'resumes' if resume else 'starts'}", flush=True)
    code = subprocess.run([sys.executable, "-m", "resvae", *command]).returncode
    if code == 2:  # bad input; the run has said which
        raise SystemExit(2)
    if code:
        raise ResvaeError(f"sweep: the run at depth {depth} failed with code {code}; run the same command to go on")


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _depth(summary: dict[str, Any]) -> int:
    return int(summary["name"].removeprefix("depth_"))


def _row(summary: dict[str, Any]) -> dict[str, Cell]:
    depth = _depth(summary)
    row: dict[str, Cell] = {
        "depth": str(depth),
        "parameters": summary["parameters"],
        "hours": summary["seconds"] / 3600,
        "epochs": summary["epochs"],
        "train loss": summary.get("train_loss"),
        "validation loss": summary.get("val_loss"),
        "bits/dim": summary.get("bits_per_dim"),
    }
    if "loss_over_floor" in summary:
        row["validation loss over the floor"] = summary["loss_over_floor"]
    if summary["model"] == "ReferenceVAE" and depth in REPORTED:
        row["reported train loss"], row["reported validation loss"] = REPORTED[depth]
    return row | {"ended": summary["ended"]}


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = []
    if not depths:
        raise ResvaeError(f"depths: {text!r} is not allowed; give numbers with commas: 28,40,70,100")
    return depths
