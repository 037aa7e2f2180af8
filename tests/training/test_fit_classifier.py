"""``resvae fit`` of a classifier: chosen by ``model.classifier``, resumed bit for bit, loaded again."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import resvae
from resvae.cli import main
from resvae.training.classifier import LitClassifier

CONFIGS = Path(__file__).parent.parent.parent / "configs"
# 7 batches an epoch, the last one smaller
CONFIG = """
name: run
seed_everything: 0
data: {name: digits, batch_size: 32, validation: 60, limit: 200, crop_padding: 1}
model:
  classifier: {depth: 8, image_shape: [1, 8, 8]}
  label_smoothing: 0.05
  ema_decay: 0.8
  schedule: {kind: cosine, warmup_steps: 3}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
  precision: fp32
trainer: {max_epochs: 3, accelerator: cpu}
tracker: none
"""


def command(folder: Path, *more: str) -> list[str]:
    (folder / "config.yaml").write_text(CONFIG)
    return ["fit", "--config", str(folder / "config.yaml"), "--runs", str(folder / "runs"), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("classifier")
    assert main(command(folder)) == 0
    return folder


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs/run/summary.json").read_text())


def test_a_run_learns_and_holds_what_it_should(folder):
    run, figures = folder / "runs/run", summary(folder)
    kept = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert kept == {"config.yaml", "metrics.csv", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert figures["model"] == "ResNetClassifier"
    assert figures["train_loss"] < 0.75 * math.log(10)
    assert figures["val_loss"] < 0.75 * math.log(10)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = [float(row["val/error"]) for row in rows if row["val/error"]]
    assert len(errors) == 3
    assert figures["error"] == pytest.approx(min(errors))
    assert figures["epoch"] == 1 + errors.index(min(errors))
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == figures["epoch"] - 1
    logged = {name for row in rows for name, value in row.items() if value}
    assert logged >= {"train/error", "train/grad_norm", "train/images_per_second", "seconds", "lr-AdamW"}


@pytest.mark.parametrize("steps", [5, 7, 10])
def test_a_run_that_a_number_of_updates_ends_within_an_epoch_is_validated(tmp_path, capsys, steps):
    assert main(command(tmp_path, "--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1")) == 0
    figures = summary(tmp_path)
    assert (figures["steps"], figures["ended"]) == (steps, f"all {steps} updates done")
    best = torch.load(tmp_path / "runs/run/checkpoints/best.ckpt", weights_only=True)
    assert figures["val_loss"] > 0
    assert best["global_step"] in (steps, 7)
    assert capsys.readouterr().out.count("epoch ") - 1 == (1 if steps <= 7 else 2)


def test_the_best_checkpoint_is_loaded_as_it_was_validated_and_saved(folder, tmp_path):
    classifier = resvae.load(folder / "runs/run")
    assert type(classifier) is resvae.ResNetClassifier
    assert not classifier.training
    data = resvae.ImageDataModule("digits", validation=60)
    with torch.no_grad():
        logits = classifier(data.images("val"))
    figures, y = summary(folder), data.labels("val")
    assert (logits.argmax(1) != y).float().mean().item() == pytest.approx(figures["error"])
    assert F.cross_entropy(logits, y).item() == pytest.approx(figures["val_loss"], rel=1e-4)
    twin = resvae.load(resvae.save(classifier, tmp_path / "saved"))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in classifier.state_dict().items())


def test_validate_and_test_print_loss_and_error(folder, capsys):
    figures = {}
    for verb, split in (("validate", "val"), ("test", "test")):
        assert main([verb, str(folder / "runs/run"), "--trainer.enable_progress_bar", "false"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{split}: "))
        figures[split] = json.loads(line.removeprefix(f"{split}: "))
    assert figures["val"]["error"] == pytest.approx(summary(folder)["error"], abs=1e-4)
    assert 0 < figures["test"]["error"] < 0.6
    assert figures["test"].keys() == {"loss", "error"}


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(folder, tmp_path, monkeypatch, capsys):
    def stop(self, batch, batch_idx):
        if self.global_step == 11:
            raise RuntimeError("the cat pulled the plug")
        return original(self, batch, batch_idx)

    original = LitClassifier.training_step
    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "training_step", stop)
        with pytest.raises(RuntimeError, match="the cat"):
            main(command(tmp_path))
    saved = tmp_path / "runs/run/checkpoints/interrupted.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 11  # in the middle of the second epoch
    assert main(command(tmp_path, "--ckpt_path", str(saved))) == 0
    here, there = (torch.load(f / "runs/run/checkpoints/last.ckpt", weights_only=True) for f in (tmp_path, folder))
    assert here["global_step"] == there["global_step"] == 21
    for key in ("state_dict", "current_model_state"):  # the average, and what trains
        assert here[key].keys() == there[key].keys()
        assert all(torch.equal(value, there[key][name]) for name, value in here[key].items()), key
    assert here["guard"] == there["guard"]
    assert summary(tmp_path)["val_loss"] == summary(folder)["val_loss"]
    out = capsys.readouterr().out
    assert "epoch    3 | train " in out
    assert f"error {summary(folder)['error']:.2%} (epoch " in out


@pytest.fixture
def there(folder, monkeypatch) -> Path:
    """The folder of the run, as the present one, with files to go wrong with."""
    monkeypatch.chdir(folder)
    (folder / "plain").mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"plain/{i:02d}.png")
    return folder


FIT = ["fit", "--config", "config.yaml", "--runs", "new"]
BAD = {
    "no labels": ([*FIT, "--data.name", "folder", "--data.path", "plain", "--data.validation", "5"], ["not labelled"]),
    "too few classes": ([*FIT, "--model.classifier.num_classes", "9"], ["num_classes: 9", "0 to 9"]),
    "channels": ([*FIT, "--model.classifier.image_shape", "[3, 8, 8]"], ["classifier.image_shape", "(1, 8, 8)"]),
    "depth": (["fit", "--runs", "new", "--model.classifier.depth", "9"], ["depth: 9", "8 and 11"]),
    "monitor": ([*FIT, "--early_stopping.monitor", "val/elbo"], ["val/elbo is not logged", "val/error, val/loss"]),
    "two models": ([*FIT, "--model.vae.depth", "28"], ["model.vae"]),
    "other labels to test on": (
        ["test", "runs/run", "--data.name", "npz", "--data.path", "twelve.npz"],
        ["num_classes: 10", "0 to 11"],
    ),
    "a classifier to sample": (["sample", "runs/run"], ["a ResNetClassifier, not a VAE"]),
}


@pytest.mark.parametrize(("arguments", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_nothing_is_written(there, capsys, arguments, told):
    np.savez("twelve.npz", images=np.zeros((120, 8, 8), np.uint8), labels=np.arange(120) % 12)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("resvae: error: ")
    assert error.count("\n") == 1
    for part in told:
        assert part in error
    assert not Path("new").exists()


def test_the_environment_chooses_a_classifier_too(there, monkeypatch, capsys):
    monkeypatch.setenv("RESVAE_FIT__MODEL__CLASSIFIER__DEPTH", "9")
    assert main(["fit", "--runs", "new"]) == 2
    assert "depth: 9" in capsys.readouterr().err


def test_help_is_the_classifiers_where_the_configuration_is(there, capsys):
    assert main([*FIT, "--help", "model"]) == 0
    text = capsys.readouterr().out
    assert "--model.label_smoothing" in text
    assert "--model.kl" not in text


@pytest.mark.parametrize("name", ["cifar10_classifier", "he_resnet20"])
def test_the_configurations_train(name, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (60, 32, 32, 3), np.uint8), labels=np.arange(60) % 10)
    small = ["--data.name", "npz", "--data.path", str(tmp_path / "x.npz"), "--data.validation", "10"]
    small += [
        "--data.batch_size",
        "16",
        "--data.limit",
        "32",
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    where = ["--runs", str(tmp_path), "--tracker", "none", "--model.compile", "false"]
    assert main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *small, *where]) == 0
    written = json.loads((tmp_path / name / "summary.json").read_text())
    assert written["steps"] == 2
    assert written["arguments"]["depth"] == 20
    kept = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
    assert kept["data"]["crop_padding"] == 4
    assert kept["data"]["flip"]
