"""A grid: one configuration per run, nothing done twice, what was stopped resumes, what differs is refused."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import resvae
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.studies.grid import listed
from resvae.studies.sweep import Match, name_of

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
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}


def arguments(folder: Path, values: str, option: str = "--depths", config: str = CONFIG) -> list[str]:
    (folder / "config.yaml").write_text(config)
    return ["sweep", "--config", str(folder / "config.yaml"), option, values, "--runs", str(folder), "--name", "s"]


def rows(folder: Path, name: str = "depths") -> list[dict[str, str]]:
    with (folder / f"s/{name}.csv").open() as file:
        return list(csv.DictReader(file))


def init_args(configuration: dict) -> dict:
    return configuration["model"]["vae"]["init_args"]


def test_it_trains_each_depth_once_and_ends_in_the_table(tmp_path, in_process, capsys):
    command = [*arguments(tmp_path, "16,22"), "--model.vae.latent_dim", "3"]
    assert main(command) == 0
    assert len(in_process) == 2
    table = rows(tmp_path)
    assert [row["depth"] for row in table] == ["16", "22"]
    for row in table:
        summary = json.loads((tmp_path / f"s/depth_{int(row['depth']):04d}/summary.json").read_text())
        assert (summary["arguments"]["depth"], summary["arguments"]["latent_dim"]) == (int(row["depth"]), 3)
        assert (int(row["parameters"]), row["epochs"]) == (summary["parameters"], "2")
        assert float(row["validation loss"]) == summary["val_loss"]
        assert float(row["train loss"]) == summary["train_loss"]
        assert float(row["bits/dim"]) == summary["bits_per_dim"]
        assert float(row["hours"]) == pytest.approx(summary["seconds"] / 3600)
        assert row["ended"] == "all 2 epochs done"
    assert int(table[1]["parameters"]) > int(table[0]["parameters"])
    text = (tmp_path / "s/depths.md").read_text()
    assert text.splitlines()[0].startswith("| depth | parameters | hours | epochs | train loss | validation loss |")
    assert text in capsys.readouterr().out
    with Image.open(tmp_path / "s/depths.png") as picture:
        assert picture.width > 500

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/depth_*/**/*") if path.is_file()}
    assert main(command) == 0
    assert len(in_process) == 2  # nothing was run again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert rows(tmp_path) == table
    assert main([*arguments(tmp_path, "16,28"), "--model.vae.latent_dim", "3"]) == 0
    assert len(in_process) == 3  # one more depth is one more run
    assert [row["depth"] for row in rows(tmp_path)] == ["16", "22", "28"]


def test_a_run_can_be_repeated_from_its_folder_alone(tmp_path, in_process):
    assert main(arguments(tmp_path, "16")) == 0
    run = tmp_path / "s/depth_0016"
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0
    figures = [json.loads((tmp_path / f"s/{name}/summary.json").read_text()) for name in ("depth_0016", "depth_0016-2")]
    assert figures[0]["val_loss"] == figures[1]["val_loss"]
    assert figures[0]["arguments"] == figures[1]["arguments"]


def test_a_run_that_was_killed_resumes(tmp_path, instead, capsys):
    command = arguments(tmp_path, "16")
    (tmp_path / "killed.py").write_text(KILLED)

    def killed(arguments, **_):
        with subprocess.Popen([sys.executable, str(tmp_path / "killed.py"), *arguments], env=ENVIRONMENT) as process:
            return process.wait(timeout=120)

    instead(killed)
    assert main(command) == 2
    output = capsys.readouterr()
    assert output.err.endswith("sweep: failed: depth 16; the same command resumes what is left\n")
    assert "| running |" in output.out
    run, calls = tmp_path / "s/depth_0016", []
    instead(lambda arguments, **_: calls.append(arguments) or main(arguments))
    assert main(command) == 0
    assert calls[0][-2:] == ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
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
    assert told == "resvae: error: sweep: failed: depth 29; the same command resumes what is left"
    assert [row["depth"] for row in rows(tmp_path)] == ["16"]


@pytest.mark.parametrize("option", ["levels", "stochastic_depths"])
def test_values_and_seeds_are_fields_of_each_runs_configuration(tmp_path, not_run, option):
    hierarchical = ["--model.vae", "resvae.HierarchicalVAE", "--model.vae.image_shape", "[1, 8, 8]"]
    command = [*arguments(tmp_path, "2,4", f"--{option}"), *hierarchical, "--seeds", "0,3", "--trainer.max_epochs", "1"]
    assert main(command) == 0
    field = option.removesuffix("s") if option != "levels" else option
    wanted = [(value, seed) for value in (2, 4) for seed in (0, 3)]
    for (run, _), (value, seed) in zip(not_run, wanted, strict=True):
        assert (init_args(run)[field], run["seed_everything"], run["trainer"]["max_epochs"]) == (value, seed, 1)
        assert (run["name"], run["runs"]) == (f"{field}_{value:04d}_seed_{seed}", str(tmp_path / "s"))
    table = rows(tmp_path, option)
    assert [(row[field], row["seeds"]) for row in table] == [("2", "2"), ("4", "2")]
    assert [float(row["validation loss"]) for row in table] == [4.5, 6.5]  # 4 and 5, 6 and 7
    assert [float(row["validation loss ±"]) for row in table] == pytest.approx([0.5**0.5] * 2)
    assert [(row[field], row["seed"], row["validation loss"]) for row in rows(tmp_path, f"{option}_runs")] == [
        (str(value), str(seed), f"{4.0 + i}") for i, (value, seed) in enumerate(wanted)
    ]
    assert main(command) == 0
    assert len(not_run) == 4


def test_one_number_per_resolution_is_a_tuple(tmp_path, not_run):
    hierarchical = ["--model.vae", "resvae.HierarchicalVAE", "--model.vae.image_shape", "[1, 8, 8]"]
    assert main([*arguments(tmp_path, "1-2-2-1,1-1-1-1", "--levels"), *hierarchical]) == 0
    assert (init_args(not_run[0][0])["levels"], not_run[0][0]["name"]) == ((1, 2, 2, 1), "levels_1-2-2-1")
    assert [row["levels"] for row in rows(tmp_path, "levels")] == ["1-1-1-1", "1-2-2-1"]


def test_a_classifier_is_swept_too(tmp_path, in_process):
    config = "data: {name: digits, limit: 64}\nmodel: {classifier: {depth: 8, image_shape: [1, 8, 8]}}\ntracker: none\n"
    command = [*arguments(tmp_path, "8,14", config=config), "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    assert main(command) == 0
    assert [0 < float(row["validation error"]) < 1 for row in rows(tmp_path)] == [True, True]
    assert "bits/dim" not in rows(tmp_path)[0]


def test_the_same_time_or_updates_end_every_run_whatever_the_configuration_says(tmp_path, not_run):
    assert main([*arguments(tmp_path, "16"), "--match", "time", "--seconds", "300"]) == 0
    assert main([*arguments(tmp_path, "16"), "--match", "steps", "--steps", "40", "--name", "t"]) == 0
    names = ("max_time", "max_epochs", "max_steps")
    ends = [{name: run["trainer"][name] for name in names} for run, _ in not_run]
    assert ends[0] == {"max_time": {"seconds": 300}, "max_epochs": -1, "max_steps": -1}
    assert ends[1] == {"max_time": None, "max_epochs": -1, "max_steps": 40}
    assert [run["early_stopping"]["patience"] for run, _ in not_run] == [10**9] * 2


def test_equal_parameters_are_widths_of_each_run(tmp_path, not_run, capsys):
    command = [*arguments(tmp_path, "16,28"), "--match", "params,steps", "--steps", "40", "--params", "9000"]
    assert main(command) == 0
    told = [re.findall(r"\((.*?)\)", line)[0] for line in capsys.readouterr().out.splitlines()[:2]]
    assert [str(init_args(run)["widths"]).strip("()") for run, _ in not_run] == told
    assert told[0] != told[1]
    one = ["--model.vae.widths", "[8]", "--model.vae.strides", "[1]", "--match", "params,steps", "--steps", "4"]
    assert main([*arguments(tmp_path, "10"), *one, "--name", "t"]) == 0
    assert len(init_args(not_run[-1][0])["widths"]) == 1


@pytest.mark.parametrize(
    ("more", "config", "told"),
    [
        (["--match", "steps", "--steps", "9"], CONFIG, "trainer.max_epochs 2, not -1"),
        (["--trainer.max_epochs", "3"], CONFIG, "trainer.max_epochs 2, not 3"),
        ([], CONFIG.replace("latent_dim: 4", "latent_dim: 5"), "model.vae.init_args.latent_dim 4, not 5"),
    ],
)
def test_runs_that_were_trained_otherwise_are_not_taken_for_these(tmp_path, not_run, capsys, more, config, told):
    command = arguments(tmp_path, "16")
    assert main(command) == 0
    (tmp_path / "config.yaml").write_text(config)
    before = (tmp_path / "s/depths.csv").read_text()
    assert main([*command, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 's/depth_0016'} was trained with {told}; choose another folder" in line
    (tmp_path / "config.yaml").write_text("# a comment\n" + CONFIG)
    assert main(command) == 0
    assert len(not_run) == 1
    assert (tmp_path / "s/depths.csv").read_text() == before
    (tmp_path / "s/depth_0016/config.yaml").write_text("- half")
    assert main(command) == 2
    assert "depth_0016/config.yaml cannot be read" in capsys.readouterr().err


def test_what_failed_before_anything_was_trained_can_be_corrected(tmp_path, in_process):
    command = arguments(tmp_path, "16")
    assert main([*command, "--model.vae.latent_dim", "0"]) == 2
    assert main([*command, "--model.vae.latent_dim", "2", "--trainer.max_epochs", "1"]) == 0


def test_a_second_sweep_in_the_folder_is_told_who_is_there(tmp_path, instead, capsys):
    command, codes = arguments(tmp_path, "16"), []
    instead(lambda *_, **__: codes.append(main(command)) or 1)
    assert main(command) == 2
    assert codes == [2]
    assert f"process {os.getpid()} on " in (told := capsys.readouterr().err.splitlines()[0])
    assert f"trains in {tmp_path / 's'}" in told


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_the_runs_end_with_a_sweep_that_is_killed(tmp_path):
    command = [*arguments(tmp_path, "16"), "--trainer.max_epochs", "100000", "--early_stopping.patience", "100000"]
    sweep = subprocess.Popen([sys.executable, "-m", "resvae", *command], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    summary = tmp_path / "s/depth_0016/summary.json"
    while not summary.is_file():
        assert sweep.poll() is None
        time.sleep(0.05)
    (run,) = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split() or _children(sweep.pid)
    sweep.kill()
    sweep.wait()
    for _ in range(200):
        if not Path(f"/proc/{run}").exists() or ") Z " in Path(f"/proc/{run}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the run trains on")


def _children(process: int) -> list[str]:
    return " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")).split()


@pytest.mark.parametrize("values", ["", "a", "16,,22", "16;22", "1-,2", "-1"])
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(ResvaeError, match=r"levels: .* give numbers with commas"):
        listed("levels", values)


def test_values_are_numbers_or_tuples_each_once():
    assert listed("levels", "1, 2-2,1") == [(1,), (2, 2)]
    assert name_of("levels", (2, 2), 0) == "levels_2-2_seed_0"


BAD = {
    "no configuration": (["--depths", "16"], ["--config is missing"]),
    "no axis": (["--config", "config.yaml"], ["give one of them, beside --config", "--depths, --levels"]),
    "two axes": (["--config", "config.yaml", "--depths", "16", "--levels", "2"], ["--depths and --levels"]),
    "a misspelt option": (["--trainer.max_epoks", "3"], ["--trainer.max_epoks"]),
    "a match that is none": (["--match", "flops"], ["match: flops is not allowed"]),
    "two ends": (["--match", "time,steps", "--seconds", "1", "--steps", "1"], ["match: time,steps is not allowed"]),
    "time without seconds": (["--match", "params,time"], ["match: time needs --seconds"]),
    "steps without number": (["--match", "steps"], ["match: steps needs --steps"]),
    "seconds without time": (["--seconds", "3"], ["seconds: 3 is not allowed without --match time"]),
    "no time": (["--match", "time", "--seconds", "0"], ["seconds: 0 is not allowed; at least 1"]),
    "no jobs": (["--jobs", "0"], ["jobs: 0 is not allowed"]),
    "jobs that are no number": (["--jobs", "many"], ["jobs", "many"]),
    "seeds that are tuples": (["--seeds", "1-2"], ["seeds: '1-2' is not allowed"]),
    "no cores": (["--ray", "local", "--cpus", "0"], ["cpus: 0 is not allowed"]),
    "another model's argument": (["--model.vae.levels", "2"], ["levels"]),
}


@pytest.mark.parametrize(("more", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_refused_once(tmp_path, not_run, capsys, monkeypatch, more, told):
    monkeypatch.chdir(tmp_path)
    command = arguments(tmp_path, "16,22")
    command = ["sweep", *more] if {"--config", "--depths"} & set(more) else [*command, *more]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in told:
        assert part in line
    assert not (tmp_path / "s").exists()
    assert not not_run


def test_the_environment_counts_over_the_file_and_under_the_command_line(tmp_path, not_run, monkeypatch):
    monkeypatch.setenv("RESVAE_SWEEP__DEPTHS", "16, 22")
    monkeypatch.setenv("RESVAE_SWEEP__SEEDS", "5")
    monkeypatch.setenv("RESVAE_FIT__MODEL__VAE__INIT_ARGS__LATENT_DIM", "7")
    assert main(arguments(tmp_path, "0", "--seeds")) == 0
    assert [(run["seed_everything"], init_args(run)["latent_dim"]) for run, _ in not_run] == [(0, 7)] * 2
    assert not any(name.startswith("RESVAE_FIT__") for _, environment in not_run for name in environment)


def test_ray_that_is_not_installed_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("resvae.studies.processes.find_spec", lambda _: None)
    assert main([*arguments(tmp_path, "16"), "--ray", "local"]) == 2
    assert capsys.readouterr().err == "resvae: error: ray: it needs the extra resvae[ray]\n"


def test_jobs_share_the_cores_and_keep_their_output_apart(tmp_path, not_run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    assert main([*arguments(tmp_path, "16,22,28"), "--jobs", "2"]) == 0
    assert [environment["OMP_NUM_THREADS"] for _, environment in not_run] == ["2"] * 3
    assert {path.name for path in tmp_path.glob("s/*.log")} == {f"depth_00{depth}.log" for depth in (16, 22, 28)}
    assert (tmp_path / "s/depth_0016.log").read_text() == "this run's own line"
    assert [row["depth"] for row in rows(tmp_path)] == ["16", "22", "28"]


def test_a_match_keeps_only_its_own_numbers():
    assert Match(("params",), params=5).limits() == {}
    with pytest.raises(ResvaeError, match="params: 5 is not allowed without --match params"):
        Match((), params=5)
