"""A sweep: one run a value and seed, nothing done twice, what was stopped goes on, and the table."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from resvae.studies.launch import listed
from resvae.studies.results import Point

import resvae
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.studies import runs as studied
from resvae.studies.sweep import Match

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
def not_run(monkeypatch) -> list[tuple[list[str], dict]]:
    """Runs that only say that they have ended; the arguments and the environment of each are kept."""
    calls: list[tuple[list[str], dict]] = []

    def run(command, env, stdout, **_):
        calls.append((command[3:], env))
        options = dict(itertools.pairwise(command))
        folder = Path(options["--runs"]) / options["--name"]
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/last.ckpt").touch()
        summary = {"name": folder.name, "model": "VAE", "arguments": {}, "parameters": 7, "seconds": 36.0, "epochs": 1}
        summary |= {"train_loss": 3.0, "val_loss": 3.0 + len(calls), "ended": "all 1 epochs done"}
        (folder / "summary.json").write_text(json.dumps(summary))
        if stdout:
            stdout.write("this run's own line")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(studied.subprocess, "run", run)
    return calls


def arguments(folder: Path, values: str, option: str = "--depths") -> list[str]:
    (folder / "config.yaml").write_text(CONFIG)
    return ["sweep", "--config", str(folder / "config.yaml"), option, values, "--runs", str(folder), "--name", "s"]


def rows(folder: Path, name: str = "depths") -> list[dict[str, str]]:
    with (folder / f"s/{name}.csv").open() as file:
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


def test_a_run_that_was_killed_goes_on(tmp_path, in_process, monkeypatch, capsys):
    command = arguments(tmp_path, "16")
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}

    def run(command, **_):
        with subprocess.Popen([sys.executable, str(tmp_path / "killed.py"), *command[3:]], env=environment) as process:
            return subprocess.CompletedProcess(command, process.wait(timeout=120))

    with monkeypatch.context() as patched:
        patched.setattr(studied.subprocess, "run", run)
        assert main(command) == 2
    output = capsys.readouterr()
    assert output.err.endswith("sweep: failed: depth 16; the same command goes on with what is left\n")
    assert "| running |" in output.out
    run = tmp_path / "s/depth_0016"
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


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, in_process, capsys):
    assert main(arguments(tmp_path, "29,16")) == 2
    refused, told = capsys.readouterr().err.splitlines()
    assert "depth: 29 is not allowed" in refused
    assert told == "resvae: error: sweep: failed: depth 29; the same command goes on with what is left"
    assert [row["depth"] for row in rows(tmp_path)] == ["16"]


@pytest.mark.parametrize("option", ["levels", "stochastic_depths"])
def test_a_value_and_a_seed_are_arguments_of_fit(tmp_path, not_run, option):
    assert main([*arguments(tmp_path, "2,4", f"--{option}"), "--seeds", "0,3", "--trainer.max_epochs", "1"]) == 0
    field = option.removesuffix("s") if option != "levels" else option
    wanted = [(value, seed) for value in (2, 4) for seed in (0, 3)]
    for (call, _), (value, seed) in zip(not_run, wanted, strict=True):
        assert call[:3] == ["fit", "--config", str(tmp_path / "config.yaml")]
        assert call[3:7] == [
            "--trainer.max_epochs",
            "1",
            f"--model.vae.init_args.{field}={value}",
            f"--seed_everything={seed}",
        ]
        assert call[7:] == ["--name", f"{field}_{value:04d}_seed_{seed}", "--runs", str(tmp_path / "s")]
    table = rows(tmp_path, option)
    assert [(row[field], row["seeds"]) for row in table] == [("2", "2"), ("4", "2")]
    assert [float(row["validation loss"]) for row in table] == [4.5, 6.5]  # 4 and 5, 6 and 7
    assert [float(row["validation loss ±"]) for row in table] == pytest.approx([0.5**0.5] * 2)
    assert [float(row["train loss ±"]) for row in table] == [0, 0]
    assert [(row[field], row["seed"], row["validation loss"]) for row in rows(tmp_path, f"{option}_runs")] == [
        (str(value), str(seed), f"{4.0 + i}") for i, (value, seed) in enumerate(wanted)
    ]
    assert main([*arguments(tmp_path, "2,4", f"--{option}"), "--seeds", "0,3", "--trainer.max_epochs", "1"]) == 0
    assert len(not_run) == 4


def test_a_number_a_resolution_is_a_tuple(tmp_path, not_run):
    assert main(arguments(tmp_path, "1-2-2-1,1-1-1-1", "--levels")) == 0
    assert not_run[0][0][3:6] == ["--model.vae.init_args.levels=[1, 2, 2, 1]", "--name", "levels_1-2-2-1"]
    assert [row["levels"] for row in rows(tmp_path, "levels")] == ["1-1-1-1", "1-2-2-1"]


def test_the_same_time_or_updates_end_every_run_whatever_the_configuration_says(tmp_path, not_run):
    assert main([*arguments(tmp_path, "16"), "--match", "time", "--seconds", "300"]) == 0
    patient = "--early_stopping.patience=1000000000"
    limits = ['--trainer.max_time={"seconds": 300}', "--trainer.max_epochs=-1", "--trainer.max_steps=-1", patient]
    assert not_run[0][0][3:7] == limits
    assert main([*arguments(tmp_path, "16"), "--match", "steps", "--steps", "40", "--name", "t"]) == 0
    limits = ["--trainer.max_time=null", "--trainer.max_epochs=-1", "--trainer.max_steps=40", patient]
    assert not_run[1][0][3:7] == limits


def test_equal_parameters_are_widths_of_each_run(tmp_path, not_run, capsys):
    command = [*arguments(tmp_path, "16,28"), "--match", "params,steps", "--steps", "40", "--params", "9000"]
    assert main(command) == 0
    told = [line.split("widths ")[1].split("), ")[0] + ")" for line in capsys.readouterr().out.splitlines()[:2]]
    for (call, _), depth, widths in zip(not_run, (16, 28), told, strict=True):
        assert call[7:9] == [
            f"--model.vae.init_args.depth={depth}",
            f"--model.vae.init_args.widths={widths.replace('(', '[').replace(')', ']')}",
        ]
    assert told[0] != told[1]
    assert main(command) == 0
    assert "widths" not in capsys.readouterr().out  # nothing is solved for runs that have ended


def test_a_single_width_is_a_tuple_too(tmp_path, not_run):
    one = ["--model.vae.widths", "[8]", "--model.vae.strides", "[1]", "--match", "params,steps", "--steps", "4"]
    assert main([*arguments(tmp_path, "10"), *one]) == 0
    assert any(re.fullmatch(r"--model\.vae\.init_args\.widths=\[\d+\]", argument) for argument in not_run[0][0])


def test_jobs_share_the_cores_and_keep_their_output_apart(tmp_path, not_run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    assert main([*arguments(tmp_path, "16,22,28"), "--jobs", "2"]) == 0
    assert [environment["OMP_NUM_THREADS"] for _, environment in not_run] == ["2"] * 3
    assert {path.name for path in tmp_path.glob("s/*.log")} == {f"depth_00{depth}.log" for depth in (16, 22, 28)}
    assert (tmp_path / "s/depth_0016.log").read_text() == "this run's own line"
    assert [row["depth"] for row in rows(tmp_path)] == ["16", "22", "28"]


@pytest.mark.parametrize(
    ("more", "config", "told"),
    [
        (["--match", "steps", "--steps", "9"], CONFIG, "another match"),
        (["--trainer.max_epochs", "3"], CONFIG, "another overrides"),
        ([], CONFIG.replace("latent_dim: 4", "latent_dim: 5"), "another config"),
    ],
)
def test_runs_that_were_trained_otherwise_are_not_taken_for_these(tmp_path, not_run, capsys, more, config, told):
    command = arguments(tmp_path, "16")
    assert main(command) == 0
    (tmp_path / "config.yaml").write_text(config)
    before = (tmp_path / "s/depths.csv").read_text()
    assert main([*command, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert "choose another folder" in line
    (tmp_path / "config.yaml").write_text("# a comment\n" + CONFIG)
    assert main(command) == 0
    assert len(not_run) == 1
    assert (tmp_path / "s/depths.csv").read_text() == before


def test_what_failed_before_anything_was_trained_can_be_corrected(tmp_path, in_process, capsys):
    command = arguments(tmp_path, "16")
    assert main([*command, "--model.vae.latent_dim", "0"]) == 2
    assert main([*command, "--model.vae.latent_dim", "2", "--trainer.max_epochs", "1"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_run_ends_with_the_sweep_that_was_killed(tmp_path):
    run, pid = tmp_path / "run", tmp_path / "pid"
    run.write_text(f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 60\n")
    run.chmod(0o755)
    (tmp_path / "sweep.py").write_text(
        "import pathlib, runpy, sys\n"
        f"Run = runpy.run_path({studied.__file__!r})['Run']\n"
        f"sys.executable, folder = {str(run)!r}, pathlib.Path({str(tmp_path)!r})\n"
        "Run(folder, 'depth_0016', 'depth 16').train({}, False)\n"
    )
    with subprocess.Popen([sys.executable, str(tmp_path / "sweep.py")]) as sweep:
        while not pid.is_file():
            assert sweep.poll() is None
            time.sleep(0.05)
        child = Path(f"/proc/{pid.read_text().strip()}")
        assert child.exists()
        sweep.kill()
    for _ in range(100):
        if not child.exists() or ") Z " in (child / "stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the run goes on")


@pytest.mark.parametrize("values", ["", "a", "16,,22", "16;22", "1-,2", "-1"])
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(ResvaeError, match=r"levels: .* give numbers with commas"):
        listed("levels", values)


def test_values_are_numbers_or_tuples_each_once():
    assert listed("levels", "1, 2-2,1") == [(1,), (2, 2)]
    assert Point("levels", (2, 2), 0).name == "levels_2-2_seed_0"


BAD = {
    "no axis": (["--config", "c.yaml"], ["--config and one of --depths, --levels, --stochastic_depths are needed"]),
    "two axes": (["--config", "c.yaml", "--depths", "16", "--levels", "2"], ["--levels", "--depths", "not allowed"]),
    "a match that is none": (["--match", "flops"], ["match: flops is not allowed"]),
    "two ends": (["--match", "time,steps", "--seconds", "1", "--steps", "1"], ["match: time,steps is not allowed"]),
    "time without seconds": (["--match", "params,time"], ["match: time needs --seconds"]),
    "steps without number": (["--match", "steps"], ["match: steps needs --steps"]),
    "seconds without time": (["--seconds", "3"], ["seconds: 3 is not allowed without --match time"]),
    "no time": (["--match", "time", "--seconds", "0"], ["seconds: 0 is not allowed; at least 1"]),
    "no jobs": (["--jobs", "0"], ["jobs: 0 is not allowed"]),
    "jobs that are no number": (["--jobs", "many"], ["--jobs", "many"]),
    "seeds that are tuples": (["--seeds", "1-2"], ["seeds: '1-2' is not allowed"]),
    "no cores": (["--ray", "local", "--cpus", "0"], ["cpus: 0 is not allowed"]),
}


@pytest.mark.parametrize(("more", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(tmp_path, not_run, capsys, more, told):
    command = ["sweep", *more] if "--config" in more else [*arguments(tmp_path, "16"), *more]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in told:
        assert part in line
    assert not (tmp_path / "s").exists()
    assert not not_run


def test_what_the_command_line_does_not_say_the_environment_may(tmp_path, not_run, monkeypatch):
    monkeypatch.setenv("RESVAE_SWEEP__DEPTHS", "16, 22")
    monkeypatch.setenv("RESVAE_SWEEP__JOBS", "1")
    monkeypatch.setenv("RESVAE_SWEEP__SEEDS", "5")
    assert main([*arguments(tmp_path, "0", "--seeds")]) == 0
    assert ["--seed_everything=0" in call for call, _ in not_run] == [True] * 2


def test_a_classifiers_configuration_is_refused(tmp_path, not_run, capsys):
    command = arguments(tmp_path, "8,14")
    (tmp_path / "config.yaml").write_text("model: {classifier: {depth: 8}}\n")
    assert main(command) == 2
    assert "is a classifier's; a sweep is of VAEs" in capsys.readouterr().err
    assert not not_run


def test_ray_that_is_not_installed_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("resvae.studies.remote.find_spec", lambda _: None)
    assert main([*arguments(tmp_path, "16"), "--ray", "local"]) == 2
    assert capsys.readouterr().err == "resvae: error: ray: it needs the extra resvae[ray]\n"


def test_a_match_keeps_only_its_own_numbers():
    assert Match(("params",), params=5).limits() == ()
    with pytest.raises(ResvaeError, match="params: 5 is not allowed without --match params"):
        Match((), params=5)
