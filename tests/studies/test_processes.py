"""A sweep on Ray: the same table as without, also when a worker is killed in the middle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_runs import CONFIGS, ENVIRONMENT, rows

SMALL = """
    --depths 16,22 --seeds 1 --data.limit 192 --data.validation 60 --model.vae.widths [8,8] --trainer.max_epochs 60
    --trainer.accelerator cpu --early_stopping.patience 60 --images.every_n_epochs 0 --tracker none
"""


def start(folder: Path, name: str, more: str = "") -> subprocess.Popen:
    command = f"sweep --config {CONFIGS}/quickstart.yaml --name {name} {SMALL} {more}".split()
    return subprocess.Popen([sys.executable, "-m", "resvae", *command], cwd=folder, env=ENVIRONMENT)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return [row | {"hours": ""} for row in rows(folder / "runs" / name / "depths_runs.csv")]


def worker_of(run: str) -> int:
    """The process that waits for the run's own."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if run.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has ended
            continue
    raise AssertionError(f"{run} does not run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    pytest.importorskip("ray")
    with start(tmp_path, "here") as here:
        assert here.wait(timeout=300) == 0
    with start(tmp_path, "there", "--ray local") as there:
        run = tmp_path / "runs/there/depth_0022_seed_1"
        while not (run / "checkpoints/last.ckpt").is_file():
            assert there.poll() is None
            time.sleep(0.01)
        os.kill(worker_of(run.name), signal.SIGKILL)
        assert there.wait(timeout=300) == 0
    assert run.with_suffix(".log").read_text().count("parameters, on") == 2  # it has started twice
    assert table(tmp_path, "there") == table(tmp_path, "here")
    assert [row["epochs"] for row in table(tmp_path, "here")] == ["60", "60"]
    assert len(list((tmp_path / "runs/there").glob("depth_*_seed_1*/"))) == 2
