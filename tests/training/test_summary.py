"""The best figures of a summary are those of best.ckpt, whatever the rhythm of the validation."""

import pytest
from helpers_runs import CLASSIFIER, checkpoint, command, printed

from resvae.cli import main
from resvae.runs.folder import read_summary

DIVERGES = """--data.batch_size 32 --model.optimizer=torch.optim.AdamW --model.optimizer.init_args.lr 0.3
    --model.schedule.kind constant --model.schedule.warmup_steps 0 --model.ema_decay 0 --trainer.max_epochs 3"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "rhythm",
    [
        "--trainer.val_check_interval 2",
        "--trainer.val_check_interval 4 --trainer.check_val_every_n_epoch null",
        "--trainer.check_val_every_n_epoch 2",
        "--trainer.num_sanity_val_steps 1",
        "--early_stopping.monitor val/kl",
        "--early_stopping.monitor val/elbo --early_stopping.mode max",
    ],
)
def test_the_best_of_the_summary_is_the_best_checkpoint(tmp_path, capsys, rhythm):
    assert main(command(tmp_path, f"{DIVERGES} {rhythm}")) == 0
    run = tmp_path / "runs/run"
    summary, best = read_summary(run), checkpoint(run, "best")
    figures = printed(capsys, "validate", run)
    assert figures["loss"] == pytest.approx(summary["val_loss"], abs=1e-3)
    assert figures["kl"] == pytest.approx(summary["kl"], abs=1e-3)
    assert (summary["step"], summary["epoch"]) == (best["global_step"], best["epoch"] + 1)
    assert "monitored" not in summary


def test_of_a_classifier_too(tmp_path, capsys):
    rhythm = "--data.batch_size 32 --trainer.max_epochs 3 --trainer.val_check_interval 2"
    assert main(command(tmp_path, rhythm, config=CLASSIFIER)) == 0
    run = tmp_path / "runs/run"
    figures, summary = printed(capsys, "validate", run), read_summary(run)
    assert figures["error"] == pytest.approx(summary["error"], abs=1e-3)
    assert figures["loss"] == pytest.approx(summary["val_loss"], abs=1e-3)


def test_an_epochs_line_has_no_figures_of_an_earlier_validation(tmp_path, capsys):
    assert main(command(tmp_path, "--trainer.max_epochs 4 --trainer.check_val_every_n_epoch 2")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["val" in line for line in lines] == [False, True, False, True]


def test_the_end_has_its_own_reason(tmp_path, capsys):
    assert main(command(tmp_path, "--trainer.max_epochs 10000 --trainer.max_time 00:00:00:01")) == 0
    assert "ended: the time of max_time is over" in capsys.readouterr().out
