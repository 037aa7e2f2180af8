"""The kinds of network that are compared by depth, and their plot."""

from dataclasses import replace

import pytest

from resvae.models.classifier import HE, ResNetClassifier
from resvae.networks import Highway
from resvae.studies.degradation import by_depth, kinds
from resvae.studies.variants import Result


def test_they_differ_in_the_merge_and_gates_know_their_depth():
    for depth, bias in ((8, -1.0), (20, -2.0), (110, -6.0)):
        plain, residual, highway = (ResNetClassifier(depth=8, block=replace(HE, **kind.block)) for kind in kinds(depth))
        counts = [sum(p.numel() for p in network.parameters()) for network in (plain, residual, highway)]
        assert counts[0] == counts[1]
        assert counts[2] - counts[0] == sum(width * (width + 1) for width in (16, 32, 64))
        gates = [module for module in highway.modules() if isinstance(module, Highway)]
        assert len(gates) == 3
        assert all((gate.gate.bias == bias).all() for gate in gates)


def test_published_figures_rise_with_depth_for_plain_networks_and_fall_for_residual_ones():
    residual = [float(kinds(depth)[1].reported["reported test error, %"]) for depth in (20, 32, 44, 56, 110)]
    assert residual == sorted(residual, reverse=True)
    assert [kinds(depth)[0].reported["reported test error, %"] for depth in (20, 56)] == ["8.7 to 9.6", "12.3 to 14.2"]
    assert [kind.reported["reported test error, %"] for kind in kinds(14)] == [None] * 3


def test_the_plot_is_of_test_and_training_figures_by_depth(tmp_path, drawn):
    results = [
        Result(kind, depth, seed, 1, "", "digits", "", 2, {"train/error": [1.0, depth / 100], "val/error": [1.0]}, test)
        for kind in ("plain", "residual")
        for depth in (8, 14)
        for seed, test in ((0, {"test/error": 0.5}), (1, {"test/error": 0.7}))
    ]
    by_depth(results, tmp_path / "x.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().ravel() for line in axes.lines}
    assert lines["plain, training"] == pytest.approx([8, 8, 14, 14])
    assert lines["residual, test"] == pytest.approx([8, 60, 14, 60])
    assert axes.get_ylabel() == "error, %"
    assert (tmp_path / "x.png").is_file()
