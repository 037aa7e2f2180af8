"""CSV always; W&B and TensorBoard where they are wanted and there."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.training.loggers import RunCSVLogger, drop_rows_after, make_loggers

CONFIG = """
name: run
seed_everything: 0
data: {name: digits, batch_size: 64, validation: 60, limit: 192}
model:
  vae:
    class_path: resvae.VAE
    init_args: {depth: [1, 1], latent_dim: 4, image_shape: [1, 8, 8], widths: [8, 8], strides: [1, 2]}
trainer: {max_epochs: 1, accelerator: cpu}
images: {num: 8}
"""


def fit(folder: Path, *more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    assert main(["fit", "--config", str(folder / "config.yaml"), "--runs", str(folder / "runs"), *more]) == 0
    return folder / "runs/run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def absent(monkeypatch):
    """W&B and TensorBoard are not installed."""
    find = importlib.util.find_spec
    gone = ("wandb", "tensorboard")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else find(name, *a))
    for name in gone:
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail


def test_without_wandb_the_csv_is_written_and_nothing_else_changes(tmp_path, absent):
    auto, none = fit(tmp_path / "auto"), fit(tmp_path / "none", "--tracker", "none")
    names = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (auto, none)]
    assert names[0] == names[1]
    figures = [[row["val/loss"] for row in rows(run / "metrics.csv") if row["val/loss"]] for run in (auto, none)]
    assert figures[0] == figures[1] != []
    last = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (auto, none)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_a_folder_named_wandb_is_not_wandb(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as W&B itself leaves one
    folder = importlib.util.spec_from_loader("wandb", None, origin=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert [type(logger) for logger in make_loggers(tmp_path / "run", "auto")] == [RunCSVLogger]


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_asked_for_by_name_and_missing_is_refused(tmp_path, absent, tracker):
    with pytest.raises(ResvaeError, match=rf"tracker: {tracker} is not installed: pip install 'resvae\[{tracker}\]'"):
        make_loggers(tmp_path / "run", tracker)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_offline_holds_the_scalars_and_the_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    fit(tmp_path / "before", "--tracker", "wandb")  # its W&B run ends with it
    run = fit(tmp_path, "--tracker", "wandb")
    assert wandb.run is None
    wandb.teardown()  # waits until all is on disk
    (offline,) = (run / "wandb").glob("offline-run-*")
    pictures = {path.name.split("_")[0] for path in (offline / "files/media/images").glob("*.png")}
    assert pictures == {"samples", "reconstructions"}
    (log,) = offline.glob("*.wandb")
    content = log.read_bytes()
    for name in (b"val/loss", b"val/bits_per_dim", b"train/elbo", b"train/grad_norm", b"train/images_per_second"):
        assert name in content
    assert rows(run / "metrics.csv")  # the CSV beside it


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

    run = fit(tmp_path, "--tracker", "tensorboard")
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
    kept = rows(folder / "metrics.csv")
    assert [row["step"] for row in kept] == ["0", "1", "2"]
    assert [row["a"] for row in kept] == ["1.0", "2.0", ""]
    assert [row["c"] for row in kept] == ["", "", "5.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in folder.iterdir()] == ["metrics.csv"]


def test_rows_that_will_be_written_again_are_dropped(tmp_path):
    metrics = tmp_path / "metrics.csv"
    drop_rows_after(metrics, 3)
    assert not metrics.exists()
    metrics.write_text("step,val/loss\n0,5\n2,4\n3,3\n7,2\n")
    drop_rows_after(metrics, 3)
    assert metrics.read_text().split() == ["step,val/loss", "0,5", "2,4"]
    metrics.write_text("step,val/loss\n0,5\n2,")  # a kill in the middle of a line
    drop_rows_after(metrics, 3)
    assert metrics.read_text().split() == ["step,val/loss", "0,5"]
    metrics.write_text("step,val")
    drop_rows_after(metrics, 3)
    assert not metrics.read_text().strip()
