"""The runs of a sweep: what each is called, where it stands, and how one is trained in a process of its own."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resvae.training.summary import read_summary

# What can be varied: the model's argument, and what the option and the table's files are called.
AXES = {"depth": "depths", "levels": "levels", "stochastic_depth": "stochastic_depths"}
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Args:
        folder: the sweep's; the run's own is ``depth_0028``, ``levels_1-2-2-1_seed_0`` ... in it.
        axis: the model's argument that varies.
        value: what it is here: one number, or one a resolution.
        seed: None for the configuration's own.
        arguments: of ``resvae fit``.
    """

    folder: Path
    axis: str
    value: tuple[int, ...]
    seed: int | None = None
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        value = f"{self.value[0]:04d}" if len(self.value) == 1 else written(self.value)
        return f"{self.axis}_{value}" + ("" if self.seed is None else f"_seed_{self.seed}")

    @property
    def log(self) -> Path:
        """Where its output goes when it is not alone."""
        return self.folder / f"{self.name}.log"

    def __str__(self) -> str:
        return f"{self.axis} {written(self.value)}" + ("" if self.seed is None else f", seed {self.seed}")

    def summary(self) -> dict[str, Any]:
        """What it says of itself so far; empty before its first epoch has ended."""
        return read_summary(self.folder / self.name)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        return self.summary().get("ended", "running") != "running"

    def train(self, environment: dict[str, str], logged: bool) -> int:
        """Start it, or go on from its last checkpoint; a run that has ended is left alone.

        Args:
            environment: variables over those of this process.
            logged: write its output to ``log`` and not here.

        Returns:
            The exit code of ``resvae fit``.
        """
        if self.ended:
            return 0
        run = self.folder / self.name
        saved = [path for name in ("last", "interrupted") if (path := run / "checkpoints" / f"{name}.ckpt").is_file()]
        resume = ["--ckpt_path", str(max(saved, key=lambda path: path.stat().st_mtime))] if saved else []
        if not saved and run.exists():  # killed before its first checkpoint: there is nothing to go on from
            shutil.rmtree(run)
        print(f"{self}: {'resumes' if resume else 'starts'}\n", end="", flush=True)  # in one piece: others print, too
        command = ["fit", *self.arguments, "--name", self.name, "--runs", str(self.folder), *resume]
        output = self.log.open("a") if logged else None
        with output or nullcontext():
            return subprocess.run(
                [sys.executable, "-m", "resvae", *command],
                env=os.environ | environment,
                stdout=output,
                stderr=output,
                preexec_fn=_end_with_parent if LIBC else None,
            ).returncode


def train_here(runs: Sequence[Run], jobs: int, environment: dict[str, str]) -> Iterator[tuple[Run, int]]:
    """Train on this machine, ``jobs`` runs at once that share its cores; each run as it ends, with its exit code."""
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        environment = environment | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(run.train, environment, jobs > 1): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # Ctrl-C reaches the runs that train, too; begin no others
        pool.shutdown(cancel_futures=True)


def runs_in(folder: Path, axis: str) -> list[tuple[Run, dict[str, Any]]]:
    """The runs that have something to tell, by value and seed, with their summaries."""
    names = [re.fullmatch(rf"{axis}_(\d+(?:-\d+)*)(?:_seed_(\d+))?", path.name) for path in folder.glob("*")]
    runs = [
        Run(folder, axis, tuple(map(int, name[1].split("-"))), None if name[2] is None else int(name[2]))
        for name in names
        if name
    ]
    runs.sort(key=lambda run: (sum(run.value), run.value, run.seed or 0))
    return [(run, summary) for run in runs if (summary := run.summary())]


def written(value: Sequence[int]) -> str:
    """As the command line has it: 4, or 1-2-2-1."""
    return "-".join(map(str, value))


def _end_with_parent() -> None:
    """Let the kernel kill this process when the one that waits for it dies: two must not train in one folder."""
    assert LIBC is not None
    LIBC.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
