import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import BlockConfig, ResidualBlock
from resvae.networks.blocks import ACTIVATIONS, SECOND_MOMENT

ORDERS = ["original", "norm_after_add", "relu_before_add", "relu_only_pre", "full_pre"]
ARTICLE = BlockConfig(order="original", norm="batch", activation="relu", conv_bias=True, stride_on="first")
BATCH = BlockConfig(kind="basic", norm="batch", activation="relu")


def example(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_type(block, *types):
    return [module for module in block.modules() if isinstance(module, types)]


def shaken(block):
    """Normalisations whose place in the order matters."""
    for norm in of_type(block, nn.BatchNorm2d):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return block


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stride_on", ["spatial", "first"])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_shapes(kind, order, stride_on, upsample):
    for shortcut, stride, up, (a, b) in itertools.product(
        ["zero_pad", "projection", "projection_everywhere"], [1, 2, 3], [False, True], [(4, 8), (8, 4), (4, 4)]
    ):
        config = BlockConfig(kind=kind, order=order, stride_on=stride_on, upsample=upsample, shortcut=shortcut)
        y = ResidualBlock(a, b, stride=stride, up=up, config=config)(torch.zeros(1, a, 6, 12))
        factor = stride if up else 1 / stride
        assert y.shape == (1, b, 6 * factor, 12 * factor), (shortcut, stride, up, a, b)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("original", lambda x, c, n: F.relu(x + n[1](c[1](F.relu(n[0](c[0](x))))))),
        ("norm_after_add", lambda x, c, n: F.relu(n[1](x + c[1](F.relu(n[0](c[0](x))))))),
        ("relu_before_add", lambda x, c, n: x + F.relu(n[1](c[1](F.relu(n[0](c[0](x))))))),
        ("relu_only_pre", lambda x, c, n: x + n[1](c[1](F.relu(n[0](c[0](F.relu(x))))))),
        ("full_pre", lambda x, c, n: x + c[1](F.relu(n[1](c[0](F.relu(n[0](x))))))),
    ],
)
def test_orders_are_those_of_he_2016_figure_4(order, expected):
    block = shaken(ResidualBlock(4, 4, config=replace(BATCH, order=order)))
    x = example(5, 4, 6, 6)
    torch.testing.assert_close(block(x), expected(x, of_type(block, nn.Conv2d), of_type(block, nn.BatchNorm2d)))


def test_a_projecting_pre_activation_block_shares_its_activation_with_the_projection():
    block = shaken(ResidualBlock(4, 6, stride=2, config=BATCH))
    first, second = of_type(block, nn.BatchNorm2d)  # and none of the projection's own
    conv1, conv2, projection = of_type(block, nn.Conv2d)
    x = example(5, 4, 6, 6)
    a = F.relu(first(x))
    torch.testing.assert_close(block(x), projection(a) + conv2(F.relu(second(conv1(a)))))


def test_the_block_after_the_stem_activates_before_the_split():
    for order, activated in (
        ("full_pre", lambda block, x: F.relu(of_type(block, nn.BatchNorm2d)[0](x))),
        ("relu_only_pre", lambda block, x: F.relu(x)),
    ):
        block = shaken(ResidualBlock(4, 4, config=replace(BATCH, order=order), first=True))
        x = example(5, 4, 6, 6)
        torch.testing.assert_close(block(x) - block.branch(block.before(x)), activated(block, x))
        assert len(of_type(block, nn.BatchNorm2d)) == 2


