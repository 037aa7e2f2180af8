"""One training step of a classifier: its loss, what it logs, and the data that it refuses."""

import math
from copy import deepcopy
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from helpers_runs import assert_same, train

from resvae.data import ImageDataModule
from resvae.errors import ResvaeError
from resvae.models import VAE, ResNetClassifier
from resvae.training.classifier import LitClassifier
from resvae.training.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers.*")


def tiny(num_classes: int = 10, **options) -> LitClassifier:
    torch.manual_seed(0)
    classifier = ResNetClassifier(depth=8, num_classes=num_classes, image_shape=(1, 8, 8))
    return LitClassifier(classifier, **{"precision": "fp32", "schedule": Schedule("constant", 0), **options})


def digits() -> ImageDataModule:
    return ImageDataModule("digits", batch_size=64, validation=50, limit=256)


def fit(model: LitClassifier, epochs: int) -> pl.Trainer:
    return train(model, digits(), max_epochs=epochs)


def test_smoothing_counts_in_training_and_what_is_logged_is_without_it():
    model, logged = tiny(label_smoothing=0.2).eval(), {}
    model.log_dict = lambda figures, **_: logged.update(figures)
    x, y = digits().images("train")[:40], digits().labels("train")[:40]
    loss = model.training_step((x, y), 0)
    model.validation_step((x, y), 0)
    model.test_step((x, y), 0)
    for split in ("train", "val", "test"):
        model.means.log(model, split)
    logs = model.classifier(x).log_softmax(1)
    plain, even = -logs[range(40), y].mean(), -logs.mean()
    torch.testing.assert_close(loss, 0.8 * plain + 0.2 * even)
    wrong = sum(int(row.argmax()) != int(label) for row, label in zip(logs, y, strict=True))
    for split in ("train", "val", "test"):
        torch.testing.assert_close(logged[f"{split}/loss"], plain)
        assert logged[f"{split}/error"] == pytest.approx(wrong / 40)
    assert not logged["train/loss"].requires_grad


def test_a_few_updates_learn_and_the_average_is_what_is_validated():
    model = tiny(ema_decay=0.8)
    trainer = fit(model, 6)
    assert trainer.global_step == 24
    figures = trainer.callback_metrics
    assert figures["train/loss"] < 0.6 * math.log(10)
    assert figures["val/loss"] < 0.8 * math.log(10)
    assert figures["val/error"] < 0.5
    x, y = digits().images("val"), digits().labels("val")
    logits = model.classifier.eval()(x)  # the module holds the average after training, its running statistics too
    torch.testing.assert_close(F.cross_entropy(logits, y), figures["val/loss"])
    assert set(model.monitored()) <= set(figures)


def test_a_compiled_model_has_the_same_weights_by_the_same_names(monkeypatch):
    plain, compiled = tiny(), tiny(compile=True)
    monkeypatch.setattr(torch, "compile", compiler := Mock(wraps=torch.compile))
    with torch.compiler.set_stance("force_eager"):  # the graph is not needed to see what is registered
        fit(plain, 1)
        assert not compiler.called
        fit(compiled, 1)
        assert compiler.called
    assert_same({**compiled.state_dict()}, {**plain.state_dict()})


def test_bf16_is_for_training_and_validation_only():
    model, dtypes = tiny(precision="bf16"), []
    model.classifier.classifier.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    model.log_dict = lambda *_, **__: None
    batch = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    assert model.training_step(batch, 0).dtype == torch.float32
    model.validation_step(batch, 0)
    model.test_step(batch, 0)
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_a_vaes_encoder_is_trained_but_its_checkpoint_does_not_claim_to_tell_the_model():
    vae = VAE(depth=(1, 1), latent_dim=4, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2))
    before = vae.encoder.state_dict()["stem.0.weight"].clone()
    model = LitClassifier(ResNetClassifier(encoder=vae.encoder), ema_decay=0)
    fit(model, 1)
    assert not torch.equal(vae.encoder.state_dict()["stem.0.weight"], before)
    checkpoint: dict = {}
    model.on_save_checkpoint(checkpoint)
    assert "resvae" not in checkpoint
    checkpoint = {}
    tiny().on_save_checkpoint(checkpoint)
    assert checkpoint["resvae"]["model"] == "ResNetClassifier"


def test_a_checkpoint_from_before_an_argument_was_added_is_this_model_where_its_default_is():
    lit, checkpoint = tiny(), {}
    lit.on_save_checkpoint(checkpoint)
    checkpoint = deepcopy(checkpoint)
    block = checkpoint["resvae"]["arguments"]["block"]
    del block["gate_bias"]
    lit.refuse_other(checkpoint)
    block["order"] = "full_pre"
    with pytest.raises(ResvaeError, match=r"checkpoint: it holds .*full_pre"):
        lit.refuse_other(checkpoint)


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 1.0), ("label_smoothing", -0.1), ("ema_decay", 1.0)])
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ResvaeError, match=f"{name}: {value}"):
        tiny(**{name: value})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image_shape": (3, 8, 8), "num_classes": 10}, r"model\.classifier\.image_shape: \(1, 8, 8\).*\(3, 8, 8\)"),
        ({"num_classes": 11}, r"model\.classifier\.num_classes: 10 is not allowed; the labels are 0 to 10"),
        ({"num_classes": 1}, r"data\.name: the images of pictures are not labelled"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(ResvaeError, match=message):
        tiny().refuse_data(SimpleNamespace(name="pictures", **{"image_shape": (1, 8, 8), **data}))
    tiny().refuse_data(SimpleNamespace(name="pictures", image_shape=(1, 8, 8), num_classes=9))


def test_he_divides_his_rate_by_ten_twice():
    factor = Schedule("steps", warmup_steps=2, milestones=(320, 480), factor=0.1).at(640)
    assert [factor(step) for step in (0, 2, 319, 320, 479, 480, 640)] == pytest.approx(
        [1 / 3, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )
