"""Training runs in processes of their own: on this machine, or on a Ray cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resvae.environment import ENDS_WITH_PARENT, variables
from resvae.errors import ResvaeError, at_least
from resvae.runs.folder import CONFIG, has_ended, latest_checkpoint


@dataclass(frozen=True)
class Job:
    """A run, by what messages call it and its folder, which holds its configuration."""

    name: str
    folder: Path

    def __str__(self) -> str:
        return self.name

    @property
    def log(self) -> Path:
        """Where its output goes when it is not alone."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def train(self, threads: int | None = None, logged: bool = False, directory: Path | None = None) -> int:
        """Start the run, or resume it from its last checkpoint, and return the exit code of ``resvae fit``.

        Args:
            threads: of the run; default: what the environment says.
            logged: write its output to ``log`` and not here.
            directory: to run in; default: the present one.
        """
        directory = directory or Path.cwd()
        run = directory / self.folder
        if has_ended(run):
            return 0
        saved = latest_checkpoint(run)
        # in one piece: others print, too
        print(f"{self}: {'resumes' if saved else 'starts'}\n", end="", flush=True)
        command = ["--config", str(run / CONFIG), "--name", self.folder.name, "--runs", str(self.folder.parent)]
        command += ["--ckpt_path", str(saved)] if saved else []
        # The file holds all that the environment said when the grid was parsed.
        environment = {name: value for name, value in os.environ.items() if name not in variables("fit")}
        environment |= {ENDS_WITH_PARENT: "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        with (directory / self.log).open("a") if logged else nullcontext() as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "resvae", "fit", *command],
                env=environment,
                cwd=directory,
                stdin=subprocess.PIPE,  # its end tells the run that this process has ended
                stdout=output,
                stderr=output,
            )
            with process:
                return process.wait()


@dataclass(frozen=True)
class Workers:
    """Where runs are trained, and how many at once; ``ResvaeError`` for bad numbers, and where Ray is not installed.

    Args:
        jobs: runs at once on this machine; they share its cores.
        ray: the address of a Ray cluster to train on instead; ``auto``: the one that this machine belongs to;
            ``local``: this machine alone.
        cpus, gpus: with ``ray``, cores and GPUs per run; a GPU may be shared.
    """

    jobs: int = 1
    ray: str | None = None
    cpus: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        at_least(1, jobs=self.jobs)
        if self.ray is not None:
            at_least(1, cpus=self.cpus)
            at_least(0, gpus=self.gpus)
            if find_spec("ray") is None:
                raise ResvaeError("ray: it needs the extra resvae[ray]")

    @property
    def logged(self) -> bool:
        """Whether the runs write their output to files."""
        return self.ray is not None or self.jobs > 1

    def train(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """Train the runs; yields each as it ends, with its exit code."""
        return self._here(jobs) if self.ray is None or not jobs else self._remotely(jobs, self.ray)

    def _here(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        threads = None
        if self.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
            threads = max(1, cores // self.jobs)
        pool = ThreadPoolExecutor(self.jobs)
        try:
            futures = {pool.submit(job.train, threads, self.logged): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # Ctrl-C reaches the runs that train, too; begin no others
            pool.shutdown(cancel_futures=True)

    def _remotely(self, jobs: Sequence[Job], address: str) -> Iterator[tuple[Job, int]]:
        """Each run is a Ray task. One whose worker is lost is given to another, and resumes from its last checkpoint.

        The present folder must be on a disk that the workers share, under the same path.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        ray.init(address)
        try:
            # Retries are for lost workers alone: a task that raises is not repeated.
            task: Any = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=-1)(Job.train)
            waiting = {task.remote(job, self.cpus, True, Path.cwd()): job for job in jobs}
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                job = waiting.pop(done)
                try:
                    yield job, ray.get(done)
                except RayError as error:
                    print(f"{job}: {error}", flush=True)
                    yield job, 1
        finally:
            ray.shutdown()
