import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from helpers_networks import ARTICLE, count, example, of_type
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import BlockConfig, ResidualBlock
from resvae.networks.blocks import ACTIVATIONS, FEW, SECOND_MOMENT, StridedPointwise, TransposedPointwise

# He 2016, figure 4
ORDERS = {
    "original": lambda x, c, n: F.relu(x + n[1](c[1](F.relu(n[0](c[0](x)))))),
    "norm_after_add": lambda x, c, n: F.relu(n[1](x + c[1](F.relu(n[0](c[0](x)))))),
    "relu_before_add": lambda x, c, n: x + F.relu(n[1](c[1](F.relu(n[0](c[0](x)))))),
    "relu_only_pre": lambda x, c, n: x + n[1](c[1](F.relu(n[0](c[0](F.relu(x)))))),
    "full_pre": lambda x, c, n: x + c[1](F.relu(n[1](c[0](F.relu(n[0](x)))))),
}
SHORTCUTS = ["zero_pad", "projection", "projection_everywhere"]
BATCH = BlockConfig(kind="basic", norm="batch", activation="relu")


def shaken(block):
    """Normalisations whose place in the order matters."""
    for norm in of_type(block, nn.BatchNorm2d):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return block


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stride_on", ["spatial", "first"])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_shapes(kind, order, stride_on, upsample):
    channels = [(4, 8), (8, 4), (4, 4)]
    for shortcut, stride, up, (a, b) in itertools.product(SHORTCUTS, [1, 2, 3], [False, True], channels):
        config = BlockConfig(kind=kind, order=order, stride_on=stride_on, upsample=upsample, shortcut=shortcut)
        y = ResidualBlock(a, b, stride=stride, up=up, config=config)(torch.zeros(1, a, 6, 12))
        factor = stride if up else 1 / stride
        assert y.shape == (1, b, 6 * factor, 12 * factor), (shortcut, stride, up, a, b)


@pytest.mark.parametrize("order", ORDERS)
def test_orders_are_those_of_he_2016_figure_4(order):
    block = shaken(ResidualBlock(4, 4, config=replace(BATCH, order=order)))
    x = example(5, 4, 6, 6)
    torch.testing.assert_close(block(x), ORDERS[order](x, of_type(block, nn.Conv2d), of_type(block, nn.BatchNorm2d)))


def test_a_projecting_pre_activation_block_shares_its_activation_with_the_projection():
    block = shaken(ResidualBlock(4, 6, stride=2, config=BATCH))
    first, second = of_type(block, nn.BatchNorm2d)  # and none of the projection's own
    conv1, conv2, projection = of_type(block, nn.Conv2d)
    x = example(5, 4, 6, 6)
    a = F.relu(first(x))
    torch.testing.assert_close(block(x), projection(a) + conv2(F.relu(second(conv1(a)))))


@pytest.mark.parametrize("order", ["full_pre", "relu_only_pre"])
def test_the_block_after_the_stem_activates_before_the_split(order):
    block = shaken(ResidualBlock(4, 4, config=replace(BATCH, order=order), first=True))
    norms, x = of_type(block, nn.BatchNorm2d), example(5, 4, 6, 6)
    activated = F.relu(norms[0](x) if order == "full_pre" else x)
    torch.testing.assert_close(block(x) - block.branch(block.before(x)), activated)
    assert len(norms) == 2


