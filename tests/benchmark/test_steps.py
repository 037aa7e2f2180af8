"""A step is the configuration's own, changes no weight, and is the sum of its parts."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resvae.benchmark.beside import loaders, of_lightning, pythae
from resvae.benchmark.operations import KINDS, REST, by_kind
from resvae.benchmark.steps import Training
from resvae.errors import ResvaeError
from resvae.training import muon
from resvae.training.configuration import parse

CPU = torch.device("cpu")
QUICK = ["--config", str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")]


@pytest.fixture
def training() -> Training:
    return Training(parse([*QUICK, "--data.batch_size", "8"])[0], CPU)


def test_a_step_does_all_the_work_and_leaves_the_weights_as_they_are(training):
    before = [p.detach().clone() for p in training.vae.parameters()]
    training.step()
    training.step()
    assert all(torch.equal(p, old) for p, old in zip(training.vae.parameters(), before, strict=True))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in training.vae.parameters())
    assert training.optimizer.state
    assert training.x.shape == (8, 1, 8, 8)
    assert training.case("step").flops == training.flops > 10**6


@pytest.mark.parametrize("kind", ["VAE", "HierarchicalVAE"])
def test_a_step_reads_nothing_from_its_device(kind, monkeypatch):
    # tensors without values: to read one is an error
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(muon, "FUSED", ("meta",))
    model = {"class_path": f"resvae.{kind}", "init_args": {"depth": [1, 1], "widths": [8, 16], "strides": [1, 2]}}
    options = {"vae": model, "optimizer": "resvae.training.muon.Muon", "compile": False}
    given = [
        f"--model.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()
    ]
    configuration, _ = parse(["--data.name", "digits", "--data.crop_padding", "1", *given])
    configuration.take_shape()
    training = Training(configuration, torch.device("meta"))
    training.step()
    training.step()
    assert training.optimizer.state


def test_all_parts_run_by_themselves(training):
    parts = training.parts()
    for part in parts:
        part.step()
    assert [part.name for part in parts][:3] == ["data", "forward and backward", "of which the likelihood"]
    assert training.memory() > training.x.numel()
    assert sum(training.convolutions().values()) > 10
    training.sampling(2).step()
    assert training.vae.training


def test_shares_by_kind_of_operation_sum_to_1_and_tell_what_was_done():
    layer, x = torch.nn.Conv2d(32, 32, 3), torch.randn(8, 32, 32, 32)
    shares = by_kind(lambda: layer(x).sum().backward(), CPU)
    assert list(shares) == [*KINDS, REST]
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda kind: shares[kind]) == "convolutions"
    x = torch.randn(2000, 2000)
    shares = by_kind(lambda: torch.nn.functional.silu(x), CPU)
    assert max(shares, key=lambda kind: shares[kind]) == "activations, transcendental functions"


def test_a_step_in_lightning_takes_turns_with_one_without(training):
    lightning, bare = of_lightning(training, 0.1)
    assert lightning > 0
    assert bare > 0


def test_loaders_give_every_image_once():
    for case in loaders((3, 8, 8), 4)[:3]:
        assert case.step() == 50
        assert case.images == 200


def test_channels_first_is_the_same_step():
    configuration = parse([*QUICK, "--data.batch_size", "8", "--model.precision", "fp32"])[0]
    last, first = (Training(configuration, CPU, channels_last=channels_last) for channels_last in (True, False))
    first.x = last.x
    seen = []
    for each in (last, first):
        each.vae.encoder.stem.register_forward_hook(lambda _, x, y: seen.append(y))
        torch.manual_seed(0)
        seen.append(each.loss())
    channels_last, loss, contiguous, same = seen
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert contiguous.is_contiguous()
    torch.testing.assert_close(loss, same)


def test_pythae_is_measured_where_it_is_installed_and_takes_the_images(training, monkeypatch):
    with pytest.raises(ResvaeError, match=r"images \(1, 8, 8\) are not allowed; pythae's takes \(3, 32, 32\)"):
        pythae(training)
    training.module.image_shape = (3, 32, 32)
    monkeypatch.setitem(sys.modules, "pythae", None)
    monkeypatch.setitem(sys.modules, "pythae.models", None)
    with pytest.raises(ResvaeError, match="pythae is not installed; pip install pythae"):
        pythae(training)

    class Peer(nn.Module):
        def __init__(self, config, encoder, decoder):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
            taken.append((config, encoder, decoder))

        def forward(self, inputs):
            return SimpleNamespace(loss=self.layer(inputs["data"]).square().mean())

    taken = []
    parts = {f"{part}_CIFAR": lambda config, part=part: part for part in ("Encoder_ResNet_VAE", "Decoder_ResNet_AE")}
    models = SimpleNamespace(VAE=Peer, VAEConfig=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "pythae", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "pythae.models", models)
    monkeypatch.setitem(sys.modules, "pythae.models.nn", SimpleNamespace())
    benchmarks = SimpleNamespace(cifar=SimpleNamespace(**parts))
    monkeypatch.setitem(sys.modules, "pythae.models.nn.benchmarks", benchmarks)
    case = pythae(training)
    case.step()
    assert taken == [({"input_dim": (3, 32, 32), "latent_dim": 256}, "Encoder_ResNet_VAE", "Decoder_ResNet_AE")]
    # forward, and backward for the weights: the images need no gradient
    assert case.flops == 2 * 8 * 30 * 30 * 2 * 4 * 3 * 9
    assert case.images == 8


def test_a_classifier_is_refused():
    path = Path(__file__).parents[2] / "configs" / "digits_classifier.yaml"
    with pytest.raises(ResvaeError, match="bench: the configuration trains a classifier"):
        Training(parse(["--config", str(path)])[0], CPU)
