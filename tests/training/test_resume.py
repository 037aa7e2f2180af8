"""A run that was killed or interrupted goes on as if nothing had happened, bit for bit."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

import resvae
from resvae import ImageDataModule
from resvae.cli import main
from resvae.runs.folder import best_checkpoint, read_summary
from resvae.runs.lock import locked
from resvae.storage import build
from resvae.training.checkpoints import AtomicCheckpointIO
from resvae.training.module import LitVAE

# 7 batches an epoch, the last one smaller
CONFIG = """
name: run
seed_everything: 0
data: {name: digits, batch_size: 32, validation: 60, limit: 200, flip: true, crop_padding: 1}
model:
  vae:
    class_path: resvae.VAE
    init_args: {depth: [1, 1], latent_dim: 4, image_shape: [1, 8, 8], widths: [8, 8], strides: [1, 2]}
  ema_decay: 0.9
  kl: {warmup_steps: 12}
  schedule: {kind: cosine, warmup_steps: 3}
trainer: {max_epochs: 3, accelerator: cpu}
images: {every_n_epochs: 1, num: 8}
"""
COMPARED = (
    "state_dict",  # the average
    "current_model_state",
    "averaging_state",
    "optimizer_states",
    "lr_schedulers",
    "guard",
    "rng",
    "epoch",
    "global_step",
)
KILLED = """
import os, signal, sys
from resvae.cli import main
from resvae.training.module import LitVAE

def kill(self, *_):
    if self.global_step == 13:
        os.kill(os.getpid(), signal.SIGKILL)

