"""A sweep: one run a depth, nothing done twice, what was stopped goes on, and the table."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import resvae
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.studies import sweep as study

CONFIG = """
seed_everything: 0
data: {name: digits, batch_size: 64, validation: 60, limit: 192}
model:
  vae:
    class_path: resvae.VAE
    init_args: {latent_dim: 4, image_shape: [1, 8, 8], widths: [8, 8], strides: [1, 2]}
trainer: {max_epochs: 2, accelerator: cpu}
images: {every_n_epochs: 0}
tracker: none
"""
KILLED = """
import os, signal, sys
from resvae.cli import main
from resvae.training.module import LitVAE

def kill(self, *_):
    if self.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

LitVAE.on_train_batch_end = kill
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def in_process(monkeypatch) -> list[list[str]]:
    """Runs in this process, to save the time of importing; the arguments of each are kept."""
    calls: list[list[str]] = []

    def run(command, **_):
        assert command[:3] == [sys.executable, "-m", "resvae"]
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, main(command[3:]))

    monkeypatch.setattr(study.subprocess, "run", run)
    return calls


def arguments(folder: Path, depths: str) -> list[str]:
    (folder / "config.yaml").write_text(CONFIG)
    return ["sweep", "--config", str(folder / "config.yaml"), "--depths", depths, "--runs", str(folder), "--name", "s"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "s/depths.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_trains_each_depth_once_and_ends_in_the_table(tmp_path, in_process, capsys):
    assert main([*arguments(tmp_path, "16,22"), "--model.vae.latent_dim", "3"]) == 0
    assert len(in_process) == 2
    table = rows(tmp_path)
    assert [row["depth"] for row in table] == ["16", "22"]
    for row in table:
        summary = json.loads((tmp_path / f"s/depth_{int(row['depth']):04d}/summary.json").read_text())
        assert summary["arguments"]["depth"] == int(row["depth"])
        assert summary["arguments"]["latent_dim"] == 3  # what sweep does not know goes to fit
        assert int(row["parameters"]) == summary["parameters"]
        assert row["epochs"] == "2"
        assert float(row["validation loss"]) == summary["val_loss"]
        assert float(row["train loss"]) == summary["train_loss"]
        assert float(row["bits/dim"]) == summary["bits_per_dim"]
        assert float(row["hours"]) == pytest.approx(summary["seconds"] / 3600)
        assert row["ended"] == "all 2 epochs done"
    assert int(table[1]["parameters"]) > int(table[0]["parameters"])
    text = (tmp_path / "s/depths.md").read_text()
    assert text.splitlines()[0].startswith("| depth | parameters | hours | epochs | train loss | validation loss |")
    assert len([line for line in text.splitlines() if line.startswith(("| 16 |", "| 22 |"))]) == 2
    assert text in capsys.readouterr().out
    with Image.open(tmp_path / "s/depths.png") as picture:
        assert picture.width > 500

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/depth_*/**/*") if path.is_file()}
    assert main([*arguments(tmp_path, "16,22"), "--model.vae.latent_dim", "3"]) == 0
    assert len(in_process) == 2  # nothing was run again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rows(tmp_path) == table

    assert main([*arguments(tmp_path, "16,28"), "--model.vae.latent_dim", "3"]) == 0
    assert len(in_process) == 3  # one more depth is one more run
    assert [row["depth"] for row in rows(tmp_path)] == ["16", "22", "28"]


def test_a_run_that_was_killed_goes_on(tmp_path, in_process, capsys):
    command = arguments(tmp_path, "16")
    (tmp_path / "killed.py").write_text(KILLED)
    fit = [
        "fit",
        *command[1:3],
        "--model.vae.init_args.depth=16",
        "--runs",
        str(tmp_path / "s"),
        "--name",
        "depth_0016",
    ]
    killed = [sys.executable, str(tmp_path / "killed.py"), *fit]
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}
    with subprocess.Popen(killed, env=environment) as process:  # `run` is replaced
        code = process.wait(timeout=120)
    assert code == -signal.SIGKILL
    run = tmp_path / "s/depth_0016"
    assert json.loads((run / "summary.json").read_text())["ended"] == "running"
    assert main(command) == 0
    assert in_process[0][-2:] == ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert "depth 16: resumes" in capsys.readouterr().out
    assert rows(tmp_path)[0]["epochs"] == "2"
    assert json.loads((run / "summary.json").read_text())["steps"] == 6
    assert [path.name for path in tmp_path.glob("s/depth_*")] == ["depth_0016"]  # no second folder


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_own_folder(tmp_path, in_process):
    (tmp_path / "s/depth_0016").mkdir(parents=True)
    (tmp_path / "s/depth_0016/config.yaml").write_text("half")
    assert main(arguments(tmp_path, "16")) == 0
    assert [path.name for path in tmp_path.glob("s/depth_*")] == ["depth_0016"]
    assert [row["depth"] for row in rows(tmp_path)] == ["16"]


def test_a_run_that_fails_stops_the_sweep_and_keeps_the_others(tmp_path, in_process, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, "16,29"))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()  # the run's own, not told twice
    assert "depth: 29 is not allowed" in line
    assert [row["depth"] for row in rows(tmp_path)] == ["16"]


def test_the_reported_figures_stand_beside_the_references_own(tmp_path):
    summary = {"parameters": 1, "seconds": 3600.0, "epochs": 1, "val_loss": 2.0, "ended": "all 1 epochs done"}
    for depth, model in ((28, "ReferenceVAE"), (40, "VAE")):
        run = tmp_path / f"depth_{depth:04d}"
        run.mkdir()
        (run / "summary.json").write_text(json.dumps({**summary, "name": run.name, "model": model}))
    lines = study.table(tmp_path).splitlines()
    assert "reported validation loss" in lines[0]
    assert "1,794.7" in lines[2]
    assert "1,795.7" not in lines[3]


@pytest.mark.parametrize("depths", ["", "a", "16,,22", "16;22"])
def test_depths_that_are_no_numbers_are_refused(depths):
    with pytest.raises(ResvaeError, match="give numbers with commas"):
        study._depths(depths)
