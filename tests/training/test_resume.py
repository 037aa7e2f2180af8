"""A run that was killed or interrupted goes on as if nothing had happened, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers_runs import (
    ENVIRONMENT,
    assert_same,
    checkpoint,
    files,
    logged,
    refused,
    rows,
    stop,
    train,
)
from helpers_runs import command as plain_command

from resvae import VAE, ImageDataModule
from resvae.cli import main
from resvae.runs.folder import best_checkpoint, read_summary
from resvae.runs.lock import locked
from resvae.storage import build
from resvae.training.checkpoints import AtomicCheckpointIO, StepCheckpoint
from resvae.training.module import LitVAE

# 7 batches an epoch, the last one smaller
OPTIONS = """
    --data.batch_size 32 --data.limit 200 --data.flip true --data.crop_padding 1 --trainer.max_epochs 3
    --model.ema_decay 0.9 --model.kl.warmup_steps 12 --model.schedule.warmup_steps 3 --images.every_n_epochs 1
"""
COMPARED = (
    *("state_dict", "current_model_state", "averaging_state"),  # the first is the average
    *("optimizer_states", "lr_schedulers", "guard", "rng", "epoch", "global_step"),
)


def command(folder: Path, more: str = "", every: int = 5) -> list[str]:
    return plain_command(folder, f"{OPTIONS} --save_every_n_steps {every} {more}")


def last(folder: Path, name: str = "last") -> dict:
    return checkpoint(folder / "runs/run", name)


def steps(folder: Path) -> list[tuple[str, ...]]:
    """What each row of the metrics is: its step, and which figures it holds."""
    kept = rows(folder / "runs/run/metrics.csv")
    return [(row["step"], *(name for name, value in sorted(row.items()) if value)) for row in kept]


def losses(folder: Path) -> list[float]:
    """Of the last epoch."""
    return [logged(folder / "runs/run", name)[-1] for name in ("val/loss", "train/loss")]


def assert_same_end(folder: Path, whole: Path) -> None:
    here, there = ({key: last(where)[key] for key in COMPARED} for where in (folder, whole))
    assert_same(here, there)


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


def test_a_run_killed_mid_epoch_ends_as_one_never_broken(tmp_path):
    def start(folder: Path, *more: str) -> int:
        arguments = [sys.executable, "-m", "resvae", *command(folder), *stop(13, how="kill"), *more]
        return subprocess.run(arguments, env=ENVIRONMENT, timeout=120).returncode

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    subprocess.run([sys.executable, "-m", "resvae", *command(unbroken)], check=True, env=ENVIRONMENT, timeout=120)
    assert start(broken) == -signal.SIGKILL
    assert last(broken)["global_step"] == 10  # 3 batches into the second epoch
    assert start(broken, "--ckpt_path", "last") == 0
    assert last(broken)["global_step"] == 21
    assert_same_end(broken, unbroken)
    assert steps(broken) == steps(unbroken)
    assert losses(broken) == losses(unbroken)  # the second epoch's were logged in part
    assert_same(last(broken, "best")["state_dict"], last(unbroken, "best")["state_dict"], "best")


@pytest.mark.parametrize("moment", [0, 4, 5, 6, 7, 12, 13, 19])
def test_a_run_resumed_from_any_checkpoint_ends_the_same(tmp_path, whole, moment):
    # 7 an epoch: one after each step, but for the last, which is validated first
    shutil.copytree(whole / f"moments/{moment:02d}", tmp_path, dirs_exist_ok=True)
    reached = last(tmp_path)["global_step"]
    assert reached == moment + 1
    assert main(command(tmp_path, "--ckpt_path last", every=1)) == 0
    assert_same_end(tmp_path, whole)
    if reached % 7:  # an epoch's own row is written after its checkpoint
        assert steps(tmp_path) == steps(whole)
    assert losses(tmp_path) == losses(whole) or reached > 14


@pytest.mark.parametrize(("how", "raised"), [("error", RuntimeError), ("Ctrl-C", SystemExit)])
def test_an_interrupted_run_is_saved_says_where_and_goes_on(tmp_path, whole, capsys, how, raised):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(raised):
            main([*command(tmp_path, every=100), *stop(11, how=how)])
    finally:
        signal.signal(signal.SIGINT, handler)
    saved = tmp_path / "runs/run/checkpoints/interrupted.ckpt"
    assert f"interrupted: wrote {saved}" in capsys.readouterr().out
    assert last(tmp_path, "interrupted")["global_step"] == 11
    assert last(tmp_path)["global_step"] == 7  # of the epoch's end
    assert main(command(tmp_path, f"--ckpt_path {saved}", every=1)) == 0
    assert_same_end(tmp_path, whole)
    assert steps(tmp_path) == steps(whole)
    assert not saved.exists()  # no longer needed


def test_a_run_that_is_told_to_end_is_saved_and_is_no_success(tmp_path, whole):
    arguments = [sys.executable, "-m", "resvae", *command(tmp_path, every=100), *stop(11, how="SIGTERM")]
    process = subprocess.run(arguments, env=ENVIRONMENT, timeout=120, capture_output=True, text=True)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted: wrote" in process.stdout
    assert "ended:" not in process.stdout
    assert main(command(tmp_path, "--ckpt_path last", every=1)) == 0
    assert_same_end(tmp_path, whole)


def test_nothing_is_saved_where_nothing_was_trained(tmp_path):
    with pytest.raises(RuntimeError, match="the cat"):
        main([*command(tmp_path), *stop(0)])
    assert not list((tmp_path / "runs/run").rglob("*.ckpt"))


def test_an_interrupted_validation_saves_the_weights_that_train(tmp_path, whole):
    with pytest.raises(RuntimeError, match="the cat"):
        main([*command(tmp_path, every=100), *stop(14, hook="on_validation_batch_start")])
    saved, kept = last(tmp_path, "interrupted"), last(whole / "moments/13")
    assert kept["global_step"] == saved["global_step"] == 14
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_same(saved[key], kept[key], key)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    def full(checkpoint, path):
        if checkpoint["global_step"] < 10:
            return save(checkpoint, path)
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        refused(capsys, command(tmp_path), "No space left on device", "the one saved before is kept")
    assert last(tmp_path)["global_step"] == 7
    assert files(tmp_path / "runs/run/checkpoints") == {"best.ckpt", "last.ckpt"}


def test_a_new_run_never_writes_over_an_old_one_and_its_configuration_is_its_own(tmp_path, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    before = last(tmp_path)
    assert main(command(tmp_path, "--trainer.max_epochs 1")) == 0
    again = f"fit --config {tmp_path}/runs/run-2/config.yaml --ckpt_path last --trainer.max_epochs 2"
    assert main(again.split()) == 0
    assert_same(last(tmp_path), before)
    assert checkpoint(tmp_path / "runs/run-2")["epoch"] == 1
    config = yaml.safe_load((tmp_path / "runs/run-2/config.yaml").read_text())
    assert (config["name"], config["ckpt_path"], config["trainer"]["max_epochs"]) == ("run-2", None, 2)


def test_a_run_that_trains_is_not_trained_by_a_second_process(tmp_path, whole, capsys):
    shutil.copytree(whole / "moments/09/runs", tmp_path / "runs")
    before, run = last(tmp_path), tmp_path / "runs/run"
    with locked(run):
        told = f"process {os.getpid()} on ", f"trains in {run}; wait for it, or stop it"
        refused(capsys, command(tmp_path, "--ckpt_path last"), *told)
    assert_same(last(tmp_path), before)
    assert main(command(tmp_path, "--ckpt_path last")) == 0


@pytest.fixture
def noise(tmp_path) -> str:
    """Options that resume with images of noise, which a model of digits finds very unlikely."""
    np.savez(tmp_path / "noise.npz", images=np.random.default_rng(0).integers(0, 256, (300, 8, 8), np.uint8))
    return f"--data.name npz --data.path {tmp_path}/noise.npz --trainer.max_epochs 4"


@pytest.mark.parametrize("moved", ["renamed", "run"])
def test_the_best_of_a_run_stays_its_best_wherever_its_folder_is(tmp_path, whole, moved, capsys):
    shutil.copytree(whole / "runs/run", tmp_path / "runs" / moved)
    best = tmp_path / "runs" / moved / "checkpoints/best.ckpt"
    before = best.read_bytes()
    worse = "--model.optimizer=torch.optim.AdamW --model.optimizer.init_args.lr 3 --model.schedule.kind constant"
    assert main(command(tmp_path, f"--name {moved} --ckpt_path last --trainer.max_epochs 4 {worse}")) == 0
    assert best.read_bytes() == before
    assert "(epoch 3)" in capsys.readouterr().out


def test_a_run_from_anothers_checkpoint_has_a_best_of_its_own(tmp_path, whole, noise):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    run, fork = tmp_path / "runs/run", tmp_path / "runs/fork"
    before = (run / "checkpoints/best.ckpt").read_bytes()
    assert main(command(tmp_path, f"--name fork --ckpt_path {run}/checkpoints/last.ckpt {noise}")) == 0
    assert (run / "checkpoints/best.ckpt").read_bytes() == before
    assert read_summary(fork)["epoch"] == checkpoint(fork, "best")["epoch"] + 1 == 4
    assert read_summary(fork)["val_loss"] > read_summary(run)["val_loss"]


def test_last_is_the_interruption_where_that_is_newer(tmp_path, whole):
    folder = tmp_path / "runs/run/checkpoints"
    shutil.copytree(whole / "moments/09/runs", tmp_path / "runs")
    shutil.copy(whole / "runs/run/metrics.csv", folder.parent)  # its later rows will be written again
    (folder / "last.ckpt").rename(folder / "interrupted.ckpt")
    (folder / "best.ckpt").unlink()
    assert best_checkpoint(folder.parent) == folder / "interrupted.ckpt"
    assert main(command(tmp_path, "--ckpt_path last", every=1)) == 0
    assert_same_end(tmp_path, whole)
    assert steps(tmp_path) == steps(whole)


def test_a_test_leaves_nothing_to_the_next_training(tmp_path, whole):
    def fit(module):
        pl.seed_everything(3, verbose=False)
        train(module, ImageDataModule("digits", batch_size=32), max_steps=1)
        return module.guard.state(), torch.get_rng_state()

    fresh, tested = (LitVAE(build(last(whole)["resvae"])) for _ in range(2))  # pyright: ignore[reportArgumentType]
    path = str(whole / "runs/run/checkpoints/last.ckpt")
    trainer = pl.Trainer(logger=False, enable_progress_bar=False)
    trainer.test(tested, ImageDataModule("digits"), ckpt_path=path, weights_only=True, verbose=False)
    fresh.load_state_dict(tested.state_dict())
    assert_same(fit(tested)[1], fit(fresh)[1], "noise")
    assert tested.guard.state() == fresh.guard.state()


def test_a_checkpoint_within_an_epoch_is_not_written_between_batches_of_one_update(tmp_path):
    processed = set()

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_, **__):
            if (path := tmp_path / "last.ckpt").is_file():
                loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
                processed.add(loops["epoch_loop.batch_progress"]["current"]["processed"])

    vae = VAE(depth=(1, 1), latent_dim=4, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2))
    saves = StepCheckpoint(tmp_path, "last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)
    data = ImageDataModule("digits", batch_size=32, validation=50, limit=192)
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "enable_checkpointing": True}
    train(LitVAE(vae, compile=False), data, saves, Watch(), **options)
    assert processed == {2, 4}
