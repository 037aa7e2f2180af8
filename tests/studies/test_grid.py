"""A grid: one configuration per run, nothing done twice, what was stopped resumes, what differs is refused."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_runs import CLASSIFIER, ENVIRONMENT, VAE, read, refused, rows, stop
from PIL import Image

from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.studies.sweep import Match
from resvae.training.configuration import listed

CONFIG = (
    VAE.replace("depth: [1, 1], ", "").replace("max_epochs: 1", "max_epochs: 2").replace("num: 8", "every_n_epochs: 0")
)
HIERARCHICAL = "--model.vae resvae.HierarchicalVAE --model.vae.image_shape [1,8,8]"


def arguments(folder: Path, axis: str, more: str = "", config: str = CONFIG) -> list[str]:
    (folder / "config.yaml").write_text(config)
    return f"sweep --config {folder}/config.yaml --runs {folder} --name s --{axis} {more}".split()


def table(folder: Path, name: str = "depths") -> list[dict[str, str]]:
    return rows(folder / f"s/{name}.csv")


def init_args(configuration: dict) -> dict:
    return configuration["model"]["vae"]["init_args"]


def test_it_trains_each_depth_once_and_ends_in_the_table(tmp_path, in_process, capsys):
    command = arguments(tmp_path, "depths 16,22", "--model.vae.latent_dim 3")
    assert main(command) == 0
    assert len(in_process) == 2
    found = table(tmp_path)
    assert [row["depth"] for row in found] == ["16", "22"]
    for row in found:
        summary = read(tmp_path / f"s/depth_{int(row['depth']):04d}/summary.json")
        assert (summary["arguments"]["depth"], summary["arguments"]["latent_dim"]) == (int(row["depth"]), 3)
        assert (int(row["parameters"]), row["epochs"]) == (summary["parameters"], "2")
        shown = {"validation loss": "val_loss", "train loss": "train_loss", "bits/dim": "bits_per_dim"}
        assert [float(row[name]) for name in shown] == [summary[name] for name in shown.values()]
        assert float(row["hours"]) == pytest.approx(summary["seconds"] / 3600)
        assert row["ended"] == "all 2 epochs done"
    assert int(found[1]["parameters"]) > int(found[0]["parameters"])
    text = (tmp_path / "s/depths.md").read_text()
    assert text.splitlines()[0].startswith("| depth | parameters | hours | epochs | train loss | validation loss |")
    assert text in capsys.readouterr().out
    with Image.open(tmp_path / "s/depths.png") as picture:
        assert picture.width > 500

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/depth_*/**/*") if path.is_file()}
    assert main(command) == 0
    assert len(in_process) == 2  # nothing was run again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert table(tmp_path) == found
    assert main(arguments(tmp_path, "depths 16,28", "--model.vae.latent_dim 3")) == 0
    assert len(in_process) == 3  # one more depth is one more run
    assert [row["depth"] for row in table(tmp_path)] == ["16", "22", "28"]


def test_a_run_can_be_repeated_from_its_folder_alone(tmp_path, in_process):
    assert main(arguments(tmp_path, "depths 16")) == 0
    assert main(["fit", "--config", str(tmp_path / "s/depth_0016/config.yaml")]) == 0
    first, second = (read(tmp_path / f"s/{name}/summary.json") for name in ("depth_0016", "depth_0016-2"))
    assert (first["val_loss"], first["arguments"]) == (second["val_loss"], second["arguments"])


def test_a_run_that_was_killed_resumes(tmp_path, instead, capsys):
    command = [*arguments(tmp_path, "depths 16"), *stop(5, how="kill")]

    def killed(arguments, **_):
        return subprocess.run([sys.executable, "-m", "resvae", *arguments], env=ENVIRONMENT, timeout=120).returncode

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
    assert table(tmp_path)[0]["epochs"] == "2"
    assert read(run / "summary.json")["steps"] == 6
    assert [path.name for path in tmp_path.glob("s/depth_*")] == ["depth_0016"]  # no second folder


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_own_folder(tmp_path, in_process):
    (tmp_path / "s/depth_0016").mkdir(parents=True)
    (tmp_path / "s/depth_0016/config.yaml").write_text("half")
    assert main(arguments(tmp_path, "depths 16")) == 0
    assert [path.name for path in tmp_path.glob("s/depth_*")] == ["depth_0016"]
    assert [row["depth"] for row in table(tmp_path)] == ["16"]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, instead, capsys):
    instead(lambda arguments, **_: 1 if "depth_0022" in " ".join(arguments) else main(arguments))
    assert main(arguments(tmp_path, "depths 22,16")) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == ["resvae: error: sweep: failed: depth 22; the same command resumes what is left"]
    assert [row["depth"] for row in table(tmp_path)] == ["16"]


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, in_process, capsys):
    refused(capsys, arguments(tmp_path, "depths 16,29", "--seeds 0,1"), "sweep: depth 29, seed 0: depth: 29 is not")
    refused(capsys, arguments(tmp_path, "depths 16", "--data.batch_size 0"), "sweep: depth 16: data.batch_size: 0 is")
    assert not in_process
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("option", ["levels", "stochastic_depths"])
def test_values_and_seeds_are_fields_of_each_runs_configuration(tmp_path, not_run, option):
    seeds = f"{HIERARCHICAL} --seeds 0,3 --trainer.max_epochs 1"
    command = arguments(tmp_path, f"{option} 2,4", seeds)
    assert main(command) == 0
    field = option.removesuffix("s") if option != "levels" else option
    wanted = [(value, seed) for value in (2, 4) for seed in (0, 3)]
    for (run, _), (value, seed) in zip(not_run, wanted, strict=True):
        assert (init_args(run)[field], run["seed_everything"], run["trainer"]["max_epochs"]) == (value, seed, 1)
        assert (run["name"], run["runs"]) == (f"{field}_{value:04d}_seed_{seed}", str(tmp_path / "s"))
    found = table(tmp_path, option)
    assert [(row[field], row["seeds"]) for row in found] == [("2", "2"), ("4", "2")]
    assert [float(row["validation loss"]) for row in found] == [4.5, 6.5]  # 4 and 5, 6 and 7
    assert [float(row["validation loss ±"]) for row in found] == pytest.approx([0.5**0.5] * 2)
    runs = [(row[field], row["seed"], row["validation loss"]) for row in table(tmp_path, f"{option}_runs")]
    assert runs == [(str(value), str(seed), f"{4.0 + i}") for i, (value, seed) in enumerate(wanted)]
    assert main(command) == 0
    assert len(not_run) == 4


def test_one_number_per_resolution_is_a_tuple(tmp_path, not_run):
    assert main(arguments(tmp_path, "levels 1-2,1-1", HIERARCHICAL)) == 0
    assert (init_args(not_run[0][0])["levels"], not_run[0][0]["name"]) == ((1, 2), "levels_1-2")
    assert [row["levels"] for row in table(tmp_path, "levels")] == ["1-1", "1-2"]


def test_a_classifier_is_swept_too(tmp_path, in_process):
    assert main(arguments(tmp_path, "depths 8,14", config=CLASSIFIER)) == 0
    assert [0 < float(row["validation error"]) < 1 for row in table(tmp_path)] == [True, True]
    assert "bits/dim" not in table(tmp_path)[0]


def test_the_same_time_or_updates_end_every_run_whatever_the_configuration_says(tmp_path, not_run):
    assert main(arguments(tmp_path, "depths 16", "--match time --seconds 300")) == 0
    assert main(arguments(tmp_path, "depths 16", "--match steps --steps 40 --name t")) == 0
    names = ("max_time", "max_epochs", "max_steps")
    ends = [{name: run["trainer"][name] for name in names} for run, _ in not_run]
    assert ends[0] == {"max_time": {"seconds": 300}, "max_epochs": -1, "max_steps": -1}
    assert ends[1] == {"max_time": None, "max_epochs": -1, "max_steps": 40}
    assert [run["early_stopping"]["patience"] for run, _ in not_run] == [10**9] * 2


def test_equal_parameters_are_widths_of_each_run(tmp_path, not_run, capsys):
    assert main(arguments(tmp_path, "depths 16,28", "--match params,steps --steps 40 --params 9000")) == 0
    told = [re.findall(r"\((.*?)\)", line)[0] for line in capsys.readouterr().out.splitlines()[:2]]
    assert [str(init_args(run)["widths"]).strip("()") for run, _ in not_run] == told
    assert told[0] != told[1]
    one = "--model.vae.widths [8] --model.vae.strides [1] --match params,steps --steps 4 --name t"
    assert main(arguments(tmp_path, "depths 10", one)) == 0
    assert len(init_args(not_run[-1][0])["widths"]) == 1


@pytest.mark.parametrize(
    ("more", "config", "told"),
    [
        ("--match steps --steps 9", CONFIG, "trainer.max_epochs 2, not -1"),
        ("--trainer.max_epochs 3", CONFIG, "trainer.max_epochs 2, not 3"),
        ("", CONFIG.replace("latent_dim: 4", "latent_dim: 5"), "model.vae.init_args.latent_dim 4, not 5"),
    ],
)
def test_runs_that_were_trained_otherwise_are_not_taken_for_these(tmp_path, not_run, capsys, more, config, told):
    command = arguments(tmp_path, "depths 16")
    assert main(command) == 0
    (tmp_path / "config.yaml").write_text(config)
    before = (tmp_path / "s/depths.csv").read_text()
    place = f"{tmp_path / 's/depth_0016'} was trained with"
    refused(capsys, [*command, *more.split()], f"{place} {told}; choose another folder")
    (tmp_path / "config.yaml").write_text("# a comment\n" + CONFIG)
    assert main(command) == 0
    assert len(not_run) == 1
    assert (tmp_path / "s/depths.csv").read_text() == before
    (tmp_path / "s/depth_0016/config.yaml").write_text("- half")
    refused(capsys, command, "depth_0016/config.yaml cannot be read")


def test_what_failed_before_anything_was_trained_can_be_corrected(tmp_path, in_process):
    command = arguments(tmp_path, "depths 16")
    assert main([*command, "--model.vae.latent_dim", "0"]) == 2
    assert main([*command, "--model.vae.latent_dim", "2", "--trainer.max_epochs", "1"]) == 0


def test_a_second_sweep_in_the_folder_is_told_who_is_there(tmp_path, instead, capsys):
    command, codes = arguments(tmp_path, "depths 16"), []
    instead(lambda *_, **__: codes.append(main(command)) or 1)
    assert main(command) == 2
    assert codes == [2]
    assert f"process {os.getpid()} on " in (told := capsys.readouterr().err.splitlines()[0])
    assert f"trains in {tmp_path / 's'}" in told


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_the_runs_end_with_a_sweep_that_is_killed(tmp_path):
    command = arguments(tmp_path, "depths 16", "--trainer.max_epochs 100000 --early_stopping.patience 100000")
    sweep = subprocess.Popen([sys.executable, "-m", "resvae", *command], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    summary = tmp_path / "s/depth_0016/summary.json"
    while not summary.is_file():
        assert sweep.poll() is None
        time.sleep(0.05)
    (run,) = "".join(path.read_text() for path in Path(f"/proc/{sweep.pid}/task").glob("*/children")).split()
    sweep.kill()
    sweep.wait()
    for _ in range(200):
        if not Path(f"/proc/{run}").exists() or ") Z " in Path(f"/proc/{run}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the run trains on")


@pytest.mark.parametrize("values", ["", "a", "16,,22", "16;22", "1-,2", "-1"])
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(ResvaeError, match=r"levels: .* give numbers with commas"):
        listed("levels", values)


def test_values_are_numbers_or_tuples_each_once():
    assert listed("levels", "1, 2-2,1") == [(1,), (2, 2)]


BAD = {
    "--depths 16": ["--config is missing"],
    "--config config.yaml": ["give one of them, beside --config", "--depths, --levels"],
    "--config config.yaml --depths 16 --levels 2": ["--depths and --levels"],
    "--trainer.max_epoks 3": ["trainer.max_epoks: there is no such option"],
    "--match flops": ["match: flops is not allowed"],
    "--match time,steps --seconds 1 --steps 1": ["match: time,steps is not allowed"],
    "--match params,time": ["match: time needs --seconds"],
    "--match steps": ["match: steps needs --steps"],
    "--seconds 3": ["seconds: 3 is not allowed without --match time"],
    "--match time --seconds 0": ["seconds: 0 is not allowed; at least 1"],
    "--jobs 0": ["jobs: 0 is not allowed"],
    "--jobs many": ["jobs", "many"],
    "--seeds 1-2": ["seeds: '1-2' is not allowed"],
    "--ray local --cpus 0": ["cpus: 0 is not allowed"],
    "--model.vae.levels 2": ["levels"],  # another model's argument
}


@pytest.mark.parametrize(("more", "parts"), BAD.items(), ids=BAD)
def test_bad_input_is_one_line_and_refused_once(tmp_path, not_run, capsys, monkeypatch, more, parts):
    monkeypatch.chdir(tmp_path)
    command = arguments(tmp_path, "depths 16,22", more)
    refused(capsys, ["sweep", *more.split()] if {"--config", "--depths"} & {*more.split()} else command, *parts)
    assert not (tmp_path / "s").exists()
    assert not not_run


def test_the_environment_counts_over_the_file_and_under_the_command_line(tmp_path, not_run, monkeypatch):
    monkeypatch.setenv("RESVAE_SWEEP__DEPTHS", "16, 22")
    monkeypatch.setenv("RESVAE_SWEEP__SEEDS", "5")
    monkeypatch.setenv("RESVAE_FIT__MODEL__VAE__INIT_ARGS__LATENT_DIM", "7")
    assert main(arguments(tmp_path, "seeds 0")) == 0
    assert [(run["seed_everything"], init_args(run)["latent_dim"]) for run, _ in not_run] == [(0, 7)] * 2
    assert not any(name.startswith("RESVAE_FIT__") for _, environment in not_run for name in environment)


def test_ray_that_is_not_installed_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(capsys, arguments(tmp_path, "depths 16", "--ray local"), "ray: it needs the extra resvae[ray]")
    assert not (tmp_path / "s").exists()


def test_jobs_share_the_cores_and_keep_their_output_apart(tmp_path, not_run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    assert main(arguments(tmp_path, "depths 16,22,28", "--jobs 2")) == 0
    assert [environment["OMP_NUM_THREADS"] for _, environment in not_run] == ["2"] * 3
    assert {path.name for path in tmp_path.glob("s/*.log")} == {f"depth_00{depth}.log" for depth in (16, 22, 28)}
    assert (tmp_path / "s/depth_0016.log").read_text() == "this run's own line"
    assert [row["depth"] for row in table(tmp_path)] == ["16", "22", "28"]


def test_a_match_keeps_only_its_own_numbers():
    assert Match(("params",), params=5).limits() == {}
    with pytest.raises(ResvaeError, match="params: 5 is not allowed without --match params"):
        Match((), params=5)
