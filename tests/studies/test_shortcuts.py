"""The seven shortcuts by what they add to a network, and by what they hand on."""

from dataclasses import replace

import pytest
import torch

from resvae.models.classifier import HE, ResNetClassifier
from resvae.networks import BlockConfig, ResidualBlock
from resvae.studies.shortcuts import STUDY

SHORTCUTS = {variant.name: variant for variant in STUDY.variants(110)}
WIDTHS = (16, 32, 64)


def network(name: str, base: BlockConfig = HE) -> ResNetClassifier:
    return ResNetClassifier(depth=8, image_shape=(1, 8, 8), block=replace(base, **SHORTCUTS[name].block))


def test_each_adds_its_own_parameters():
    size = {name: sum(p.numel() for p in network(name).parameters()) for name in SHORTCUTS}
    added = {name: size[name] - size["none"] for name in SHORTCUTS}
    projections = [a * b + 2 * b for a, b in zip((16, *WIDTHS), WIDTHS, strict=False)]  # 1x1, normalisation
    gates = sum(width * width + width for width in WIDTHS)
    assert added == {
        "A identity": 0,
        "B projection": sum(projections[1:]),
        "C projection everywhere": sum(projections),
        "constant 0.5": 0,
        "exclusive gate": gates,
        "shortcut-only gate": gates,
        "none": 0,
    }


@pytest.mark.parametrize(
    ("name", "shortcut", "branch"),
    [("A identity", 1, 1), ("constant 0.5", 0.5, 0.5), ("none", 0, 1), ("exclusive gate", 1, 0)],
)
def test_a_block_weighs_shortcut_and_branch_whatever_the_configuration_has(name, shortcut, branch):
    base = replace(HE, shortcut="projection", merge="product", norm="none")
    block = network(name, base).encoder.stages[0][0]
    assert isinstance(block, ResidualBlock)
    with torch.no_grad():
        if name == "exclusive gate":
            block.merge.gate.weight.zero_()
            open_ = torch.tensor(-6.0).sigmoid().item()
            shortcut, branch = 1 - open_, open_
        x = torch.rand(2, 16, 8, 8)
        expected = torch.relu(shortcut * x + branch * block.branch(x))
        assert torch.allclose(block(x), expected, atol=1e-6)


def test_names_make_folders():
    assert all(set(name) <= set(" .-_") | set(map(chr, range(48, 123))) for name in SHORTCUTS)
