"""Training runs side by side: what each is called, where it stands, and how one is trained in its own process."""

import ctypes
import os
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

from resvae.runs.folder import latest_checkpoint
from resvae.training.summary import read_summary

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Run:
    """One training run of a sweep or a study.

    Args:
        folder: theirs.
        name: of the run's own folder in it.
        label: what messages call it.
        arguments: of ``resvae fit``.
    """

    folder: Path
    name: str
    label: str
    arguments: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """Where its output goes when it is not alone."""
        return self.folder / f"{self.name}.log"

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
        saved = latest_checkpoint(run)
        resume = ["--ckpt_path", str(saved)] if saved else []
        if not saved and run.exists():  # killed before its first checkpoint: there is nothing to go on from
            shutil.rmtree(run)
        print(
            f"{self.label}: {'resumes' if resume else 'starts'}\n", end="", flush=True
        )  # in one piece: others print, too
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


def _end_with_parent() -> None:
    """Let the kernel kill this process when the one that waits for it dies: two must not train in one folder."""
    assert LIBC is not None
    LIBC.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