def test_shortcut_a_keeps_what_is_there_and_pads_with_zeros():
    x = example(2, 4, 6, 6)
    config = BlockConfig(shortcut="zero_pad")
    down = ResidualBlock(4, 10, stride=2, config=config).shortcut
    assert count(down) == 0
    assert torch.equal(down(x)[:, :4], x[:, :, ::2, ::2])
    assert not down(x)[:, 4:].any()
    up = ResidualBlock(4, 2, stride=2, up=True, config=config).shortcut
    assert torch.equal(up(x), x[:, :2].repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_shortcuts_b_and_c_project_where_they_should():
    def projections(shortcut, channels):
        return len(of_type(ResidualBlock(4, channels, config=BlockConfig(shortcut=shortcut)).shortcut, nn.Conv2d))

    assert [projections("projection", channels) for channels in (4, 8)] == [0, 1]
    assert [projections("projection_everywhere", channels) for channels in (4, 8)] == [1, 1]
    assert [projections("zero_pad", channels) for channels in (4, 8)] == [0, 0]


def test_a_plain_block_is_its_branch_alone():
    for shortcut in ("zero_pad", "projection", "projection_everywhere"):
        block = ResidualBlock(4, 8, stride=2, config=BlockConfig(merge="none", shortcut=shortcut), residual_scale=0.0)
        x = example(2, 4, 6, 6)
        assert torch.equal(block(x), block.branch(x))
        assert block(x).std() > 0.01  # nothing stands beside the branch: its scale is kept
        assert count(block) == count(block.branch)


def test_other_merges_get_both_paths():
    x = example(2, 4, 6, 6)
    block = ResidualBlock(4, 4, config=BlockConfig(merge=torch.maximum))
    torch.testing.assert_close(block(x), torch.maximum(x, block.branch(x)))
    half = ResidualBlock(4, 4, config=BlockConfig(merge="half"))
    torch.testing.assert_close(half(x), (x + half.branch(x)) / 2)


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
    for name, activation in ACTIVATIONS.items():
        moment = torch.trapezoid(density * activation()(u) ** 2, u)
        assert moment.item() == pytest.approx(SECOND_MOMENT[name], abs=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_branch_and_projection_keep_the_size_of_a_normal_input(activation, up, upsample):
    torch.manual_seed(0)
    config = BlockConfig(kind="basic", activation=activation, upsample=upsample)
    block = ResidualBlock(64, 128, stride=2, up=up, config=config)
    a = block.before(example(4, 64, 16, 16))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # the border sees the padding
    for y in (block.branch(a)[inside], block.shortcut(a)):
        assert 0.8 < y.square().mean().sqrt() < 1.25


@pytest.mark.parametrize("up", [False, True])
def test_the_articles_unit_has_its_stride_on_the_first_convolution(up):
    block = ResidualBlock(256, 512, stride=2, up=up, config=ARTICLE)
    strides = [conv.stride[0] for conv in of_type(block.branch, nn.Conv2d, nn.ConvTranspose2d)]
    assert strides == [2, 1, 1]
    # Keng's unit: 1x1 to 128, 3x3 in 128, 1x1 to 512 and the projection, each with bias and two weights of BN a channel
    convolutions = 256 * 128 + 9 * 128 * 128 + 128 * 512 + 256 * 512
    assert count(block) == convolutions + 3 * (128 + 128 + 512 + 512)


def test_the_default_bottleneck_has_its_stride_on_the_spatial_convolution():
    convolutions = of_type(ResidualBlock(8, 16, stride=2).branch, nn.Conv2d)
    assert [(conv.kernel_size[0], conv.stride[0], conv.out_channels) for conv in convolutions] == [
        (1, 1, 4),
        (3, 2, 4),
        (1, 1, 16),
    ]


def test_a_transposed_1x1_doubles_as_keras_does():
    transposed = of_type(ResidualBlock(4, 8, stride=2, up=True, config=ARTICLE).shortcut, nn.ConvTranspose2d)[0]
    nn.init.normal_(transposed.bias)
    x = example(2, 4, 5, 5)
    y = transposed(x)
    expected = transposed.bias[:, None, None].expand(2, 8, 10, 10).clone()
    expected[:, :, ::2, ::2] += torch.einsum("bchw,cd->bdhw", x, transposed.weight[:, :, 0, 0])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("stride", [2, 4])
def test_transposed_convolutions_leave_no_checkerboard(stride):
    block = ResidualBlock(1, 1, stride=stride, up=True, config=BlockConfig(kind="basic"))
    for transposed in of_type(block, nn.ConvTranspose2d):
        nn.init.ones_(transposed.weight)
        inside = transposed(torch.ones(1, 1, 6, 6))[..., stride:-stride, stride:-stride]
        assert inside.unique().numel() == 1


def test_convolutions_have_a_bias_where_no_normalisation_follows_or_the_config_says_so():
    for config, bias in (
        (BlockConfig(), True),
        (BlockConfig(norm="batch"), False),
        (BlockConfig(norm="batch", conv_bias=True), True),
        (BlockConfig(conv_bias=False), False),
    ):
        convolutions = of_type(ResidualBlock(4, 8, config=config), nn.Conv2d)
        assert len(convolutions) == 4
        assert all((conv.bias is not None) is bias for conv in convolutions)


@pytest.mark.parametrize("channels", [8, 12, 28, 64])
def test_group_normalisation_takes_any_width_and_keeps_images_apart(channels):
    block = ResidualBlock(3, channels, config=BlockConfig(norm="group", order="original"))
    x = example(4, 3, 6, 6)
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "wide"},
        {"order": "pre"},
        {"norm": "layer"},
        {"activation": "tanh"},
        {"shortcut": "A"},
        {"merge": "summ"},
        {"ratio": 0.0},
        {"upsample": "bilinear"},
        {"stride_on": "last"},
    ],
)
def test_a_wrong_field_is_named_with_its_value(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(ResvaeError, match=rf"{field}:? {value!r} is not allowed"):
        BlockConfig(**wrong)


def test_a_config_survives_json():
    config = BlockConfig(order="original", norm="group", residual_scale=0.5, conv_bias=True, gate_bias=-3.0)
    saved = json.loads(json.dumps(asdict(config)))
    assert BlockConfig(**saved) == config
    del saved["gate_bias"]  # as before there was one
    assert BlockConfig(**saved) == replace(config, gate_bias=-1.0)
