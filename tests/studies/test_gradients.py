from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers_runs import rows

from resvae import HierarchicalVAE, ResNetClassifier, save
from resvae.models.classifier import HE
from resvae.networks import BlockConfig, ResidualBlock, ResNetEncoder
from resvae.networks.blocks import Order
from resvae.storage import build, describe
from resvae.studies.gradients import at_blocks, gradients, routes
from resvae.studies.record import subjects

BASIC = BlockConfig(kind="basic", norm="batch")


def classifier(block: BlockConfig, stem: str = "cifar") -> ResNetClassifier:
    torch.manual_seed(0)
    encoder = ResNetEncoder((3, 8, 8), (2, 2), (4, 8), (1, 2), stem=stem, config=block)  # pyright: ignore[reportArgumentType]
    return ResNetClassifier(encoder, num_classes=3)


def images(num: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(256, (num, channels, 8, 8), dtype=torch.uint8), torch.arange(num) % 3


@pytest.mark.parametrize("stem", ["cifar", "none"])
def test_the_norm_is_that_of_the_gradient_at_each_blocks_input(stem: str):
    model, (x, y) = classifier(HE, stem), images(6)
    expected = []
    for batch, labels in zip(x.split(3), y.split(3), strict=True):
        h, entered = model.encoder.stem((2 * (batch / 255) - 1).requires_grad_()), []
        for stage in model.encoder.stages:
            for block in stage:
                h.retain_grad()
                entered.append(h)
                h = block(h)
        F.cross_entropy(model.classifier(model.encoder.final(h).mean((2, 3))), labels).backward()
        expected.append(torch.stack([h.grad.norm() for h in entered]))
    measured = at_blocks(model, x, y, batch_size=3)
    torch.testing.assert_close(measured[:, 0], torch.stack(expected).mean(0), rtol=1e-5, atol=0)
    assert measured[:, 3].max() < 1e-6


@pytest.mark.parametrize("order", get_args(Order))
@pytest.mark.parametrize("merge", ["sum", "none", "highway", lambda x, fx: x * fx + x])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_two_routes_add_up_to_the_whole(order, merge, stride: int):
    torch.manual_seed(0)
    config = BlockConfig(kind="basic", norm="batch", order=order, merge=merge)
    block = ResidualBlock(4, 4 * stride, stride=stride, config=config).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    y = block(x)
    gradient = torch.randn_like(y)
    (whole,) = torch.autograd.grad(y, x, gradient)
    connection, branch = routes(block, x, gradient)
    torch.testing.assert_close(connection + branch, whole)
    assert branch.norm() > 0.01 * whole.norm()
    assert (connection.norm() == 0) if block.plain else (connection.norm() > 0.01 * whole.norm())


def test_an_identity_hands_the_gradient_on_unchanged():
    block = ResidualBlock(4, 4, config=BASIC, residual_scale=0)
    gradient = torch.randn(2, 4, 8, 8)
    connection, branch = routes(block, torch.randn(2, 4, 8, 8), gradient)
    torch.testing.assert_close(connection, gradient, rtol=0, atol=0)  # He 2016, equation 5: the 1
    assert branch.norm() == 0  # d/dx of F = 0


def test_what_the_latents_send_back_is_no_route_of_the_block():
    torch.manual_seed(0)
    model = HierarchicalVAE(16, 3, 2, (3, 8, 8), (4, 8), (1, 2))
    measured = at_blocks(model, *images(4))
    assert len(measured) == 4 + 3  # one more per level
    assert measured[:, 3].max() < 1e-5
    assert measured[:, :3].min() > 0


def test_the_study_compares_the_start_and_the_end_of_several_models(tmp_path: Path, capsys):
    for i, merge in enumerate(("sum", "none")):
        torch.manual_seed(7 + i)
        block = BlockConfig(order="original", norm="batch", activation="relu", shortcut="zero_pad", merge=merge)
        save(ResNetClassifier(depth=8, image_shape=(1, 8, 8), block=block), tmp_path / merge)
    models, out = [str(tmp_path / "sum"), str(tmp_path / "none")], tmp_path / "study"
    gradients(",".join(models), num=40, seed=3, data="digits", out=str(out))
    told = capsys.readouterr().out
    found = rows(out / "gradients.csv")
    assert [row["connection, trained"] == "one route" for row in found] == [False] * 3 + [True] * 3
    assert all(float(row["branch, start"]) == 1 for row in found[3:])
    assert all(float(row["error"]) < 1e-5 for row in found)
    one = subjects(models[:1], 40, data="digits")[0]
    torch.manual_seed(3)
    for when, model in (("start", build(describe(one.model))), ("trained", one.model)):
        norms = at_blocks(model.train(), one.x, one.y)[:, 0]
        torch.testing.assert_close(torch.tensor([float(row[f"norm, {when}"]) for row in found[:3]]), norms)
    assert f"wrote {out / 'gradients.png'}" in told
    before = (out / "study.json").stat().st_mtime_ns
    gradients(models, num=40, seed=3, data="digits", out=str(out))
    assert capsys.readouterr().out == told
    assert (out / "study.json").stat().st_mtime_ns == before  # nothing was measured again


def test_no_image_is_alone_in_a_batch():
    model = ResNetClassifier(depth=8, image_shape=(1, 8, 8)).train()  # batch normalisation refuses one value alone
    x, y = torch.randint(256, (9, 1, 8, 8)), torch.arange(9)
    assert at_blocks(model, x, y, batch_size=4).isfinite().all()
