from dataclasses import replace

import pytest
import torch
from helpers_networks import ARTICLE, HE, count, example, twins
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import BlockConfig, ResNetEncoder, cifar_blocks, imagenet_blocks, vae_blocks

WIDTHS = (8, 16, 24, 32)


@pytest.mark.parametrize(("depth", "total"), [(28, 18_485_824), (40, 19_885_376), (70, 26_940_096), (100, 33_994_816)])
def test_the_articles_encoder_parameter_for_parameter(depth, total):
    with torch.device("meta"):
        encoder = ResNetEncoder((3, 32, 32), vae_blocks(depth), (256, 512, 1024, 2048), stem="none", config=ARTICLE)
        tail = nn.Linear(2048, 1024), nn.BatchNorm1d(1024), nn.Linear(16384, 256), nn.Linear(16384, 256)
    assert encoder.out_shape == (2048, 4, 4)
    assert count(encoder, *tail) == total


def millions(depth, widths, config, stem_width=None):
    """Parameters of He's CIFAR network, in millions with the digits that the papers give."""
    kind, blocks = cifar_blocks(depth)
    config = replace(config, kind=kind)
    with torch.device("meta"):
        encoder = ResNetEncoder((3, 32, 32), blocks, widths, (1, 2, 2), stem_width=stem_width, config=config)
        total = count(encoder, nn.Linear(widths[-1], 10)) / 1e6
    return round(total, 2 if total < 1 else 1)


def test_he_2015_table_6():
    reported = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}
    assert {depth: millions(depth, (16, 32, 64), HE) for depth in reported} == reported


def test_he_2016_pre_activation_bottlenecks():
    config = BlockConfig(norm="batch", activation="relu", residual_scale=1.0)
    # the paper rounds the second to 10.2
    assert [millions(depth, (64, 128, 256), config, 16) for depth in (164, 1001)] == [1.7, 10.3]


@pytest.mark.parametrize(("depth", "total"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (152, 60_192_808)])
def test_imagenet_networks_have_torchvisions_counts(depth, total):
    kind, blocks = imagenet_blocks(depth)
    widths = (64, 128, 256, 512) if kind == "basic" else (256, 512, 1024, 2048)
    config = replace(HE, kind=kind, shortcut="projection")
    with torch.device("meta"):
        encoder = ResNetEncoder((3, 224, 224), blocks, widths, stem="imagenet", stem_width=64, config=config)
        assert count(encoder, nn.Linear(widths[-1], 1000)) == total
    assert encoder.out_shape == (widths[-1], 7, 7)


@pytest.mark.parametrize("order", ["original", "full_pre", "relu_only_pre"])
@pytest.mark.parametrize(
    ("image_shape", "strides", "stem"),
    [
        ((3, 32, 32), (1, 2, 2, 2), "cifar"),
        ((1, 48, 16), (2, 1, 4, 2), "cifar"),
        ((2, 64, 32), (1, 2, 1, 2), "imagenet"),
        ((4, 24, 24), (1, 2, 3, 2), "none"),
    ],
)
def test_channels_and_strides_describe_the_pyramid(image_shape, strides, stem, order):
    encoder = ResNetEncoder(image_shape, (1, 2, 1, 1), WIDTHS, strides, stem, config=BlockConfig(order=order))
    (_, h, w), x = image_shape, example(2, *image_shape)
    maps = encoder.features(x)
    said = [(2, channels, h // s, w // s) for channels, s in zip(encoder.channels, encoder.strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == said
    assert said[-1][1:] == encoder.out_shape
    assert torch.equal(encoder(x), maps[-1])
    assert list(map(len, encoder.stages)) == [1, 2, 1, 1]


def test_one_normalisation_and_activation_between_the_stem_and_the_first_block():
    for order in ("full_pre", "original"):
        for stem, expected in (("cifar", ["Conv2d", "BatchNorm2d", "ReLU"]), ("none", [])):
            config = BlockConfig(order=order, norm="batch", activation="relu")
            encoder = ResNetEncoder((8, 32, 32), widths=WIDTHS, stem=stem, config=config)
            found = [*encoder.stem, *encoder.stages[0][0].before]
            assert [type(layer).__name__ for layer in found] == expected


def test_a_pre_activation_network_ends_with_its_activation():
    x = example(2, 3, 32, 32)
    for order in ("full_pre", "original"):
        encoder = ResNetEncoder(widths=WIDTHS, config=BlockConfig(order=order, norm="batch", activation="relu"))
        assert len(list(encoder.final.modules())) == (3 if order == "full_pre" else 1)
        assert encoder(x).min() == 0
        assert encoder.features(x)[0].min() < 0 or order == "original"


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_a_thousand_layers_start_with_activations_and_gradients_of_order_one(kind, activation):
    torch.manual_seed(0)
    blocks = vae_blocks(1000, kind="bottleneck")
    encoder = ResNetEncoder(blocks=blocks, widths=WIDTHS, config=BlockConfig(kind=kind, activation=activation))
    h = encoder(example(4, 3, 32, 32).tanh())  # in [-1, 1], as images are
    assert 0.1 < h.std() < 3
    (h * torch.randn_like(h)).sum().backward()
    stage = encoder.stages[2]
    first, last = (block.branch[-1].weight.grad.norm() for block in (stage[0], stage[-1]))
    assert 0.1 < first / last < 10


def test_the_branches_of_a_network_share_its_variance():
    torch.manual_seed(0)
    shallow, deep = (
        ResNetEncoder(blocks=(n, n), widths=(8, 8), strides=(1, 1)).stages[1][0].branch[-1].weight.std()
        for n in (2, 50)
    )
    assert 4 < shallow / deep < 6.2  # sqrt(100 / 4) = 5


def test_a_plain_network_of_a_thousand_layers_builds_and_loses_its_input():
    encoder = ResNetEncoder(blocks=vae_blocks(1000), widths=WIDTHS, config=BlockConfig(merge="none"))
    h = encoder(example(2, 3, 32, 32))
    assert h.isfinite().all()
    assert h.std() < 1e-6
    assert not any("shortcut" in name for name, _ in encoder.named_parameters())


def test_an_image_does_not_feel_its_batch_mates():
    x = example(3, 3, 32, 32)
    for norm in ("none", "group", "batch"):
        encoder = ResNetEncoder(widths=WIDTHS, config=BlockConfig(norm=norm)).eval()
        torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]), atol=1e-5, rtol=1e-4)


