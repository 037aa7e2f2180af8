"""The five orders, each another network."""

from dataclasses import replace
from typing import get_args

import torch

from resvae.models.classifier import HE, ResNetClassifier
from resvae.networks.blocks import Order
from resvae.studies.orders import STUDY


def test_all_orders_are_there_and_make_networks_that_differ_in_nothing_else():
    orders = STUDY.variants(110)
    assert tuple(variant.name for variant in orders) == get_args(Order)
    x, outputs, sizes = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), [], set()
    for variant in orders:
        torch.manual_seed(0)
        network = ResNetClassifier(depth=8, image_shape=(1, 8, 8), block=replace(HE, **variant.block))
        outputs.append(network(x))
        sizes.add(sum(p.numel() for p in network.encoder.parameters() if p.ndim == 4))  # convolutions
    assert len(sizes) == 1
    pairs = [torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i]]
    assert not any(pairs)


def test_full_pre_activation_is_reported_best_at_both_depths():
    for depth in (110, 164):
        column = f"reported ResNet-{depth} test error, %"
        best = min(STUDY.variants(depth), key=lambda variant: float(str(variant.reported[column])))
        assert best.name == "full_pre"
