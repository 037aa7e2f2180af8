import copy
import pickle
import re

import pytest
import torch
from helpers_networks import example
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, unpack_sequence

from resvae.errors import ResvaeError
from resvae.networks import Highway, Residual, ResNetDecoder, ResNetEncoder, ShortcutGate, gate_bias
from resvae.networks.residual import make_merge

MERGES = {
    "sum": lambda x, fx: x + fx,
    "product": lambda x, fx: x * fx,
    "none": lambda x, fx: fx,
    "half": lambda x, fx: (x + fx) / 2,
    torch.maximum: torch.maximum,
}


@pytest.mark.parametrize("merge", MERGES)
def test_merges_are_what_their_names_say(merge):
    x, module = example(2, 5), nn.Linear(5, 5)
    torch.testing.assert_close(Residual(module, merge)(x), MERGES[merge](x, module(x)))


def test_any_shape_preserving_model_can_be_wrapped_and_nested():
    inner = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 6))
    x = example(4, 7, 6)
    torch.testing.assert_close(Residual(Residual(inner))(x), 2 * x + inner(x))
    lstm = nn.LSTM(6, 6)
    torch.testing.assert_close(Residual(Residual(lstm))(x)[0], 2 * x + lstm(x)[0])
    encoder = ResNetEncoder((1, 8, 8), (1, 1), (4, 4), (1, 2))
    model = nn.Sequential(encoder, nn.Flatten(), ResNetDecoder(64, (1, 8, 8), None, (1, 1), (4, 4), (1, 2)))
    x = example(2, 1, 8, 8)
    torch.testing.assert_close(Residual(model)(x), x + model(x))


def test_another_shape_is_refused_with_both_shapes():
    for module, x, said in (
        (nn.Linear(5, 4), example(2, 5), "(2, 5) into (2, 4)"),
        (nn.Linear(5, 1), example(2, 5), "(2, 5) into (2, 1)"),  # would broadcast without a word
        (nn.GRU(5, 5, bidirectional=True), example(7, 2, 5), "(7, 2, 5) into (7, 2, 10), the first of 2 outputs"),
        (nn.LSTM(5, 4), packed(), "(6, 5) into (6, 4), packed data, the first of 2 outputs"),
        (Apply(lambda x: pad_packed_sequence(x)[0]), packed(), "PackedSequence into (3, 3, 5)"),
    ):
        with pytest.raises(ResvaeError, match=re.escape(f"{said}; both")):
            Residual(module)(x)


RECURRENT = [nn.LSTM(6, 6), nn.GRU(6, 6, num_layers=2, batch_first=True)]
RECURRENT += [nn.LSTM(6, 3, bidirectional=True, batch_first=True), nn.GRU(6, 3, num_layers=2, bidirectional=True)]


@pytest.mark.parametrize("merge", ["sum", "product", Highway(6, dim=-1)])
@pytest.mark.parametrize("layer", RECURRENT)
@pytest.mark.parametrize("shape", [(5, 2, 6), (5, 6)])
def test_recurrent_layers_have_their_output_merged_and_their_state_passed_on(layer, merge, shape):
    x = example(*shape)
    y, state = Residual(layer, merge)(x)
    fx, expected = layer(x)
    torch.testing.assert_close(y, make_merge(merge)(x, fx))
    torch.testing.assert_close(state, expected)


def test_further_arguments_reach_the_module():
    x, h = example(5, 2, 6), example(1, 2, 6, seed=1)
    layer = nn.GRU(6, 6)
    y, last = Residual(layer)(x, hx=h)
    torch.testing.assert_close(y, x + layer(x, h)[0])
    torch.testing.assert_close(Residual(layer)(x, h), (y, last))
    assert not torch.allclose(y, Residual(layer)(x)[0])
    attention = nn.MultiheadAttention(6, 2)
    y, weights = Residual(attention)(x, x, x, need_weights=False)
    torch.testing.assert_close(y, x + attention(x, x, x)[0])
    assert weights is None


def packed(lengths=(1, 3, 2), channels=5):
    return pack_sequence([example(t, channels, seed=t) for t in lengths], enforce_sorted=False)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("merge", ["sum", Highway(6, dim=-1), Highway(6), ShortcutGate(6, dim=-1)])
@pytest.mark.parametrize("layer", [nn.LSTM(6, 6), nn.GRU(6, 3, bidirectional=True)])
def test_packed_sequences_are_merged_as_each_sequence_alone_would_be(layer, merge):
    x = packed(channels=6)
    y, state = Residual(layer, merge)(x)
    torch.testing.assert_close(state, layer(x)[1])
    for sequence, merged in zip(unpack_sequence(x), unpack_sequence(y), strict=True):
        alone = sequence[:, None]  # T 1 C
        expected = make_merge(merge)(sequence, layer(alone)[0][:, 0])
        torch.testing.assert_close(merged, expected)


