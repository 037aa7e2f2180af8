from dataclasses import replace

import pytest
import torch
from torch import nn

from resvae import VAE, HierarchicalVAE, ResNetClassifier
from resvae.errors import ResvaeError
from resvae.models.classifier import HE
from resvae.networks import BlockConfig
from resvae.networks.units import replaced, summed, units

PRE = BlockConfig(order="full_pre", norm="batch", activation="relu", shortcut="zero_pad")
PLAIN = BlockConfig(order="original", norm="batch", activation="relu", merge="none")


def classifier(block: BlockConfig) -> ResNetClassifier:
    torch.manual_seed(0)
    return ResNetClassifier(depth=20, image_shape=(3, 8, 8), block=block).eval()


def test_units_come_in_order_with_what_changes():
    found = units(classifier(HE))
    assert [unit.name for unit in found] == [f"encoder.stages.{i}.{j}" for i in range(3) for j in range(3)]
    assert [unit.changes for unit in found] == [False] * 3 + [True, False, False] * 2
    assert found[4].stage == found[5].stage == "encoder.stages.1"
    vae = VAE(28, widths=(8, 8, 8, 8))
    assert [unit.name.split(".")[0] for unit in units(vae)] == ["encoder"] * 4 + ["decoder"] * 4
    assert len(units(vae, "decoder")) == 4
    assert len(units(HierarchicalVAE(28, 4, 2, widths=(8, 8, 8, 8)))) == 8 + 4  # one more per level


@pytest.mark.parametrize("within", ["", "decoder"])
def test_a_model_without_blocks_is_refused(within: str):
    with pytest.raises(ResvaeError, match=f"a Linear has no residual block.*{within}"):
        units(nn.Linear(2, 2), within)


def test_units_that_do_not_add_up_are_refused():
    model = classifier(PRE)
    assert summed(model) == units(model)
    for merge, name in (("none", "plain"), ("highway", "Highway"), (torch.maximum, "maximum")):
        with pytest.raises(ResvaeError, match=f"merged by sum; encoder.stages.0.0 is merged by {name}"):
            summed(classifier(replace(PRE, merge=merge)))


@pytest.mark.parametrize("block", [HE, PRE, PLAIN], ids=["original", "full_pre", "plain"])
def test_without_is_a_network_that_was_built_without_the_block(block: BlockConfig):
    model, x = classifier(block), torch.rand(2, 3, 8, 8)
    whole = model(x)
    removed = units(model)[4]
    h: list[torch.Tensor] = []
    with torch.no_grad(), replaced([(removed, removed.carried)]):
        hooks = [removed.block.register_forward_hook(lambda module, args, out: h.extend([*args, out]))]
        lesioned = model(x)
    hooks[0].remove()
    torch.testing.assert_close(h[0], h[1])  # after a ReLU, or without one: identity
    model.encoder.stages[1][1] = nn.Identity()
    torch.testing.assert_close(lesioned, model(x))
    assert (lesioned - whole).abs().max() > 1e-3


@pytest.mark.parametrize("block", [HE, PRE, PLAIN], ids=["original", "full_pre", "plain"])
def test_a_unit_is_its_connection_and_its_branch(block: BlockConfig):
    model = classifier(block)
    for unit in units(model):
        x = torch.rand(2, unit.block.in_channels, 8, 8)
        shape = (2, unit.block.channels, 8 // unit.block.stride, 8 // unit.block.stride)
        assert unit.carried(x).shape == unit.added(x).shape == shape
        if not unit.block.plain and block.order == "full_pre":
            torch.testing.assert_close(unit.block(x), unit.carried(x) + unit.added(x))


def test_everything_is_put_back_even_after_an_error():
    model, x = classifier(PRE), torch.rand(2, 3, 8, 8)
    whole = model(x)
    first, second = units(model)[1:3]
    with replaced([(first, second.block.forward), (second, first.block.forward)]):
        assert (model(x) - whole).abs().max() > 1e-4
    torch.testing.assert_close(model(x), whole, rtol=0, atol=0)
    with pytest.raises(ZeroDivisionError), replaced((unit, unit.carried) for unit in units(model)):
        raise ZeroDivisionError
    torch.testing.assert_close(model(x), whole, rtol=0, atol=0)
