"""Chains in segments have the same gradients and statistics, and keep less."""

import copy

import pytest
import torch
from torch import nn

from resvae.models import VAE, HierarchicalVAE, ReferenceVAE, ResNetClassifier
from resvae.networks import BlockConfig
from resvae.networks.blocks import ResidualBlock
from resvae.networks.segments import Blocks, chains, set_segment, through

BATCH_NORM = BlockConfig(norm="batch", order="full_pre")
SMALL = {"image_shape": (1, 8, 8), "widths": (8, 16), "strides": (1, 2)}
MODELS = {
    "vae": lambda: VAE(40, **SMALL),
    "vae with batch normalisation": lambda: VAE(40, block=BATCH_NORM, **SMALL),
    "hierarchical": lambda: HierarchicalVAE((3, 3), levels=(1, 2), block=BATCH_NORM, **SMALL),
    "classifier": lambda: ResNetClassifier(depth=20, num_classes=3, image_shape=(1, 8, 8)),
}


def step(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss, the gradients and all buffers after one training step."""
    torch.manual_seed(0)
    model.zero_grad()
    loss = model(x).square().sum() if isinstance(model, ResNetClassifier) else -model.elbo(x).elbo.mean()  # pyright: ignore
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **{name: b.clone() for name, b in model.named_buffers()}}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("segment", "spared"), [(1, 0.0), (2, 0.0), (100, 0.0), (1, 0.5)])
def test_gradients_and_running_statistics_are_the_same(name, segment, spared):
    torch.manual_seed(1)
    model, x = MODELS[name](), torch.rand(3, 1, 8, 8)
    twin = copy.deepcopy(model)
    set_segment(twin, segment, spared)
    expected, found = step(model, x), step(twin, x)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_the_articles_network_is_chains_too():
    with torch.device("meta"):
        model = ReferenceVAE(28)
    assert sum(map(len, chains(model))) == 8
    set_segment(model, 2)
    assert all(part.segment == 2 for part in model.modules() if isinstance(part, Blocks))


def test_every_block_of_a_model_is_in_one_chain():
    model = HierarchicalVAE((2, 3), levels=(3, 1), **SMALL)
    blocks = [block for chain in chains(model) for block in chain]
    assert len(blocks) == len(set(blocks)) == 2 * 5 + 4  # both sides, and one after each level


def test_blocks_run_again_only_for_a_gradient_and_in_their_segments():
    ran = []

    class Block(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number, self.weight = number, nn.Parameter(torch.ones(()))

        def forward(self, x):
            ran.append(self.number)
            return x * self.weight.exp()

    blocks, x = [Block(i) for i in range(5)], torch.ones(2, requires_grad=True)
    y = through(blocks, x, 2)
    assert ran == [0, 1, 2, 3, 4]
    y.sum().backward()
    assert ran[5:] == [4, 2, 3, 0, 1]
    ran.clear()
    with torch.no_grad():
        through(blocks, x, 2)
    through(blocks, x, None).sum().backward()
    assert ran == [0, 1, 2, 3, 4] * 2


@pytest.mark.slow
def test_segments_in_one_graph():
    torch.manual_seed(1)
    model, x = VAE(40, **SMALL), torch.rand(3, 1, 8, 8)
    expected = step(model, x)
    set_segment(model, 2)
    torch.compiler.reset()
    model.elbo = torch.compile(model.elbo)  # pyright: ignore[reportAttributeAccessIssue]
    found = step(model, x)
    for name in expected.keys() & dict(model.named_parameters()).keys():
        assert found[name].isfinite().all()  # the noise differs from that of the eager model


def test_blocks_between_two_levels_are_one_chain():
    for level_block, lengths in ((False, [2, 1, 2]), (True, [3, 2, 3])):
        vae = HierarchicalVAE((3, 2), (1, 2), **SMALL, level_block=level_block)
        assert [len(chain) for chain in vae.chains()] == lengths
        assert all(isinstance(block, ResidualBlock) for chain in vae.chains() for block in chain)
