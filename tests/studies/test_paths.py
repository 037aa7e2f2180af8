import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_runs import read, rows
from torch import Tensor, nn

from resvae import VAE, HierarchicalVAE, ImageDataModule, ResNetClassifier, load, save
from resvae.errors import ResvaeError
from resvae.models.classifier import HE
from resvae.networks import BlockConfig, ResidualBlock
from resvae.networks.units import Unit, units
from resvae.studies.paths import decay, every_path, gradient_norms, num_paths, path_gradients, paths, shortest_range

PRE = replace(HE, order="full_pre")


def classifier(block: BlockConfig = PRE, depth: int = 8) -> ResNetClassifier:
    torch.manual_seed(0)
    return ResNetClassifier(depth=depth, image_shape=(1, 8, 8), block=block).eval()


def images(num: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num, 1, 8, 8, generator=generator), torch.arange(num)


def subsets(num: int) -> list[tuple[int, ...]]:
    return [path for k in range(num + 1) for path in itertools.combinations(range(num), k)]


def test_the_lengths_of_54_units_are_as_published():
    counts = num_paths(54)
    assert sum(counts) == 2**54
    assert sum(counts[19:36]) / 2**54 == pytest.approx(0.980, abs=5e-4)
    assert sum(counts[5:18]) / 2**54 == pytest.approx(0.004537, abs=5e-7)


def test_all_paths_through_linear_units_add_up_to_the_network():
    torch.manual_seed(0)
    chain = [ResidualBlock(4, 4, config=BlockConfig(norm="none", shortcut="projection")) for _ in range(9)]
    chain.insert(5, ResidualBlock(4, 4, stride=2, config=BlockConfig(norm="none", conv_bias=False)))
    for block in chain:
        block.before = nn.Sequential()
        block.branch = nn.Sequential(nn.Conv2d(4, 4, 3, block.stride, padding=1, bias=False))
    x = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        ways = every_path([Unit(str(i), block) for i, block in enumerate(chain)], x)
        assert ways.shape == (1024, 2, 4, 2, 2)
        torch.testing.assert_close(ways.sum(0), nn.Sequential(*chain)(x), rtol=1e-5, atol=1e-5)
        assert len({round(way.norm().item(), 5) for way in ways}) > 1000  # no way is taken twice


@pytest.mark.parametrize("order", ["original", "norm_after_add", "relu_before_add", "relu_only_pre", "full_pre"])
@pytest.mark.parametrize("shortcut", ["zero_pad", "projection"])
def test_the_gradients_of_all_paths_add_up_to_the_gradient(order: Any, shortcut: Any):
    model, (x, y) = classifier(replace(HE, order=order, shortcut=shortcut)), images()
    along = path_gradients(model, x, y)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y, reduction="sum").backward()
    assert leaf.grad is not None
    torch.testing.assert_close(sum(along(path) for path in subsets(3)), leaf.grad, rtol=1e-4, atol=1e-6)
    assert not x.requires_grad
    pixels = (255 * x).round().to(torch.uint8)
    torch.testing.assert_close(path_gradients(model, pixels, y)(()), path_gradients(model, pixels / 255, y)(()))


@pytest.mark.parametrize("kind", [VAE, HierarchicalVAE])
def test_a_vaes_paths_add_up_to_what_goes_through_its_encoder(kind: Any, monkeypatch):
    torch.manual_seed(0)
    vae, (x, y) = kind((2, 1), 2, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2)).eval(), images()
    torch.manual_seed(1)
    along = path_gradients(vae, x, y)
    leaves, features = [], vae.encoder.features

    def cut(h: Tensor) -> list[Tensor]:
        leaves.append(h.detach().requires_grad_())
        *early, last = features(leaves[0])
        return [*(h.detach() for h in early), last]

    monkeypatch.setattr(vae.encoder, "features", cut)
    torch.manual_seed(1)
    (-vae.elbo(x).elbo.sum()).backward()
    torch.testing.assert_close(sum(along(path) for path in subsets(3)), 2 * leaves[0].grad, rtol=1e-4, atol=1e-4)


def test_a_path_goes_through_the_branches_of_its_units_and_through_no_other():
    model, (x, y) = classifier(), images()
    silent = units(model)[1].block.branch[-1]
    assert isinstance(silent, nn.Conv2d)
    nn.init.zeros_(silent.weight)
    along = path_gradients(model, x, y)
    for path in subsets(3):
        assert (along(path).abs().max() > 0) == (1 not in path), path


