"""Every option of Lightning's Trainer works, or is refused in one line before anything is written."""

import inspect

import pytest
import pytorch_lightning as pl
from helpers_runs import command, files, logged, refused

from resvae.cli import main

CALLBACKS = "pytorch_lightning.callbacks"
SHARDED = 'strategy={"class_path":"pytorch_lightning.strategies.ModelParallelStrategy"}'
# Each option with its value, and what happens: a part of the line that refuses it, or None where it works.
OPTIONS: list[tuple[str, str | None]] = [
    ("accelerator=gpu", "gpu"),
    ("accelerator=tpu", "trainer: "),
    ("accelerator=auto", None),
    ("strategy=nonsense", "trainer: You selected an invalid strategy name"),
    (SHARDED, "trainer.strategy: ModelParallelStrategy is not allowed; auto, a kind of ddp, or fsdp2"),
    ("strategy=auto", None),
    ("devices=0", "devices"),
    ("devices=1", None),
    ("num_nodes=0", "trainer.num_nodes: 0 is not allowed; at least 1"),
    ("precision=bf16-mixed", "trainer.precision: bf16-mixed is not allowed; set model.precision"),
    ("logger=false", "trainer.logger: False is not allowed"),
    ("logger=true", None),
    ("logger=pytorch_lightning.loggers.CSVLogger --trainer.logger.save_dir=more", None),
    (f"callbacks={CALLBACKS}.ModelCheckpoint", None),
    (f"callbacks={CALLBACKS}.TQDMProgressBar", None),
    (f"callbacks={CALLBACKS}.EarlyStopping --trainer.callbacks.monitor=val/kl", None),
    ("fast_dev_run=true", "trainer.fast_dev_run: True is not allowed"),
    ("max_epochs=0", "trainer.max_epochs: 0 is not allowed"),
    ("max_epochs=-2", "max_epochs"),
    ("min_epochs=3", "trainer.min_epochs: 3 is not allowed with max_epochs 1"),
    ("max_steps=0", "trainer.max_steps: 0 is not allowed"),
    ("max_steps=2", None),
    ("min_steps=5 --trainer.max_steps=4", "trainer.min_steps: 5 is not allowed with max_steps 4"),
    ("max_time=00:00:01:00", None),
    ("max_time=nonsense", "duration"),
    ("limit_train_batches=0", "trainer.limit_train_batches: 0 is not allowed"),
    ("limit_train_batches=0.1", "trainer.limit_train_batches: 0.1 of 3 batches is not allowed"),
    ("limit_train_batches=0.5", None),
    ("limit_val_batches=0", "trainer.limit_val_batches: 0 is not allowed"),
    ("limit_val_batches=0.5", "trainer.limit_val_batches: 0.5 of 1 batches is not allowed"),
    ("limit_test_batches=1", None),
    ("limit_predict_batches=1", None),
    ("overfit_batches=0.5", "trainer.overfit_batches: 0.5 of 1 batches is not allowed"),
    ("overfit_batches=1", None),
    ("val_check_interval=0", "trainer.val_check_interval: 0 is not allowed"),
    ("val_check_interval=99", "trainer.val_check_interval: 99 is not allowed with 3 batches an epoch"),
    ("val_check_interval=2", None),
    ("val_check_interval=4 --trainer.check_val_every_n_epoch=null --trainer.max_epochs=2", None),
    ("check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: 0 is not allowed; at least 1"),
    ("check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch: 2 is not allowed with 1 epochs"),
    ("num_sanity_val_steps=1", None),
    ("log_every_n_steps=0", None),
    ("enable_checkpointing=false", "trainer.enable_checkpointing: False is not allowed"),
    ("enable_checkpointing=true", None),
    ("enable_progress_bar=false", None),
    ("enable_progress_bar=true", None),
    ("enable_model_summary=true", None),
    ("accumulate_grad_batches=0", "trainer.accumulate_grad_batches: 0 is not allowed; at least 1"),
    ("accumulate_grad_batches=99", None),
    ("gradient_clip_val=-1", "trainer.gradient_clip_val: -1 is not allowed; at least 0"),
    ("gradient_clip_val=1", None),
    ("gradient_clip_algorithm=nonsense", "gradient_clip_algorithm"),
    ("deterministic=true", None),
    ("benchmark=true", None),
    ("inference_mode=false", None),
    ("use_distributed_sampler=false", None),
    ("profiler=nonsense", "profiler"),
    ("profiler=simple", None),
    ("detect_anomaly=true", None),
    ("barebones=true", "trainer.barebones: True is not allowed"),
    ("plugins=nonsense", "plugins"),
    ("sync_batchnorm=true", None),
    ("reload_dataloaders_every_n_epochs=-1", "reload_dataloaders_every_n_epochs"),
    ("reload_dataloaders_every_n_epochs=1", None),
    ("default_root_dir=elsewhere", None),
    ("enable_autolog_hparams=false", None),
    ("model_registry=x", None),
]


def test_no_option_is_forgotten():
    assert {option.split("=")[0] for option, _ in OPTIONS} == set(inspect.signature(pl.Trainer).parameters)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("option", "line"), OPTIONS)
def test_an_option_works_or_is_refused_in_one_line(tmp_path, monkeypatch, capsys, option, line):
    monkeypatch.chdir(tmp_path)
    arguments = command(tmp_path, f"--trainer.{option}")
    if line is not None:
        before = files(tmp_path)
        refused(capsys, arguments, line)
        assert files(tmp_path) == before
        return
    assert main(arguments) == 0
    assert {"metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= files(tmp_path / "runs/run")
    if option.startswith("logger=pytorch"):
        assert any(name.startswith("more/") for name in files(tmp_path))
    if option.endswith("ModelCheckpoint"):
        assert any("epoch=" in name for name in files(tmp_path))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--seed_everything=4294967296", "seed_everything: 4294967296 is not allowed; 0 to 4294967295"),
        ("--seed_everything=-1", "seed_everything: -1 is not allowed"),
    ],
)
def test_seeds_out_of_range_are_refused(tmp_path, capsys, options, line):
    refused(capsys, command(tmp_path, options), line)
    assert files(tmp_path) == {"config.yaml"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rhythm", ["check_val_every_n_epoch 2", "val_check_interval 2"])
def test_a_plateau_watches_whatever_the_rhythm_of_validation(tmp_path, rhythm):
    plateau = "--model.schedule.kind plateau --model.schedule.warmup_steps 0 --model.schedule.patience 0"
    assert main(command(tmp_path, f"{plateau} --trainer.max_epochs 4 --trainer.{rhythm}")) == 0
    assert len(logged(tmp_path / "runs/run", "val/loss")) >= 2
