"""Widths that make models of different depth equally large."""

import itertools

import pytest
import torch
from helpers_runs import VAE
from torch import nn

from resvae import models
from resvae.errors import ResvaeError
from resvae.networks import BlockConfig
from resvae.studies.matching import matched_widths, nearest_widths, parameters
from resvae.training.configuration import parse

DEPTH = "model.vae.init_args.depth"


class Looks(models.VAE):
    """Its constructor looks at a value, which a model without memory does not have."""

    def __init__(self, widths: tuple[int, ...] = (4, 8)):
        super().__init__((1, 1), 4, (1, 8, 8), widths, (1, 2))
        self.scale = nn.Parameter(torch.full((3,), torch.ones(()).item()))


@pytest.fixture
def fit(tmp_path) -> list[str]:
    (tmp_path / "config.yaml").write_text(VAE.replace("depth: [1, 1]", "block: {norm: batch}"))
    return ["--config", str(tmp_path / "config.yaml"), "--model.vae.widths", "[16, 32]"]


def size(depth: int, widths: tuple[int, ...], latent_dim: int = 4) -> int:
    vae = models.VAE(depth, latent_dim, (1, 8, 8), widths, (1, 2), BlockConfig(norm="batch"))
    return sum(p.numel() for p in vae.parameters())


def test_every_depth_gets_the_size_of_the_configuration_with_its_overrides(fit, capsys):
    depths = (28, 16, 64)
    base = parse([*fit, "--model.vae.depth=28"])[0]
    widths = matched_widths(base, [{DEPTH: depth} for depth in depths], None)
    assert widths[0] == (16, 32)  # its own depth keeps its own widths
    lines = capsys.readouterr().out.splitlines()
    for depth, chosen, line in zip(depths, widths, lines, strict=True):
        assert line.startswith(f"depth {depth}: widths {chosen}, {size(depth, chosen):,} parameters, ")
        assert size(depth, chosen) == pytest.approx(size(28, (16, 32)), rel=0.05)
        assert all(width % 4 == 0 for width in chosen)
    assert sum(widths[1]) > sum(widths[0]) > sum(widths[2])


def test_the_environment_counts_as_it_does_for_fit(fit, monkeypatch):
    monkeypatch.setenv("RESVAE_FIT__MODEL__VAE__INIT_ARGS__LATENT_DIM", "40")
    assert matched_widths(parse(fit)[0], [{DEPTH: 28}], size(28, (12, 20), latent_dim=40)) == [(12, 20)]


def test_no_neighbour_is_nearer():
    def count(widths):
        return 9 * widths[0] * widths[1] + widths[1] * widths[2]

    for target in (1, 500, 77_777, 10**7):
        best = nearest_widths((64, 100, 128), target, count)
        steps = itertools.product(range(3), (-4, 4))
        near = [tuple(w + step * (i == j) for j, w in enumerate(best)) for i, step in steps]
        assert all(abs(count(best) - target) <= abs(count(w) - target) for w in near if min(w) >= 4)
        assert target == 1 or count(best) == pytest.approx(target, rel=0.05)
    assert nearest_widths((64, 100, 128), 1, count) == (4, 4, 4)


def test_no_memory_is_taken_unless_the_model_looks_at_values(monkeypatch):
    devices = []
    register = nn.Module.register_parameter

    def noted(self, name, parameter):
        devices.extend([parameter.device.type] if parameter is not None else [])
        register(self, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", noted)
    arguments = {"image_shape": [1, 8, 8], "widths": [4, 8], "strides": [1, 2]}
    parameters({"class_path": "resvae.VAE", "init_args": arguments})
    assert set(devices) == {"meta"}
    looks = {"class_path": f"{Looks.__module__}.Looks", "init_args": {}}
    assert parameters(looks, (8, 8)) == sum(p.numel() for p in Looks((8, 8)).parameters())


def test_what_the_model_refuses_is_told_in_its_own_words():
    arguments = {"depth": 29, "image_shape": [1, 8, 8], "widths": [4, 8], "strides": [1, 2]}
    with pytest.raises(ResvaeError, match="depth: 29 is not allowed with 2 stages"):
        parameters({"class_path": "resvae.VAE", "init_args": arguments})


def test_a_model_without_widths_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {vae: {class_path: resvae.ReferenceVAE}}\ndata: {name: cifar10}\n")
    with pytest.raises(ResvaeError, match="params needs a model with widths; ReferenceVAE has none"):
        matched_widths(parse(["--config", str(tmp_path / "config.yaml")])[0], [{DEPTH: 40}], None)
