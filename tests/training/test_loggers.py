"""CSV always; W&B and TensorBoard where they are wanted and there."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from helpers_runs import assert_same, checkpoint, command, files, logged, rows

from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.training.loggers import RunCSVLogger, make_loggers, rows_before


def fit(folder: Path, tracker: str) -> Path:
    assert main(command(folder, f"--tracker {tracker}")) == 0
    return folder / "runs/run"


@pytest.fixture
def absent(monkeypatch):
    """W&B and TensorBoard are not installed."""
    find = importlib.util.find_spec
    gone = ("wandb", "tensorboard")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else find(name, *a))
    for name in gone:
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail


def test_without_wandb_the_csv_is_written_and_nothing_else_changes(tmp_path, absent):
    auto, none = fit(tmp_path / "auto", "auto"), fit(tmp_path / "none", "none")
    assert files(auto) == files(none)
    assert logged(auto, "val/loss") == logged(none, "val/loss") != []
    assert_same(checkpoint(auto)["state_dict"], checkpoint(none)["state_dict"])


def test_a_folder_named_wandb_is_not_wandb(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as W&B itself leaves one
    folder = importlib.util.spec_from_loader("wandb", None, origin=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert [type(logger) for logger in make_loggers(tmp_path / "run", "auto")] == [RunCSVLogger]


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_asked_for_by_name_and_missing_is_refused(tmp_path, absent, tracker):
    with pytest.raises(ResvaeError, match=rf"tracker: {tracker} is not installed: pip install {tracker}"):
        make_loggers(tmp_path / "run", tracker)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def logged_out(tmp_path, monkeypatch):
    """Nobody is logged in to W&B, and none of its variables are set."""
    for name in [*filter(lambda name: name.startswith("WANDB_"), os.environ), "WANDB_MODE", "WANDB_API_KEY"]:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_offline_holds_configuration_scalars_and_pictures(tmp_path, monkeypatch, logged_out):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_PROJECT", "my-project")
    monkeypatch.setenv("WANDB_TAGS", "first-tag,second-tag")
    monkeypatch.setenv("WANDB_NOTES", "my notes")
    monkeypatch.setenv("WANDB_LOG_MODEL", "true")
    fit(tmp_path / "before", "wandb")  # its W&B run ends with it
    run = fit(tmp_path, "wandb")
    assert wandb.run is None
    assert main(command(tmp_path, "--tracker wandb --trainer.max_epochs 2 --ckpt_path last")) == 0
    wandb.teardown()  # waits until all is on disk
    first, resumed = sorted((run / "wandb").glob("offline-run-*"))  # by their time
    name = (run / "wandb_id").read_text()
    assert name in first.name  # W&B adds a number where two began in one second
    assert name in resumed.name  # the same W&B run
    pictures = {path.name.split("_")[0] for path in (first / "files/media/images").glob("*.png")}
    assert pictures == {"samples", "reconstructions"}
    (log,) = first.glob("*.wandb")
    content = log.read_bytes()
    scalars = (b"val/loss", b"val/bits_per_dim", b"train/elbo", b"train/grad_norm", b"train/images_per_second")
    about = (b"latent_dim", b"samples, epoch 1", b"my-project", b"second-tag", b"my notes", f"{name}-best".encode())
    for expected in (*scalars, *about):
        assert expected in content
    assert rows(run / "metrics.csv")  # the CSV beside it


def test_auto_is_wandb_for_who_is_logged_in(tmp_path, monkeypatch, logged_out):
    pytest.importorskip("wandb")
    assert len(make_loggers(tmp_path / "run", "auto")) == 1
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert len(make_loggers(tmp_path / "run", "auto")) == 2
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert len(make_loggers(tmp_path / "run", "auto")) == 2
    assert not (tmp_path / "run").exists()


def test_wandb_is_online_only_for_who_is_logged_in(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def offline() -> bool:
        return make_loggers(tmp_path / "run", "wandb")[1]._offline

    assert offline()
    netrc.write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert not offline()
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not offline()
    assert not (tmp_path / "run").exists()  # nothing is made before training begins


def test_tensorboard_holds_the_scalars_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(tmp_path, "tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"samples", "reconstructions"}
    assert {"val/loss", "train/elbo"} <= set(tags["scalars"])


def test_metrics_of_a_resumed_run_follow_the_old_rows(tmp_path):
    folder = tmp_path / "run"
    first = RunCSVLogger(folder)
    first.log_metrics({"a": 1.0}, step=0)
    first.log_metrics({"a": 2.0, "b": 3.0}, step=1)
    assert len(rows(folder / "metrics.csv")) == 2  # on disk at once: a kill loses nothing
    second = RunCSVLogger(folder)
    second.log_metrics({"b": 4.0, "c": 5.0}, step=2)
    second.finalize("success")
    kept = [(row["step"], row["a"], row["c"]) for row in rows(folder / "metrics.csv")]
    assert kept == [("0", "1.0", ""), ("1", "2.0", ""), ("2", "", "5.0")]
    assert files(tmp_path) == {"run/metrics.csv"}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("step,val/loss\n0,5\n2,4\n3,3\n7,2\n", ["step,val/loss", "0,5", "2,4"]),
        ("step,val/loss\n0,5\n2,", ["step,val/loss", "0,5"]),  # a kill in the middle of a line
        ("step,val", []),
    ],
)
def test_rows_that_will_be_written_again_are_dropped(tmp_path, written, kept):
    metrics = tmp_path / "metrics.csv"
    rows_before(metrics, 3)()
    assert not metrics.exists()
    metrics.write_text(written)
    rows_before(metrics, 3)()
    assert metrics.read_text().split() == kept