def test_norms_are_of_one_length_of_each_image_by_itself_and_leave_no_trace():
    model, (x, y) = classifier(depth=14), images(4)
    norms = gradient_norms(model, x, y, 2, draws=5, seed=3)
    assert norms.shape == (5, 4)
    along = path_gradients(model, x, y)
    every = torch.stack([along(path).flatten(1).norm(dim=1) for path in itertools.combinations(range(6), 2)]).double()
    nearest = (norms[:, None] / every).log().abs().amax(2).min(1)
    assert nearest.values.max() < 1e-5
    assert len(nearest.indices.unique()) > 1
    torch.testing.assert_close(gradient_norms(model, x[2:3], y[2:3], 2, draws=5, seed=3), norms[:, 2:3])
    assert not torch.equal(gradient_norms(model, x, y, 2, draws=5, seed=4), norms)
    model.train()
    state = torch.get_rng_state()
    torch.testing.assert_close(gradient_norms(model, x, y, 2, draws=5, seed=3), norms)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_long_path_is_not_lost_to_small_squares():
    model, (x, y) = classifier(), images()
    for unit in units(model):
        with torch.no_grad():
            unit.block.branch[-1].weight.mul_(1e-9)  # pyright: ignore
    assert gradient_norms(model, x, y, 3, draws=1).min() > 0
    assert (path_gradients(model, x, y)((0, 1, 2)).flatten(1).norm(dim=1) == 0).any()


def test_the_fit_is_exact_on_an_exponential_and_leaves_zeros_out():
    slope, start, r2 = decay([*np.exp(-3 - 0.7 * np.arange(10)).tolist(), 0.0, 0.0])
    assert (slope, start, r2) == pytest.approx((-0.7, -3, 1))
    slope, start, r2 = decay([1, math.e**-1, math.e**-1, math.e**-2])
    assert (slope, start, r2) == pytest.approx((-0.6, -0.1, 0.9))
    with pytest.raises(ResvaeError, match="paths of 2 lengths carry gradient"):
        decay([1, 0.1, 0, 0])


def test_the_shortest_range_that_holds_a_share():
    assert shortest_range([1, 30, 40, 25, 4], 0.95) == (1, 3)
    assert shortest_range([1, 30, 40, 25, 4], 0.7) == (1, 2)
    assert shortest_range([1, 1, 1], 1.0) == (0, 2)
    assert shortest_range(num_paths(54)) == (20, 34)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    return str(save(classifier(depth=14), tmp_path / "model"))


def test_the_study_writes_what_it_measures(saved, tmp_path, capsys):
    out = tmp_path / "study"
    paths(saved, 4, 2, data="digits", out=str(out))
    assert len(read(out / "study.json")["rows"]) == 7  # each length is kept once it is measured
    printed = capsys.readouterr().out
    assert printed.count("wrote ") == 3
    for told in ("95% of all 2^6 paths have 1 to 5 units", "the first 4 test images of digits", "Reported (Veit"):
        assert told in printed
    found = [{name: float(cell) for name, cell in row.items()} for row in rows(out / "paths.csv")]
    assert [round(10 ** row["log10 paths"]) for row in found] == [1, 6, 15, 20, 15, 6, 1]
    products = [10 ** row["log10 paths"] * row["norm"] for row in found]
    assert [row["% of gradient"] for row in found] == pytest.approx([100 * p / sum(products) for p in products])
    data = ImageDataModule("digits")
    norms = gradient_norms(load(saved), data.images("test")[:4], data.labels("test")[:4], 3, 2, 0)
    expected = [norms.mean().item(), *norms.quantile(torch.tensor([0.1, 0.9]).double()).tolist()]
    assert [found[3][name] for name in ("norm", "10%", "90%")] == pytest.approx(expected)
    assert (out / "paths.png").stat().st_size > 20_000
    with pytest.raises(ResvaeError, match="holds a study with draws 2, not 3"):
        paths(saved, 4, 3, data="digits", out=str(out))


@pytest.mark.parametrize("merge", ["none", "highway"])
def test_networks_without_paths_are_refused(merge: Any, tmp_path):
    source = str(save(classifier(replace(PRE, merge=merge)), tmp_path / "model"))
    with pytest.raises(ResvaeError, match="must be merged by sum; encoder"):
        paths(source, 4, data="digits", out=str(tmp_path / "study"))
    with pytest.raises(ResvaeError, match="draws: 0 is not allowed"):
        paths(source, 4, 0, data="digits", out=str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()


def test_of_a_hierarchical_model_the_note_says_that_it_is_a_part(tmp_path, capsys):
    save(HierarchicalVAE(16, (1, 1), 2, (1, 8, 8), (8, 8), (1, 2)), tmp_path / "model")
    paths(str(tmp_path / "model"), num=4, draws=2, data="digits", out=str(tmp_path / "study"))
    assert "paths add up to what comes back from the encoder's end, a part of the whole" in capsys.readouterr().out