def test_wrong_arguments_are_refused():
    for wrong, said in (
        ({"image_shape": (3, 30, 32)}, "30x32 .* 8 in all; the nearest to 30 are 24 and 32"),
        ({"image_shape": (3, 32, 4)}, "the nearest to 4 are 8 and 16"),
        ({"image_shape": (32, 32)}, "image_shape"),
        ({"image_shape": (0, 32, 32)}, "image_shape"),
        ({"blocks": (1, 1, 1)}, r"blocks \(1, 1, 1\).* one number per stage"),
        ({"widths": (8, 0, 8, 8)}, r"widths: \(8, 0, 8, 8\)"),
        ({"blocks": (), "widths": (), "strides": ()}, r"blocks: \(\)"),
        ({"stem": "7x7"}, "stem: '7x7' .* cifar, imagenet, none"),
        ({"stem_width": 0}, "stem_width: 0"),
    ):
        with pytest.raises(ResvaeError, match=said):
            ResNetEncoder(**wrong)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (32, 3, 32)])
def test_wrong_images_are_refused_with_both_shapes(shape):
    with pytest.raises(ResvaeError, match=rf"\({', '.join(map(str, shape))}\) .* 3 channels"):
        ResNetEncoder(widths=WIDTHS)(example(*shape))


@pytest.mark.parametrize("config", [BlockConfig(), HE, BlockConfig(merge="highway", norm="group")])
def test_copies_pickles_exports_and_compiled_graphs_agree(config):
    module, fresh = (ResNetEncoder(widths=WIDTHS, config=config).eval() for _ in range(2))
    x = example(2, 3, 32, 32)
    for twin in twins(module, fresh, x):
        assert torch.allclose(twin(x), module(x), rtol=1.3e-6, atol=1e-5)


def test_it_is_the_backbone_of_a_detector():
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork

    class Backbone(nn.Module):
        def __init__(self, encoder, out_channels=256):
            super().__init__()
            self.encoder, self.out_channels = encoder, out_channels
            self.pyramid = FeaturePyramidNetwork(list(encoder.channels), out_channels)

        def forward(self, x):
            return self.pyramid({str(i): maps for i, maps in enumerate(self.encoder.features(x))})

    torch.manual_seed(0)
    encoder = ResNetEncoder((3, 32, 32), (1, 1, 1), (4, 8, 12), (1, 2, 2))
    backbone = Backbone(encoder, 8)
    maps = backbone(torch.randn(2, 3, 64, 32))  # a detector's images have any size that the strides divide
    assert [tuple(each.shape) for each in maps.values()] == [(2, 8, 64, 32), (2, 8, 32, 16), (2, 8, 16, 8)]
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    detector = FasterRCNN(backbone, 2, rpn_anchor_generator=anchors, min_size=32, max_size=32, _skip_resize=True)
    boxes = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 32, 32)], [boxes])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.stages.parameters())
