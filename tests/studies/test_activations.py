from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers_runs import rows
from torch import nn

from resvae import VAE, HierarchicalVAE, ResNetClassifier, save
from resvae.errors import ResvaeError
from resvae.models.classifier import HE
from resvae.networks import BlockConfig, ResNetEncoder
from resvae.studies.activations import activations, passages
from resvae.studies.record import subject

PRE = BlockConfig(kind="basic", norm="batch")


def classifier(block: BlockConfig) -> ResNetClassifier:
    torch.manual_seed(0)
    return ResNetClassifier(ResNetEncoder((1, 8, 8), (2, 2), (4, 8), (1, 2), config=block), num_classes=3).eval()


@pytest.mark.parametrize("block", [HE, PRE], ids=["original", "full_pre"])
def test_a_passage_ends_where_the_next_begins(block: BlockConfig):
    model, x = classifier(block), torch.rand(1, 1, 8, 8)
    found = passages(model, x)
    torch.testing.assert_close(found[0].x, model.encoder.stem(2 * x - 1)[0])
    for passage, after in pairwise(found):
        torch.testing.assert_close(passage.merged, passage.carried + passage.added)
        torch.testing.assert_close(after.x, passage.activation if block is HE else passage.merged)
    assert not any(unit.unit.block._forward_pre_hooks for unit in found)


@pytest.mark.parametrize("block", [PRE, BlockConfig(order="relu_only_pre"), BlockConfig(order="relu_before_add")])
def test_without_an_activation_at_its_end_a_block_shows_what_its_convolution_is_given(block: BlockConfig):
    model, given = classifier(block), []
    for stage in model.encoder.stages:
        for each in stage:
            first = next(layer for layer in each.branch if isinstance(layer, nn.Conv2d))
            first.register_forward_pre_hook(lambda _, args: given.append(args[0][0]))
    found = passages(model, torch.rand(1, 1, 8, 8))
    seen = given[: len(found)]  # by the model itself, before the blocks are gone through one by one
    torch.testing.assert_close([passage.activation for passage in found], seen)


def test_filters_are_of_the_first_convolution_that_looks_around():
    model = VAE(16, 2, (1, 8, 8), (8, 16), (1, 2)).eval()
    found = passages(model, torch.rand(1, 1, 8, 8))
    assert [passage.filters.shape for passage in found] == [(2, 2, 3, 3), (4, 4, 3, 3), (4, 4, 3, 3), (2, 2, 4, 4)]
    up = next(layer for layer in found[3].unit.block.branch if isinstance(layer, nn.ConvTranspose2d))
    torch.testing.assert_close(found[3].filters[0, 1], up.weight[1, 0].detach())
    model.encoder.stages[0][0].branch[0].weight.data.zero_()
    assert passages(model, torch.rand(1, 1, 8, 8))[0].filters.abs().min() > 0


@pytest.mark.parametrize(
    "model",
    [
        HierarchicalVAE((1,), 1, 2, (1, 8, 8), (4,), (1,)),
        ResNetClassifier(depth=8, image_shape=(1, 8, 8), block=BlockConfig(merge="none", norm="batch")),
    ],
)
def test_the_study_draws_a_picture_a_block(model: nn.Module, tmp_path: Path, capsys):
    save(model, tmp_path / "model")
    activations(str(tmp_path / "model"), image=2, data="digits", out=str(tmp_path / "study"))
    told = capsys.readouterr().out
    found = rows(tmp_path / "study/activations.csv")
    pictures = sorted(path.name for path in (tmp_path / "study").glob("*.png"))
    assert pictures == ["activations.png", *(f"activations_{i:03}_{row['name']}.png" for i, row in enumerate(found, 1))]
    assert all(f"wrote {tmp_path / 'study' / name}" in told for name in pictures)
    assert all(float(row["std of F(x)"]) > 0 and float(row["ratio"]) > 0 for row in found)
    if isinstance(model, ResNetClassifier):
        assert [row["std of F(x)"] for row in found] == [row["std of merged"] for row in found]
    studied = subject(str(tmp_path / "model"), 3, data="digits")
    first = passages(studied.model, studied.x[2:])[0]
    assert found[0]["shape"] == "x".join(map(str, first.x.shape)) + " to " + "x".join(map(str, first.merged.shape))
    assert float(found[0]["std of x"]) == pytest.approx(first.x.std().item())
    assert f"Image 2, label {studied.y[2]}." in told


@pytest.mark.parametrize("image", [-1, 10_000])
def test_an_image_that_is_not_there_is_refused(image: int, tmp_path: Path):
    save(ResNetClassifier(depth=8, image_shape=(1, 8, 8)), tmp_path / "model")
    with pytest.raises(ResvaeError, match=f"image: {image} is not allowed; 0 or more, less than the number of images"):
        activations(str(tmp_path / "model"), image, data="digits", out=str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()