def test_stacks_of_packed_layers():
    stack = nn.Sequential(*[m for _ in range(2) for m in (Residual(nn.GRU(5, 5)), Apply(lambda outputs: outputs[0]))])
    y = Residual(stack)(packed())
    torch.testing.assert_close(y.data, packed().data + stack(packed()).data)
    assert torch.equal(y.unsorted_indices, packed().unsorted_indices)


def test_a_packed_sequence_in_another_order_or_of_other_lengths_is_refused():
    def repacked(change):
        return Residual(Apply(lambda x: pack_sequence(change(unpack_sequence(x)), enforce_sorted=False)))

    torch.testing.assert_close(repacked(list)(packed()).data, 2 * packed().data)
    for change in (lambda parts: parts[::-1], lambda parts: [torch.cat(parts[:2]), *parts[2:]]):
        with pytest.raises(ResvaeError, match="changes lengths or order of a PackedSequence"):
            repacked(change)(packed())


@pytest.mark.parametrize("merge", ["sum", torch.maximum, Highway(6, dim=-1)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 6), lambda: nn.LSTM(6, 3, bidirectional=True)])
def test_copies_and_files_keep_it_with_the_weights_of_its_merge(make, merge):
    wrapped, other = Residual(make(), merge), Residual(make(), copy.deepcopy(merge))
    x = example(5, 2, 6)
    other.load_state_dict(wrapped.state_dict())
    parts = {"module", "merge"} if isinstance(merge, Highway) else {"module"}
    assert {name.split(".")[0] for name, _ in wrapped.named_parameters()} == parts
    for twin in (other, copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        torch.testing.assert_close(twin(x), wrapped(x), rtol=0, atol=0)


@pytest.mark.parametrize("merge", ["sum", Highway(3)])
def test_export_and_compile(merge):
    wrapped = Residual(Residual(nn.Conv2d(3, 3, 3, padding=1), merge))
    x = example(2, 3, 4, 4)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(wrapped, (x,), dynamic_shapes={"x": batch}).module()
    compiled = torch.compile(wrapped, backend="eager", fullgraph=True)
    for images in (x, example(5, 3, 4, 4)):
        torch.testing.assert_close(exported(images), wrapped(images))
        torch.testing.assert_close(compiled(images), wrapped(images))


def test_compile_around_a_recurrent_layer():
    wrapped = Residual(nn.LSTM(6, 3, bidirectional=True))
    x = example(5, 2, 6)
    torch.testing.assert_close(torch.compile(wrapped, backend="eager")(x), wrapped(x))


@pytest.mark.parametrize(
    ("gate", "expected"),
    [(Highway, lambda x, fx, t: t * fx + (1 - t) * x), (ShortcutGate, lambda x, fx, t: fx + (1 - t) * x)],
)
@pytest.mark.parametrize("dim", [1, -1])
def test_gates_mix_as_in_he_2016_table_1(gate, expected, dim):
    merge = gate(3, bias=-2.0, dim=dim)
    shape = (2, 3, 4, 5) if dim == 1 else (2, 4, 5, 3)
    x, fx = example(*shape), example(*shape, seed=1)
    y = merge(x, fx)
    at = (0, slice(None), 2, 3) if dim == 1 else (0, 2, 3)  # one place, all channels
    torch.testing.assert_close(y[at], expected(x[at], fx[at], torch.sigmoid(merge.gate.weight @ x[at] - 2)))


def test_gate_bias_by_depth():
    assert [gate_bias(depth) for depth in (4, 10, 20, 30)] == [-1, -1, -2, -3]  # Srivastava 2015
    assert [gate_bias(depth) for depth in (56, 110, 1000)] == [-5.6, -6, -6]  # He 2016: -6 at 110


def test_highway_takes_an_input_of_another_precision_than_the_branch():
    wrapped = Residual(nn.Linear(8, 8), Highway(8, dim=-1))
    x = example(4, 8)
    expected = wrapped(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(wrapped(x).float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("name", "gate"), [("highway", Highway), ("shortcut_gate", ShortcutGate)])
def test_gates_by_name_need_channels(name, gate):
    made = make_merge(name, 4, bias=-3.0)
    assert type(made) is gate
    assert torch.equal(made.gate.bias, torch.full((4,), -3.0))
    with pytest.raises(ResvaeError, match=rf"{name} needs .* {gate.__name__}\(channels\)"):
        Residual(nn.Linear(3, 3), name)


def test_unknown_merges_are_refused():
    allowed = "sum, product, none, half, highway, shortcut_gate or a callable"
    with pytest.raises(ResvaeError, match=f"'summ' is not allowed; {allowed}"):
        Residual(nn.Linear(3, 3), "summ")
