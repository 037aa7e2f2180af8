"""What a resume takes over and what it refuses; the record says what the run did."""

from pathlib import Path

import pytest
import yaml
from helpers_runs import CLASSIFIER, checkpoint, command, files, logged, refused

from resvae.cli import main

ADAMW = "--model.optimizer=torch.optim.AdamW --model.optimizer.init_args.lr"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(command(folder, f"{ADAMW} 0.001 --model.schedule.kind constant --model.schedule.warmup_steps 0")) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    import shutil

    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resume(folder: Path, more: str) -> list[str]:
    own = "--model.schedule.kind constant --model.schedule.warmup_steps 0 --trainer.max_epochs 2 --ckpt_path last"
    return command(folder, f"{own} {more}")


def written(folder: Path) -> dict:
    return yaml.safe_load((folder / "runs/run/config.yaml").read_text())


def test_a_resume_trains_with_the_rate_that_its_configuration_names(run, capsys):
    assert main(resume(run, f"{ADAMW} 0.01 --model.optimizer.init_args.weight_decay 0.5")) == 0
    (group,) = checkpoint(run / "runs/run")["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.01, 0.01, 0.5)
    assert logged(run / "runs/run", "lr-AdamW") == [0.001, 0.01]
    assert written(run)["model"]["optimizer"]["init_args"]["lr"] == 0.01
    out = capsys.readouterr().out
    assert "resumed with model.optimizer.init_args.lr 0.01 (before: 0.001)" in out
    assert "resumed with trainer.max_epochs 2 (before: 1)" in out


def test_a_cosine_goes_on_from_the_new_rate(run):
    cosine = "--model.schedule.kind cosine --trainer.max_epochs 4 --trainer.limit_train_batches 2"
    assert main(resume(run, f"{ADAMW} 0.01 {cosine}")) == 0
    rates = logged(run / "runs/run", "lr-AdamW")
    assert rates[0] == 0.001
    assert 0.001 < rates[1] < 0.01
    assert rates[-1] < rates[1]


@pytest.mark.parametrize("patience", [1, 7])
def test_patience_is_that_of_the_configuration(run, patience, capsys):
    more = f"--early_stopping.patience {patience} --early_stopping.min_delta 1e9 --trainer.max_epochs 9"
    assert main(resume(run, f"{ADAMW} 0.001 {more}")) == 0
    epochs = len(logged(run / "runs/run", "val/loss"))
    assert epochs == 1 + patience
    assert f"for {patience} epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (f"{ADAMW} 0.001 --data.seed 1", "data.seed: 1 is not allowed; this run has 0"),
        (f"{ADAMW} 0.001 --data.validation 50", "data.validation: 50 is not allowed; this run has 60"),
        (f"{ADAMW} 0.001 --data.limit 100", "data.limit: 100"),
        (f"{ADAMW} 0.001 --seed_everything 3", "seed_everything: 3 is not allowed; this run has 0"),
        (f"{ADAMW} 0.001 --early_stopping.monitor val/kl", "early_stopping.monitor: val/kl"),
        (f"{ADAMW} 0.001 --model.ema_decay 0", "model.ema_decay: 0"),
        (f"{ADAMW} 0.001 --model.schedule.kind plateau", "model.schedule.kind: plateau"),
    ],
)
def test_what_cannot_change_is_refused_before_anything_is_written(run, more, field, capsys):
    before = {name: (run / name).read_bytes() for name in files(run) if name != "config.yaml"}
    refused(capsys, resume(run, more), field, "Start another run from its checkpoint")
    assert {name: (run / name).read_bytes() for name in files(run) if name != "config.yaml"} == before


@pytest.mark.parametrize("name", ["run", "other"])
def test_no_run_goes_on_with_another_optimisers_state(run, name, capsys):
    sgd = f"--model.optimizer=torch.optim.SGD --model.optimizer.init_args.lr 0.1 --name {name}"
    before = written(run)
    path = run / "runs/run/checkpoints/last.ckpt"
    refused(
        capsys, command(run, f"{sgd} --ckpt_path {path}"), "model.optimizer: SGD cannot go on with the state of AdamW"
    )
    assert written(run) == before
    assert not (run / "runs/other").exists()


def test_another_batch_size_is_taken_over_between_epochs_and_refused_within_one(run, tmp_path, capsys):
    assert main(resume(run, f"{ADAMW} 0.001 --data.batch_size 32")) == 0
    assert checkpoint(run / "runs/run")["global_step"] == 3 + 6
    within = tmp_path / "within"
    assert main(command(within, "--trainer.max_steps 2")) == 0
    refused(capsys, command(within, "--ckpt_path last --data.batch_size 32"), "data.batch_size: 32", "within an epoch")


@pytest.mark.parametrize("limit", ["", "--trainer.max_steps 6"])
@pytest.mark.parametrize(("first", "config"), [(2, CLASSIFIER), (2, None), (3, None), (4, None)])
def test_a_run_that_max_steps_ended_goes_on_there(tmp_path, first, limit, config):
    given = {} if config is None else {"config": config}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = "--model.schedule.kind constant --trainer.max_epochs 2"  # of 3 updates each
    assert main(command(whole, more, **given)) == 0
    assert main(command(broken, f"{more} --trainer.max_steps {first}", **given)) == 0
    assert checkpoint(broken / "runs/run")["global_step"] == first
    assert main(command(broken, f"{more} {limit} --ckpt_path last", **given)) == 0
    here, there = (checkpoint(folder / "runs/run") for folder in (broken, whole))
    assert here["global_step"] == there["global_step"] == 6
    assert here["epoch"] == there["epoch"]
    for name, value in there["state_dict"].items():
        assert value.equal(here["state_dict"][name]), name
    validated = [logged(folder / "runs/run", "val/loss") for folder in (broken, whole)]
    assert validated[0][-1] == validated[1][-1]
    assert len(validated[0]) == 2 + (first % 3 > 0)  # and where a limit ended it within an epoch
