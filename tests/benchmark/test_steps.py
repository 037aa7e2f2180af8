"""A step is the configuration's own, changes no weight, and is the sum of its parts."""

from pathlib import Path

import pytest
import torch

from resvae.benchmark.beside import loaders, of_lightning
from resvae.benchmark.operations import KINDS, REST, by_kind
from resvae.benchmark.steps import Training
from resvae.errors import ResvaeError
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


def test_a_classifier_is_refused():
    path = Path(__file__).parents[2] / "configs" / "digits_classifier.yaml"
    with pytest.raises(ResvaeError, match="bench: the configuration trains a classifier"):
        Training(parse(["--config", str(path)])[0], CPU)
