"""What ``compile: auto`` decides, and why."""

import math
import warnings

import pytest
import torch
from helpers_runs import command

from resvae.cli import main
from resvae.models import VAE, HierarchicalVAE, ResNetClassifier
from resvae.networks.segments import set_segment
from resvae.training import compiling
from resvae.training.classifier import LitClassifier
from resvae.training.module import LitVAE

SMALL = {"image_shape": (1, 8, 8), "widths": (8, 16), "strides": (1, 2)}
X = torch.empty(64, 1, 8, 8, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "c++" else None)


def choose(steps: float = math.inf, seconds: float | None = None, device: str = "cpu") -> tuple[bool, str]:
    vae = VAE(16, **SMALL)
    return compiling.choose(vae, vae.elbo, X, steps, seconds, device)


def test_a_long_run_is_compiled_and_a_short_one_is_not():
    assert choose(seconds=7200) == (True, choose(seconds=7200)[1])
    assert "of 120 minutes" in choose(seconds=7200)[1]
    assert choose(seconds=60)[0] is False
    assert choose(steps=100)[0] is False
    assert "does not pay it back" in choose(steps=100)[1]
    assert choose(steps=10**9)[0] is True
    assert choose(steps=10**9, seconds=60)[0] is False
    assert choose()[0] is True
    assert "without an end" in choose()[1]


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert choose() == (False, "not compiled: there is no C++ compiler")
    assert choose(device="mps") == (False, "not compiled: on mps it is not tried")
    monkeypatch.setenv("CXX", "mine")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name if name == "mine" else None)
    assert choose()[0] is True


def test_the_expected_time_is_that_of_the_work():
    shallow, deep = VAE(16, **SMALL), VAE(100, **SMALL)
    times = [compiling.expected_seconds(vae, vae.elbo, X, 1000, "cpu") for vae in (shallow, deep)]
    assert times[0] < times[1]
    assert compiling.expected_seconds(shallow, shallow.elbo, X, 3000, "cpu") == pytest.approx(3 * times[0])
    layer = torch.nn.Conv2d(1, 2, 3)
    expected = 1000 * 3 * 2 * 64 * 36 * 2 * 9 / 1e11
    assert compiling.expected_seconds(layer, lambda x: layer(x.float()), X, 1000, "cpu") == pytest.approx(expected)


@pytest.mark.parametrize(
    "module",
    [
        LitVAE(VAE(16, **SMALL, patch=2, likelihood="subpixel_mixture")),
        LitVAE(HierarchicalVAE((2, 2), **SMALL, levels=(1, 2), likelihood="subpixel_mixture")),
        LitVAE(HierarchicalVAE((1, 2), **SMALL, levels=(1, 2), level_block=False), memory_budget="1MiB"),
        LitClassifier(ResNetClassifier(depth=8, image_shape=(1, 8, 8))),
    ],
    ids=["vae", "hierarchical", "budget", "classifier"],
)
def test_the_compiled_objective_is_one_graph(module):
    set_segment(module.model, 1 if module.memory_budget else None)
    x = torch.zeros(4, *module.image_shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        found = torch._dynamo.explain(module.objective)(x)
    assert (found.graph_count, found.break_reasons) == (1, [])


@pytest.mark.slow
def test_a_compiled_step_on_a_cpu_draws_the_noise_of_one_that_is_not():
    module = LitVAE(HierarchicalVAE((1, 1), **SMALL, levels=(1, 2)), compile=True, precision="fp32")
    module.on_fit_start()
    x = torch.randint(256, (4, *module.image_shape), dtype=torch.uint8)
    found = []
    for split in ("train", "val"):  # compiled, and not
        torch.manual_seed(1)
        found.append(module.compute(split, x).elbo)
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], module.compute("val", x).elbo)  # other noise


def test_cuda_graphs_are_asked_for_on_an_accelerator_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.append(how) or function)
    for device in ("cpu", "meta"):
        LitVAE(VAE(16, **SMALL), compile="reduce-overhead").to(device).on_fit_start()
        LitVAE(VAE(16, **SMALL), compile=True).to(device).on_fit_start()
        LitVAE(VAE(16, **SMALL), compile=False).to(device).on_fit_start()
    drawn = {"options": {"fallback_random": True}}
    assert asked == [drawn, drawn, {"mode": "reduce-overhead"}, {}]


@pytest.mark.parametrize("given", [True, False, "reduce-overhead"])
def test_what_is_given_stays(given):
    module = LitVAE(VAE(16, **SMALL), compile=given)
    assert module.choose_compile(64, 10**9, None, "cpu") is None
    assert module.compiles is given


def test_auto_is_decided_once():
    module = LitVAE(VAE(16, **SMALL))
    assert module.compiles == "auto"
    assert str(module.choose_compile(64, 10, None, "cpu")).startswith("not compiled")
    assert module.choose_compile(64, math.inf, None, "cpu") is None
    assert module.compiles is False


@pytest.mark.parametrize(
    ("options", "steps", "seconds"),
    [
        ("--trainer.max_epochs 5", 15, None),
        ("--trainer.max_epochs 5 --trainer.max_steps 4", 4, None),
        ("--trainer.max_steps 4 --trainer.accumulate_grad_batches 2 --trainer.max_epochs 5", 8, None),
        ("--trainer.max_epochs -1 --trainer.max_time 00:00:00:02", math.inf, 2),
    ],
)
def test_fit_tells_how_long_a_run_will_be(tmp_path, monkeypatch, capsys, options, steps, seconds):
    asked = []

    def noted(self, *of_run):
        asked.append(of_run)
        return "chosen so"

    monkeypatch.setattr(LitVAE, "choose_compile", noted)
    assert main(command(tmp_path, options)) == 0
    assert asked == [(64, steps, seconds if seconds is None else pytest.approx(seconds), "cpu")]
    assert "chosen so\n" in capsys.readouterr().out
