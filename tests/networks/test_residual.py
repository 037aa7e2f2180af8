import copy

import pytest
import torch
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import Highway, Residual
from resvae.networks.residual import make_merge


def example(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("sum", lambda x, fx: x + fx),
        ("product", lambda x, fx: x * fx),
        ("none", lambda x, fx: fx),
        (torch.maximum, torch.maximum),
    ],
)
def test_merges_are_what_their_names_say(merge, expected):
    x, module = example(2, 5), nn.Linear(5, 5)
    torch.testing.assert_close(Residual(module, merge)(x), expected(x, module(x)))


def test_a_residual_of_nothing_is_the_identity_and_passes_the_whole_gradient():
    module = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    x = example(1, 3, 4, 4).requires_grad_()
    y = Residual(module)(x)
    y.sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, torch.ones_like(x))


def test_any_shape_preserving_model_can_be_wrapped_and_nested():
    inner = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 6))
    x = example(4, 7, 6)
    torch.testing.assert_close(Residual(Residual(inner))(x), 2 * x + inner(x))


def test_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ResvaeError, match=r"\(2, 5\) into \(2, 4\)"):
        Residual(nn.Linear(5, 4))(example(2, 5))
    with pytest.raises(ResvaeError, match=r"\(2, 5\) into \(2, 1\)"):  # would broadcast without a word
        Residual(nn.Linear(5, 1))(example(2, 5))


@pytest.mark.parametrize("dim", [1, -1])
def test_highway_mixes_by_its_gate(dim):
    highway = Highway(3, bias=-2.0, dim=dim)
    shape = (2, 3, 4, 5) if dim == 1 else (2, 4, 5, 3)
    x, fx = example(*shape), example(*shape, seed=1)
    y = highway(x, fx)
    at = (0, slice(None), 2, 3) if dim == 1 else (0, 2, 3)  # one place, all channels
    t = torch.sigmoid(highway.gate.weight @ x[at] - 2)
    torch.testing.assert_close(y[at], t * fx[at] + (1 - t) * x[at])


def test_highway_first_carries_its_input():
    x, fx = torch.zeros(1, 8, 2, 2), torch.ones(1, 8, 2, 2)
    for bias, transform in ((-1.0, 0.2689), (-3.0, 0.0474)):
        torch.testing.assert_close(Highway(8, bias)(x, fx), torch.full_like(x, transform), atol=1e-4, rtol=0)


def test_highway_takes_an_input_of_another_precision_than_the_branch():
    wrapped = Residual(nn.Linear(8, 8), Highway(8, dim=-1))
    x = example(4, 8)
    expected = wrapped(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(wrapped(x).float(), expected, atol=0.05, rtol=0.05)


def test_a_merge_with_weights_is_part_of_the_model():
    residual = Residual(nn.Linear(3, 3), Highway(3, dim=-1))
    assert {name.split(".")[0] for name, _ in residual.named_parameters()} == {"module", "merge"}
    twin = copy.deepcopy(residual)
    twin.load_state_dict(residual.state_dict())
    assert torch.equal(twin(example(2, 3)), residual(example(2, 3)))


def test_highway_by_name_needs_channels_and_unknown_names_are_refused():
    assert isinstance(make_merge("highway", 4), Highway)
    with pytest.raises(ResvaeError, match=r"Highway\(channels\)"):
        Residual(nn.Linear(3, 3), "highway")
    with pytest.raises(ResvaeError, match="'summ' is not allowed; sum, product, none, highway"):
        Residual(nn.Linear(3, 3), "summ")