LitVAE.on_train_batch_end = kill
sys.exit(main(sys.argv[1:]))
"""


def command(folder: Path, *more: str, every: int = 5) -> list[str]:
    (folder / "config.yaml").write_text(CONFIG)
    fixed = ["--runs", str(folder / "runs"), "--save_every_n_steps", str(every), "--tracker", "none"]
    return ["fit", "--config", str(folder / "config.yaml"), *fixed, *more]


def last(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / f"runs/run/checkpoints/{name}.ckpt", weights_only=True)


def steps(folder: Path) -> list[tuple[str, ...]]:
    """What each row of the metrics is: its step, and which figures it holds."""
    with (folder / "runs/run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(row["step"], *(name for name, value in sorted(row.items()) if value)) for row in rows]


def losses(folder: Path) -> list[str]:
    with (folder / "runs/run/metrics.csv").open() as file:
        return [row[name] for row in csv.DictReader(file) for name in ("val/loss", "train/loss") if row[name]]


def assert_same(a: Any, b: Any, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_end(folder: Path, whole: Path) -> None:
    here, there = last(folder), last(whole)
    for key in COMPARED:
        assert_same(here[key], there[key], key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never broken; ``moments/`` holds the run's folder as it was after each checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    moments = folder / "moments"
    moments.mkdir()
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            moment = moments / f"{len(list(moments.iterdir())):02d}"
            shutil.copytree(folder / "runs", moment / "runs", ignore=shutil.ignore_patterns("lock"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_keep)
        assert main(command(folder, every=1)) == 0
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}
    subprocess.run([sys.executable, "-m", "resvae", *command(folder)], check=True, env=environment, timeout=120)
    return folder


def test_a_run_killed_mid_epoch_ends_as_one_never_broken(tmp_path, unbroken):
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}
    killed = [sys.executable, str(tmp_path / "killed.py"), *command(tmp_path)]
    assert subprocess.run(killed, env=environment, timeout=120).returncode == -signal.SIGKILL
    assert last(tmp_path)["global_step"] == 10  # 3 batches into the second epoch
    resumed = [sys.executable, "-m", "resvae", *command(tmp_path), "--ckpt_path", "last"]
    subprocess.run(resumed, check=True, env=environment, timeout=120)
    assert last(tmp_path)["global_step"] == 21
    assert_same_end(tmp_path, unbroken)
    assert steps(tmp_path) == steps(unbroken)
    assert losses(tmp_path)[-2:] == losses(unbroken)[-2:]  # the third epoch's; the second was logged in part
    best, other = (torch.load(f / "runs/run/checkpoints/best.ckpt", weights_only=True) for f in (tmp_path, unbroken))
    assert_same(best["state_dict"], other["state_dict"], "best")


@pytest.mark.parametrize("moment", [0, 4, 5, 6, 7, 12, 13, 19])
def test_a_run_resumed_from_any_checkpoint_ends_the_same(tmp_path, whole, moment):
    # 7 an epoch: one after each step, but for the last, which is validated first
    shutil.copytree(whole / f"moments/{moment:02d}", tmp_path, dirs_exist_ok=True)
    reached = last(tmp_path)["global_step"]
    assert reached == moment + 1
    assert main([*command(tmp_path, every=1), "--ckpt_path", "last"]) == 0
    assert_same_end(tmp_path, whole)
    if reached % 7:  # an epoch's own row is written after its checkpoint
        assert steps(tmp_path) == steps(whole)
    assert losses(tmp_path)[-2:] == losses(whole)[-2:] or reached > 14


def stop_at(monkeypatch, step: int, action) -> None:
    def stop(self, batch, batch_idx):
        if self.global_step == step:
            action()
        return original(self, batch, batch_idx)

    original = LitVAE.training_step
    monkeypatch.setattr(LitVAE, "training_step", stop)


def fail() -> None:
    raise RuntimeError("the cat pulled the plug")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("action", "raised"), [(fail, RuntimeError), (press_ctrl_c, SystemExit)])
def test_an_interrupted_run_is_saved_says_where_and_goes_on(tmp_path, whole, monkeypatch, capsys, action, raised):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            stop_at(patch, 11, action)
            with pytest.raises(raised):
                main(command(tmp_path, every=100))
    finally:
        signal.signal(signal.SIGINT, handler)
    saved = tmp_path / "runs/run/checkpoints/interrupted.ckpt"
    assert f"interrupted: wrote {saved}" in capsys.readouterr().out
    assert last(tmp_path, "interrupted")["global_step"] == 11
    assert last(tmp_path)["global_step"] == 7  # of the epoch's end
    assert main([*command(tmp_path, every=1), "--ckpt_path", str(saved)]) == 0
    assert_same_end(tmp_path, whole)
    assert steps(tmp_path) == steps(whole)
    assert not saved.exists()  # no longer needed


def test_nothing_is_saved_where_nothing_was_trained(tmp_path, monkeypatch):
    stop_at(monkeypatch, 0, fail)
    with pytest.raises(RuntimeError, match="the cat"):
        main(command(tmp_path))
    assert not list((tmp_path / "runs/run").rglob("*.ckpt"))


def test_an_interrupted_validation_saves_the_weights_that_train(tmp_path, whole, monkeypatch):
    def validation_step(self, batch, batch_idx):
        if self.global_step == 14:
            raise RuntimeError("the cat pulled the plug")
        original(self, batch, batch_idx)

    original = LitVAE.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(LitVAE, "validation_step", validation_step)
        with pytest.raises(RuntimeError, match="the cat"):
            main(command(tmp_path, every=100))
    saved = last(tmp_path, "interrupted")
    kept = torch.load(whole / "moments/13/runs/run/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == saved["global_step"] == 14
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_same(saved[key], kept[key], key)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    def full(checkpoint, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def fill_the_disk():
        monkeypatch.setattr(torch, "save", full)

    stop_at(monkeypatch, 9, fill_the_disk)
    assert main(command(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "the one saved before is kept" in error
    assert error.count("\n") == 1
    monkeypatch.undo()
    assert last(tmp_path)["global_step"] == 7
    names = {path.name for path in (tmp_path / "runs/run/checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt"}


def test_a_new_run_never_writes_over_an_old_one(tmp_path, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    before = last(tmp_path)
    assert main(command(tmp_path, "--trainer.max_epochs", "1")) == 0
    assert_same(last(tmp_path), before, "last")
    assert (tmp_path / "runs/run-2/checkpoints/last.ckpt").is_file()


def test_a_configuration_is_its_own_runs(tmp_path, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    before = last(tmp_path)
    assert main(command(tmp_path, "--trainer.max_epochs", "1")) == 0
    again = ["fit", "--config", str(tmp_path / "runs/run-2/config.yaml"), "--ckpt_path", "last"]
    assert main([*again, "--trainer.max_epochs", "2"]) == 0
    assert_same(last(tmp_path), before, "last")
    config = yaml.safe_load((tmp_path / "runs/run-2/config.yaml").read_text())
    assert (config["name"], config["ckpt_path"], config["trainer"]["max_epochs"]) == ("run-2", None, 2)


def test_a_run_that_trains_is_not_trained_by_a_second_process(tmp_path, whole, capsys):
    shutil.copytree(whole / "moments/09/runs", tmp_path / "runs")
    before = last(tmp_path)
    with locked(tmp_path / "runs/run"):
        assert main(command(tmp_path, "--ckpt_path", "last")) == 2
        assert f"process {os.getpid()} on " in (told := capsys.readouterr().err)
        assert f"trains in {tmp_path / 'runs/run'}; wait for it, or stop it" in told
    assert_same(last(tmp_path), before, "last")
    assert main(command(tmp_path, "--ckpt_path", "last")) == 0


@pytest.mark.parametrize("moved", ["renamed", "run"])
def test_the_best_of_a_run_stays_its_best_wherever_its_folder_is(tmp_path, whole, moved, capsys):
    shutil.copytree(whole / "runs/run", tmp_path / "runs" / moved)
    best = tmp_path / "runs" / moved / "checkpoints/best.ckpt"
    before = best.read_bytes()
    worse = ["--name", moved, "--ckpt_path", "last", "--data.flip", "false", "--trainer.limit_train_batches", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitVAE, "evaluate", worsened(LitVAE.evaluate))
        assert main(command(tmp_path, *worse, "--trainer.max_epochs", "4")) == 0
    assert best.read_bytes() == before
    assert "(epoch 3)" in capsys.readouterr().out


def worsened(evaluate):
    """Validation whose losses are all larger by 1,000 nats."""

    def log(self, split, values, num):
        really_log(self, split, {name: value + 1000 for name, value in values.items()}, num)

    really_log = LitVAE._log_means

    def worse(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LitVAE, "_log_means", log)
            evaluate(self, *arguments)

    return worse


def test_a_run_from_anothers_checkpoint_has_a_best_of_its_own(tmp_path, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    other = str(tmp_path / "runs/run/checkpoints/last.ckpt")
    before = (tmp_path / "runs/run/checkpoints/best.ckpt").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitVAE, "evaluate", worsened(LitVAE.evaluate))
        assert main(command(tmp_path, "--name", "fork", "--ckpt_path", other, "--trainer.max_epochs", "4")) == 0
    assert (tmp_path / "runs/run/checkpoints/best.ckpt").read_bytes() == before
    summary = read_summary(tmp_path / "runs/fork")
    best = torch.load(tmp_path / "runs/fork/checkpoints/best.ckpt", weights_only=True)
    assert summary["epoch"] == best["epoch"] + 1 == 4
    assert summary["val_loss"] > 1000


def test_last_is_the_interruption_where_that_is_newer(tmp_path, whole):
    folder = tmp_path / "runs/run/checkpoints"
    shutil.copytree(whole / "moments/09/runs", tmp_path / "runs")
    (folder / "last.ckpt").rename(folder / "interrupted.ckpt")
    (folder / "best.ckpt").unlink()
    assert best_checkpoint(folder.parent) == folder / "interrupted.ckpt"
    assert main(command(tmp_path, "--ckpt_path", "last", every=1)) == 0
    assert_same_end(tmp_path, whole)


def test_a_test_leaves_nothing_to_the_next_training(tmp_path, whole):
    def fit(module):
        pl.seed_everything(3, verbose=False)
        trainer = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(module, ImageDataModule("digits", batch_size=32))
        return module.guard, torch.get_rng_state()

    saved = torch.load(whole / "runs/run/checkpoints/last.ckpt", weights_only=True)
    fresh, tested = (LitVAE(build(saved["resvae"])) for _ in range(2))  # pyright: ignore[reportArgumentType]
    checkpoint = str(whole / "runs/run/checkpoints/last.ckpt")
    trainer = pl.Trainer(logger=False, enable_progress_bar=False)
    trainer.test(tested, ImageDataModule("digits"), ckpt_path=checkpoint, weights_only=True, verbose=False)
    fresh.load_state_dict(tested.state_dict())
    assert_same(fit(tested)[1], fit(fresh)[1], "noise")
    assert tested.guard == fresh.guard


@pytest.mark.slow
def test_two_processes_train_one_run(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    for name in ("run", "run-2"):
        both = [
            sys.executable,
            "-m",
            "resvae",
            *command(tmp_path, "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        ]
        done = subprocess.run(both, env=environment, timeout=120, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"-> {tmp_path / 'runs' / name}\n") == 1  # one of the two tells
        assert len(list((tmp_path / "runs" / name / "samples").iterdir())) == 3
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run", "run-2"}
