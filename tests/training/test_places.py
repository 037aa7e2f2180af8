"""Paths and names mean the same at every door, from every folder."""

from pathlib import Path

import pytest
import yaml
from helpers_runs import VAE, checkpoint, command, files, printed, refused

from resvae.cli import main


def fit(folder: Path, *more: str) -> int:
    (folder / "config.yaml").write_text(VAE)
    return main(["fit", "--config", str(folder / "config.yaml"), *more])


def test_home_is_home_at_every_door(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, "--runs", "~/there") == 0
    assert not (tmp_path / "~").exists()
    run = tmp_path / "there/run"
    assert {"config.yaml", "metrics.csv", "summary.json", "checkpoints/best.ckpt"} <= files(run)
    assert fit(tmp_path, "--runs", "~/there", "--trainer.max_epochs", "2", "--ckpt_path", "last") == 0
    assert checkpoint(run)["global_step"] == 6
    printed(capsys, "validate", Path("~/there/run"))
    for verb, more in (
        ("sample", ["--num", "4", "--out", "~/s.png"]),
        ("evaluate", ["--num", "8", "--out", "~/report.json"]),
        ("reconstruct", ["--num", "2", "--out", "~/r.png"]),
    ):
        assert main([verb, "~/there/run", *more]) == 0
    assert main(["export", "~/there/run", "~/saved", "--num_samples", "2", "--iw_images", "8"]) == 0
    assert main(["sample", "~/saved", "--num", "4", "--out", "~/t.png"]) == 0
    assert {"s.png", "t.png", "r.png", "report.json", "saved/config.json"} <= files(tmp_path)
    assert not (tmp_path / "~").exists()


def test_a_run_in_a_group_is_resumed_by_its_own_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, "--name", "group/one") == 0
    own = tmp_path / "runs/group/one/config.yaml"
    assert yaml.safe_load(own.read_text())["name"] == "group/one"
    assert main(["fit", "--config", str(own), "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert checkpoint(own.parent)["global_step"] == 6
    assert fit(tmp_path, "--name", "group/one") == 0
    assert (tmp_path / "runs/group/one-2/config.yaml").is_file()


@pytest.mark.parametrize("name", ["..", "../beside", "group/../..", "", "/absolute", "."])
def test_a_name_stays_below_the_folder_of_runs(tmp_path, name, capsys):
    before = files(tmp_path) | {"config.yaml"}
    refused(capsys, [*command(tmp_path), f"--name={name}"], f"name: {name!r} is not allowed; a name, or group/name")
    assert files(tmp_path) == before


def test_a_run_is_used_and_resumed_from_another_folder(tmp_path, monkeypatch, capsys):
    import numpy as np

    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    np.savez(home / "set.npz", images=np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8))
    monkeypatch.chdir(home)
    assert fit(home, "--data.name", "npz", "--data.path", "set.npz") == 0
    expected = printed(capsys, "validate", Path("runs/run"))
    monkeypatch.chdir(elsewhere)
    assert printed(capsys, "validate", home / "runs/run") == expected
    assert main(["evaluate", str(home / "runs/run"), "--num", "8"]) == 0
    own = str(home / "runs/run/config.yaml")
    assert main(["fit", "--config", own, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert checkpoint(home / "runs/run")["global_step"] == 6
    assert files(elsewhere) == set()
    (home / "runs/run").rename(elsewhere / "run")  # a run that was moved is where it is
    own = str(elsewhere / "run/config.yaml")
    assert main(["fit", "--config", own, "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert checkpoint(elsewhere / "run")["global_step"] == 9