def test_shortcut_a_keeps_what_is_there_and_pads_with_zeros():
    x = example(2, 4, 6, 6)
    config = BlockConfig(shortcut="zero_pad")
    down = ResidualBlock(4, 10, stride=2, config=config).shortcut
    assert count(down) == 0
    assert torch.equal(down(x)[:, :4], x[:, :, ::2, ::2])
    assert not down(x)[:, 4:].any()
    up = ResidualBlock(4, 2, stride=2, up=True, config=config).shortcut
    assert torch.equal(up(x), x[:, :2].repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(("shortcut", "expected"), [*zip(SHORTCUTS, ([0, 0], [0, 1], [1, 1]), strict=True)])
def test_shortcuts_project_where_they_should(shortcut, expected):
    blocks = [ResidualBlock(4, channels, config=BlockConfig(shortcut=shortcut)) for channels in (4, 8)]
    assert [len(of_type(block.shortcut, nn.Conv2d)) for block in blocks] == expected


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_plain_block_is_its_branch_alone(shortcut):
    block = ResidualBlock(4, 8, stride=2, config=BlockConfig(merge="none", shortcut=shortcut), residual_scale=0.0)
    x = example(2, 4, 6, 6)
    assert torch.equal(block(x), block.branch(x))
    assert block(x).std() > 0.01  # nothing stands beside the branch: its scale is kept
    assert count(block) == count(block.branch)


@pytest.mark.parametrize(("merge", "expected"), [(torch.maximum, torch.maximum), ("half", lambda x, fx: (x + fx) / 2)])
def test_other_merges_get_both_paths(merge, expected):
    x, block = example(2, 4, 6, 6), ResidualBlock(4, 4, config=BlockConfig(merge=merge))
    torch.testing.assert_close(block(x), expected(x, block.branch(x)))


@pytest.mark.parametrize("merge", ["highway", "shortcut_gate"])
def test_gates_are_as_wide_as_the_block_and_start_at_their_bias(merge):
    for config, bias in ((BlockConfig(merge=merge), -1.0), (BlockConfig(merge=merge, gate_bias=-6.0), -6.0)):
        gate = ResidualBlock(4, 8, config=config).merge.gate
        assert gate.weight.shape == (8, 8)
        assert torch.equal(gate.bias, torch.full((8,), bias))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_residual_scale_scales_the_branch(order, norm):
    outputs = []
    for scale in (1.0, 0.25, 0.0):
        torch.manual_seed(0)
        block = ResidualBlock(8, 8, config=BlockConfig(order=order, norm=norm, activation="relu"), residual_scale=scale)
        outputs.append(block.branch(example(4, 8, 6, 6)))
    assert outputs[0].std() > 0.1
    torch.testing.assert_close(outputs[1], 0.25 * outputs[0])
    assert not outputs[2].any()


def test_second_moments():
    u = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-(u**2) / 2) / (2 * torch.pi) ** 0.5
    moments = {name: torch.trapezoid(density * f()(u) ** 2, u).item() for name, f in ACTIVATIONS.items()}
    assert moments == pytest.approx(SECOND_MOMENT, abs=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_branch_and_projection_keep_the_size_of_a_normal_input(activation, up, upsample):
    torch.manual_seed(0)
    config = BlockConfig(kind="basic", activation=activation, upsample=upsample)
    block = ResidualBlock(64, 128, stride=2, up=up, config=config)
    a = block.before(example(4, 64, 16, 16))
    for y in (block.branch(a)[..., 2:-2, 2:-2], block.shortcut(a)):  # the border sees the padding
        assert 0.8 < y.square().mean().sqrt() < 1.25


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(("config", "strides"), [(ARTICLE, [2, 1, 1]), (BlockConfig(), [1, 2, 1])])
def test_a_bottleneck_has_its_stride_on_the_spatial_convolution_and_the_articles_on_the_first(config, strides, up):
    block = ResidualBlock(256, 512, stride=2, up=up, config=config)
    convolutions = of_type(block.branch, nn.Conv2d, nn.ConvTranspose2d)
    assert [conv.stride[0] for conv in convolutions] == strides
    assert [conv.out_channels for conv in convolutions] == [128, 128, 512]
    assert [conv.kernel_size[0] for conv in convolutions] == [1, 4 if up and config != ARTICLE else 3, 1]
    if config == ARTICLE:
        # Keng's unit: 1x1, 3x3, 1x1 and the projection, each with bias and two weights of BN per channel
        weights = 256 * 128 + 9 * 128 * 128 + 128 * 512 + 256 * 512
        assert count(block) == weights + 3 * (128 + 128 + 512 + 512)


def test_a_transposed_1x1_doubles_as_keras_does():
    transposed = of_type(ResidualBlock(4, 8, stride=2, up=True, config=ARTICLE).shortcut, nn.ConvTranspose2d)[0]
    nn.init.normal_(transposed.bias)
    x = example(2, 4, 5, 5)
    expected = transposed.bias[:, None, None].expand(2, 8, 10, 10).clone()
    expected[:, :, ::2, ::2] += torch.einsum("bchw,cd->bdhw", x, transposed.weight[:, :, 0, 0])
    torch.testing.assert_close(transposed(x), expected)


@pytest.mark.parametrize("stride", [2, 4])
def test_transposed_convolutions_leave_no_checkerboard(stride):
    block = ResidualBlock(1, 1, stride=stride, up=True, config=BlockConfig(kind="basic"))
    for transposed in of_type(block, nn.ConvTranspose2d):
        nn.init.ones_(transposed.weight)
        inside = transposed(torch.ones(1, 1, 6, 6))[..., stride:-stride, stride:-stride]
        assert inside.unique().numel() == 1


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("conv_bias", [None, True, False])
def test_convolutions_have_a_bias_where_no_normalisation_follows_or_the_config_says_so(norm, conv_bias):
    block = ResidualBlock(4, 8, config=BlockConfig(norm=norm, conv_bias=conv_bias))
    expected = norm == "none" if conv_bias is None else conv_bias
    assert [conv.bias is not None for conv in of_type(block, nn.Conv2d)] == [expected] * 4


def test_group_normalisation_has_8_channels_per_group_or_one_group():
    assert [BlockConfig(norm="group").make_norm(n).num_groups for n in (8, 12, 28, 64)] == [1, 1, 1, 8]


def test_a_wrong_field_is_named_with_its_value():
    wrong = {"kind": "wide", "order": "pre", "norm": "layer", "activation": "tanh", "shortcut": "A", "merge": "summ"}
    for field, value in (wrong | {"ratio": 0.0, "upsample": "bilinear", "stride_on": "last"}).items():
        with pytest.raises(ResvaeError, match=rf"{field}:? {value!r} is not allowed"):
            BlockConfig(**{field: value})


def test_a_config_survives_json():
    config = BlockConfig(order="original", norm="group", residual_scale=0.5, conv_bias=True, gate_bias=-3.0)
    saved = json.loads(json.dumps(asdict(config)))
    assert BlockConfig(**saved) == config
    del saved["gate_bias"]  # as before there was one
    assert BlockConfig(**saved) == replace(config, gate_bias=-1.0)


def test_the_inner_width_of_a_bottleneck_never_falls_under_the_least():
    for channels, ratio, least, inner in ((32, 0.25, 16, 16), (32, 0.25, 1, 8), (128, 0.25, 16, 32), (8, 0.01, 1, 1)):
        block = ResidualBlock(8, channels, config=BlockConfig(ratio=ratio, min_inner=least))
        shapes = [layer.weight.shape[0] for layer in block.branch if isinstance(layer, nn.Conv2d)]
        assert shapes == [inner, inner, channels]
    with pytest.raises(ResvaeError, match=r"block\.min_inner: 0 is not allowed; at least 1"):
        BlockConfig(min_inner=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [2, 3])
def test_pointwise_convolutions_of_few_channels_are_those_of_torch(stride, bias):
    x = example(2, 3, 7, 6).double()
    for mine, torchs, options in (
        (StridedPointwise, nn.Conv2d, {}),
        (TransposedPointwise, nn.ConvTranspose2d, {"output_padding": stride - 1}),
    ):
        module = mine(3, 5, 1, stride, bias=bias, **options).double()
        twin = torchs(3, 5, 1, stride, bias=bias, **options).double()
        twin.load_state_dict(module.state_dict())
        found, wanted = module(x), twin(x)
        torch.testing.assert_close(found, wanted)
        found.square().sum().backward()
        wanted.square().sum().backward()
        for a, b in zip(module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("stride_on", ["spatial", "first"])
@pytest.mark.parametrize("up", [False, True])
def test_gradients_of_few_channels_are_exact_in_the_layout_of_training(up, stride_on):
    for a, b in itertools.product((1, 3, 4, 8, FEW), repeat=2):
        block = ResidualBlock(a, b, stride=2, up=up, config=BlockConfig(stride_on=stride_on))
        exact = ResidualBlock(a, b, stride=2, up=up, config=BlockConfig(stride_on=stride_on)).double()
        exact.load_state_dict(block.state_dict())
        block = block.to(memory_format=torch.channels_last)
        x = example(16, a, 8, 8)
        for _ in range(3):  # memory that was written past shows later
            block.zero_grad()
            block(x.to(memory_format=torch.channels_last)).square().mean().backward()
        exact(x.double()).square().mean().backward()
        for mine, wanted in zip(block.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6)
