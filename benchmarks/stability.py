"""Does a configuration train from every start? One run per seed: its model, optimiser and batches, a number of updates.

    python benchmarks/stability.py --config configs/cifar10_hierarchical_cpu.yaml --seeds 20 --steps 500

Each finished seed is one line of the CSV, which also names the configuration and its options. The same command resumes
with the other seeds and prints the table. A guard that refuses more than 10 updates in a row counts as locked up.
Options of ``resvae fit`` may follow, such as ``--model.precision fp32``.
"""

import argparse
import csv
import logging
import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.nn.utils import get_total_norm

from resvae.errors import ResvaeError
from resvae.training.configuration import parse

LAST = 50  # the final figure is the mean of this many updates
LOCKED = 10
COLUMNS = ["setting", "seed", "updates", "bits_per_dim", "skipped", "largest_grad_norm", "non_finite", "locked_up"]


class Watch(Callback):
    """Record bits per dimension, the norm of the gradient before the guard, and how often the guard skips."""

    def __init__(self, num_dims: int):
        self.num_dims = num_dims
        self.bits_per_dim: list[float] = []
        self.norms: list[float] = []
        self.skipped = self.in_a_row = self.most_in_a_row = 0

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.norms.append(get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None]).item())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bits_per_dim.append(outputs["loss"].item() / (self.num_dims * math.log(2)))
        self.in_a_row = self.in_a_row + 1 if pl_module.guard.skipped > self.skipped else 0
        self.skipped = pl_module.guard.skipped
        self.most_in_a_row = max(self.most_in_a_row, self.in_a_row)


def train(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one model from scratch; returns its row of the table."""
    options = ["--config", arguments.config, *arguments.fit, "--seed_everything", str(seed)]
    configuration, _ = parse(options)
    pl.seed_everything(seed, verbose=False)
    parts = configuration.instantiate()
    watch = Watch(math.prod(parts.data.image_shape))
    trainer = pl.Trainer(
        max_steps=arguments.steps,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    dead = False
    try:
        trainer.fit(parts.model, parts.data)
    except ResvaeError as error:  # from the guard: no finite gradient for 200 updates
        print(f"seed {seed}: {error}", flush=True)
        dead = True
    seen = [*watch.bits_per_dim, *watch.norms]
    weights = [value.isfinite().all().item() for value in parts.model.model.state_dict().values()]
    row = [
        arguments.setting,
        seed,
        len(watch.norms),
        statistics.fmean(watch.bits_per_dim[-LAST:]) if watch.bits_per_dim else math.nan,
        watch.skipped,
        max(filter(math.isfinite, watch.norms), default=math.nan),
        dead or not all(map(math.isfinite, seen)) or not all(weights),
        dead or watch.most_in_a_row > LOCKED,
    ]
    return dict(zip(COLUMNS, map(str, row), strict=True))


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with one row per seed, and the spread over the seeds whose figure is finite."""
    lines = [
        f"| seed | training bits/dim, last {LAST} updates | skipped | largest gradient norm | non-finite | locked up |",
        "|-|-|-|-|-|-|",
    ]
    lines += [
        f"| {r['seed']} | {float(r['bits_per_dim']):.4f} | {r['skipped']} of {r['updates']} "
        f"| {float(r['largest_grad_norm']):,.0f} | {_yes(r['non_finite'])} | {_yes(r['locked_up'])} |"
        for r in rows
    ]
    bits = [value for r in rows if math.isfinite(value := float(r["bits_per_dim"]))] or [math.nan]
    spread = statistics.stdev(bits) if len(bits) > 1 else 0.0
    skipped, updates = (sum(int(r[column]) for r in rows) for column in ("skipped", "updates"))
    lines.append(
        f"| {len(rows)} seeds | {statistics.fmean(bits):.4f} ± {spread:.4f}, {min(bits):.4f} to {max(bits):.4f} "
        f"| {skipped} of {updates} | {max(float(r['largest_grad_norm']) for r in rows):,.0f} "
        f"| {sum(r['non_finite'] == 'True' for r in rows)} | {sum(r['locked_up'] == 'True' for r in rows)} |"
    )
    return "\n".join(lines)


def main() -> None:
    """Train the missing seeds and print the table."""
    arguments = command_line()
    rows: list[dict[str, Any]] = []
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["setting"] == arguments.setting]
    for seed in sorted(set(range(arguments.seeds)) - {int(row["seed"]) for row in rows}):
        row = train(seed, arguments)
        rows.append(row)
        new = not arguments.out.exists()
        with arguments.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(f"seed {seed}: {float(row['bits_per_dim']):.4f} bits/dim, {row['skipped']} skipped", flush=True)
    rows = sorted((row for row in rows if int(row["seed"]) < arguments.seeds), key=lambda row: int(row["seed"]))
    print(f"\n{table(rows)}\n\n{arguments.setting}; torch {torch.__version__}")


def command_line() -> argparse.Namespace:
    """The options. ``setting`` holds everything that a run depends on, except its seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/cifar10_hierarchical_cpu.yaml")
    parser.add_argument("--seeds", type=int, default=20, help="how many; the first is 0")
    parser.add_argument("--steps", type=int, default=500, help="updates per seed")
    parser.add_argument("--out", type=Path, default=Path("stability.csv"))
    arguments, arguments.fit = parser.parse_known_args()
    if arguments.out and not Path(arguments.out).resolve().parent.is_dir():
        parser.error(f"--out: {arguments.out} cannot be written; its folder does not exist")
    if arguments.seeds < 1:
        parser.error(f"seeds: {arguments.seeds} is not allowed; at least 1")
    arguments.setting = " ".join([arguments.config, f"{arguments.steps} updates", *arguments.fit])
    return arguments


def _yes(value: str) -> str:
    return "yes" if value == "True" else "no"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main()
