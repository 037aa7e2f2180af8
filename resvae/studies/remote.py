"""Training runs on a Ray cluster."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from resvae.errors import ResvaeError, at_least
from resvae.studies.runs import Run


@dataclass(frozen=True)
class Cluster:
    """Where Ray is, and what each run takes of it.

    Args:
        address: of the head; ``auto``: of the cluster that this machine belongs to; ``local``: this machine alone.
        cpus: cores a run, and its thread number.
        gpus: GPUs a run, or a share of one.
    """

    address: str
    cpus: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        at_least(1, cpus=self.cpus)
        at_least(0, gpus=self.gpus)
        if find_spec("ray") is None:
            raise ResvaeError("ray: it needs the extra resvae[ray]")


def train_remotely(runs: Sequence[Run], cluster: Cluster, environment: dict[str, str]) -> Iterator[tuple[Run, int]]:
    """Train each run as a Ray task; each run as it ends, with its exit code.

    A run whose worker is lost is given to another, without limit, and goes on from its last checkpoint. The directory
    in which they were started must be on a disk that the workers share, under the same path, for configuration,
    data and runs are found from there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

    environment = environment | {"OMP_NUM_THREADS": str(cluster.cpus)}
    ray.init(cluster.address)
    try:
        # Retries are for lost workers alone: a task that raises is not repeated.
        task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=-1)(_train)
        waiting = {task.remote(run, environment, Path.cwd()): run for run in runs}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(done)
            try:
                yield run, ray.get(done)
            except RayError as error:
                print(f"{run.label}: {error}", flush=True)
                yield run, 1
    finally:
        ray.shutdown()


def _train(run: Run, environment: dict[str, str], directory: Path) -> int:
    os.chdir(directory)
    return run.train(environment, logged=True)
