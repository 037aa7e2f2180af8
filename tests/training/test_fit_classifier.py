"""``resvae fit`` of a classifier: chosen by ``model.classifier``, resumed bit for bit, loaded again."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers_runs import (
    CLASSIFIER,
    CONFIGS,
    assert_same,
    checkpoint,
    command,
    files,
    logged,
    names,
    printed,
    read,
    refused,
    stop,
)
from PIL import Image

import resvae
from resvae.cli import main

# 7 batches an epoch, the last one smaller
OPTIONS = """
    --data.batch_size 32 --data.limit 200 --data.crop_padding 1 --trainer.max_epochs 3 --model.label_smoothing 0.05
    --model.ema_decay 0.8 --model.schedule.warmup_steps 3 --model.optimizer torch.optim.AdamW --model.optimizer.lr 0.01
"""


def fit(folder: Path, more: str = "") -> list[str]:
    return command(folder, f"{OPTIONS} {more}", CLASSIFIER)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("classifier")
    assert main(fit(folder)) == 0
    return folder / "runs/run"


def test_a_run_learns_and_holds_what_it_should(run):
    figures, errors = read(run / "summary.json"), logged(run, "val/error")
    kept = {"config.yaml", "metrics.csv", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files(run) == kept
    assert figures["model"] == "ResNetClassifier"
    assert max(figures["train_loss"], figures["val_loss"]) < 0.75 * math.log(10)
    assert len(errors) == 3
    assert figures["error"] == pytest.approx(min(errors))
    assert figures["epoch"] == 1 + errors.index(min(errors)) == 1 + checkpoint(run, "best")["epoch"]
    assert names(run) >= {"train/error", "train/grad_norm", "train/images_per_second", "seconds", "lr-AdamW"}


@pytest.mark.parametrize("steps", [5, 7, 10])
def test_a_run_that_a_number_of_updates_ends_within_an_epoch_is_validated(tmp_path, capsys, steps):
    assert main(fit(tmp_path, f"--trainer.max_steps {steps} --trainer.max_epochs -1")) == 0
    figures = read(tmp_path / "runs/run/summary.json")
    assert (figures["steps"], figures["ended"]) == (steps, f"all {steps} updates done")
    assert figures["val_loss"] > 0
    assert checkpoint(tmp_path / "runs/run", "best")["global_step"] in (steps, 7)
    assert capsys.readouterr().out.count("epoch ") - 1 == (1 if steps <= 7 else 2)


def test_the_best_checkpoint_is_loaded_as_it_was_validated_and_saved(run, tmp_path):
    classifier = resvae.load(run)
    assert type(classifier) is resvae.ResNetClassifier
    assert not classifier.training
    data = resvae.ImageDataModule("digits", validation=60)
    with torch.no_grad():
        logits = classifier(data.images("val"))
    figures, y = read(run / "summary.json"), data.labels("val")
    assert (logits.argmax(1) != y).float().mean().item() == pytest.approx(figures["error"])
    assert F.cross_entropy(logits, y).item() == pytest.approx(figures["val_loss"], rel=1e-4)
    twin = resvae.load(resvae.save(classifier, tmp_path / "saved"))
    assert_same({**classifier.state_dict()}, {**twin.state_dict()})


def test_validate_and_test_print_loss_and_error(run, capsys):
    assert printed(capsys, "validate", run)["error"] == pytest.approx(read(run / "summary.json")["error"], abs=1e-4)
    figures = printed(capsys, "test", run)
    assert 0 < figures["error"] < 0.6
    assert figures.keys() == {"loss", "error"}


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(run, tmp_path, capsys):
    with pytest.raises(RuntimeError, match="the cat"):
        main([*fit(tmp_path), *stop(11)])
    other = tmp_path / "runs/run"
    assert checkpoint(other, "interrupted")["global_step"] == 11  # in the middle of the second epoch
    assert main(fit(tmp_path, f"--ckpt_path {other}/checkpoints/interrupted.ckpt")) == 0
    for key in ("global_step", "state_dict", "current_model_state", "guard"):  # the average, and what trains
        assert_same(checkpoint(other)[key], checkpoint(run)[key], key)
    assert read(other / "summary.json")["val_loss"] == read(run / "summary.json")["val_loss"]
    out = capsys.readouterr().out
    assert "epoch    3 | train " in out
    assert f"error {read(run / 'summary.json')['error']:.2%} (epoch " in out


@pytest.fixture
def there(run, monkeypatch) -> None:
    """The folder of the run, as the present one, with files to go wrong with."""
    monkeypatch.chdir(run.parents[1])
    Path("plain").mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(f"plain/{i:02d}.png")
    np.savez("twelve.npz", images=np.zeros((120, 8, 8), np.uint8), labels=np.arange(120) % 12)


FIT = "fit --config config.yaml --runs new"
BAD = {
    f"{FIT} --data.name folder --data.path plain --data.validation 5": ["not labelled"],
    f"{FIT} --model.classifier.num_classes 9": ["num_classes: 9", "0 to 9"],
    f"{FIT} --model.classifier.image_shape [3,8,8]": ["classifier.image_shape", "(1, 8, 8)"],
    "fit --runs new --model.classifier.depth 9": ["depth: 9", "8 and 11"],
    f"{FIT} --early_stopping.monitor val/elbo": ["val/elbo is not logged", "val/error, val/loss"],
    f"{FIT} --model.vae.depth 28": ["model.vae"],
    "test runs/run --data.name npz --data.path twelve.npz": ["num_classes: 10", "0 to 11"],
    "sample runs/run": ["a ResNetClassifier, not a VAE"],
}


@pytest.mark.parametrize(("arguments", "parts"), BAD.items(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_written(there, capsys, arguments, parts):
    refused(capsys, arguments.split(), *parts)
    assert not Path("new").exists()


def test_the_environment_chooses_a_classifier_too(there, monkeypatch, capsys):
    monkeypatch.setenv("RESVAE_FIT__MODEL__CLASSIFIER__DEPTH", "9")
    refused(capsys, ["fit", "--runs", "new"], "depth: 9")
    assert not Path("new").exists()


def test_help_is_the_classifiers_where_the_configuration_is(there, capsys):
    assert main(f"{FIT} --help model".split()) == 0
    text = capsys.readouterr().out
    assert "--model.label_smoothing" in text
    assert "--model.kl" not in text


@pytest.mark.parametrize("name", ["cifar10_classifier", "he_resnet20"])
def test_the_configurations_train(name, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (60, 32, 32, 3), np.uint8), labels=np.arange(60) % 10)
    small = f"--data.name npz --data.path {tmp_path}/x.npz --data.validation 10 --data.batch_size 16 --data.limit 32"
    more = "--trainer.max_epochs 1 --trainer.accelerator cpu --tracker none --model.compile false"
    assert main(f"fit --config {CONFIGS / name}.yaml --runs {tmp_path} {small} {more}".split()) == 0
    written = read(tmp_path / name / "summary.json")
    assert (written["steps"], written["arguments"]["depth"]) == (2, 20)
    kept = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
    assert kept["data"]["crop_padding"] == 4
    assert kept["data"]["flip"]
