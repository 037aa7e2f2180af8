from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import rows
from torch import nn

from resvae import VAE, HierarchicalVAE, ResNetClassifier, save
from resvae.errors import ResvaeError
from resvae.models.classifier import HE
from resvae.networks import BlockConfig, ResNetEncoder
from resvae.studies.responses import deviations, main_path, responses

BOTTLENECKS = BlockConfig(kind="bottleneck", order="original", norm="batch")


def classifier(block: BlockConfig) -> ResNetClassifier:
    return ResNetClassifier(ResNetEncoder((3, 8, 8), (2, 2), (4, 8), (1, 2), config=block), num_classes=3)


def test_the_deviation_is_over_all_images_places_and_channels():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    model.figures = lambda x, y: model(x)
    model[1].running_mean.fill_(0.3)
    x = torch.randn(7, 3, 8, 8) + 2
    normalised = model[:2](x)
    expected = [normalised.std(correction=0), model[2:](normalised).std(correction=0)]
    measured = deviations(model, x, torch.zeros(7), batch_size=3)  # the last batch is smaller
    torch.testing.assert_close(measured, torch.stack(expected).double(), rtol=1e-5, atol=0)
    model.forward = lambda x: pytest.fail("still hooked") if model[0]._forward_hooks else x
    model(x)


def test_every_layer_of_the_depth_but_the_dense_ones_is_on_the_main_path():
    image, widths, strides = (3, 8, 8), (4, 8), (1, 2)
    assert len(main_path(VAE(16, 2, image, widths, strides))) == 14
    assert len(main_path(HierarchicalVAE(16, 3, 2, image, widths, strides))) == 14 + 3 * 3  # and those of the levels
    assert len(main_path(VAE(16, 2, image, widths, strides, likelihood="subpixel_mixture"))) == 14
    assert len(main_path(ResNetClassifier(depth=20))) == 19
    assert len(main_path(ResNetClassifier(depth=20, block=BlockConfig(shortcut="projection_everywhere")))) == 19


@pytest.mark.parametrize(
    ("order", "normalised"),
    [("original", [1, 1, 1]), ("norm_after_add", [1, 1, 0]), ("relu_only_pre", [0, 1, 1]), ("full_pre", [1, 1, 0])],
)
def test_a_response_is_normalised_where_a_normalisation_follows(order, normalised):
    for merge in ("sum", "none"):  # the same layers in a plain network
        path = main_path(classifier(BlockConfig(kind="basic", order=order, norm="batch", merge=merge)))
        assert [int(isinstance(module, nn.BatchNorm2d)) for _, module in path] == normalised[:1] + 4 * normalised[1:]


@pytest.mark.parametrize("block", [HE, BOTTLENECKS, BlockConfig(norm="group", order="norm_after_add")])
def test_layers_come_in_the_order_of_the_data(block: BlockConfig):
    model, fired = classifier(block), []
    for name, module in main_path(model):
        module.register_forward_hook(lambda *_, name=name: fired.append(name))
    model(torch.rand(1, 3, 8, 8))
    assert fired == [name for name, _ in main_path(model)]
    assert len(set(fired)) == 1 + 4 * (3 if block.kind == "bottleneck" else 2)


def test_the_study_writes_a_row_a_layer_and_is_not_measured_twice(tmp_path: Path, capsys):
    vae = save(VAE(16, 2, (1, 8, 8), (4, 4), (1, 2)), tmp_path / "vae")
    net = save(ResNetClassifier(depth=8, image_shape=(1, 8, 8)), tmp_path / "net")
    models, out = f"{vae},{net}", tmp_path / "study"
    responses(models, num=20, data="digits", out=str(out))
    told = capsys.readouterr().out
    found = rows(out / "responses.csv")
    assert len(found) == 14 + 7
    assert all(float(row["std"]) > 0 for row in found)
    assert "Reported (He 2015, figure 7" in told
    assert "the first 20 test images of digits" in told
    assert f"wrote {out / 'responses.png'}" in told
    before = (out / "study.json").stat().st_mtime_ns
    responses(models.split(","), num=20, data="digits", out=str(out))
    assert capsys.readouterr().out == told
    assert (out / "study.json").stat().st_mtime_ns == before
    with pytest.raises(ResvaeError, match=r"out: .* holds a study with seed 0, not 1"):
        responses(models, num=20, seed=1, data="digits", out=str(out))
