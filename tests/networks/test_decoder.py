import pytest
import torch
from helpers_networks import ARTICLE, count, example, of_type, twins
from torch import nn

from resvae.errors import ResvaeError
from resvae.networks import BlockConfig, ResNetDecoder, ResNetEncoder, vae_blocks

WIDTHS = (32, 24, 16, 8)


@pytest.mark.parametrize(("depth", "total"), [(28, 8_287_363), (40, 9_686_915), (70, 16_741_635), (100, 23_796_355)])
def test_the_articles_decoder_parameter_for_parameter(depth, total):
    with torch.device("meta"):
        stages = ResNetDecoder(256, blocks=vae_blocks(depth), widths=(256, 512, 1024, 2048), config=ARTICLE).stages
        entry = ResNetDecoder(256, blocks=(1,), widths=(64,), strides=(8,), config=ARTICLE).dense
    assert entry.out_features == 1024  # 4x4x64
    # The article's first stage takes these 64 channels, where this decoder's dense layer gives the stage's own 256 and
    # its first unit needs no projection: 256 - 64 inputs fewer of its first 1x1, and a projection with its BN more.
    difference = -(256 - 64) * 64 + 64 * 256 + 3 * 256
    ends = 256 * 1024 + 1024 + 2 * 1024 + 2048 * 3 + 3
    assert count(stages) + difference + ends == total


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize(
    ("image_shape", "strides"), [((3, 32, 32), (1, 2, 2, 2)), ((1, 48, 16), (2, 1, 4, 2)), ((2, 36, 24), (1, 3, 2, 2))]
)
def test_shapes(image_shape, strides, upsample):
    decoder = ResNetDecoder(
        5, image_shape, blocks=(1, 2, 1, 1), widths=WIDTHS, strides=strides, config=BlockConfig(upsample=upsample)
    )
    total = torch.tensor(strides).prod().item()
    assert decoder.in_shape == (32, image_shape[1] // total, image_shape[2] // total)
    assert decoder(example(2, 5)).shape == (2, *image_shape)
    assert list(map(len, decoder.stages)) == [1, 2, 1, 1]
    transposed = of_type(decoder, nn.ConvTranspose2d)
    assert len(transposed) == (2 * sum(s > 1 for s in strides) if upsample == "transposed" else 0)


def test_it_mirrors_the_encoder():
    widths, strides, blocks = WIDTHS[::-1], (1, 2, 2, 2), (1, 2, 3, 1)
    encoder = ResNetEncoder((3, 32, 32), blocks, widths, strides)
    decoder = ResNetDecoder(5, (3, 32, 32), None, blocks[::-1], widths[::-1], strides)
    x = example(2, 3, 32, 32)
    h = example(2, *encoder.out_shape)
    assert decoder.in_shape == encoder.out_shape
    for stage, finer in zip(decoder.stages, reversed(encoder.features(x)), strict=True):
        h = stage(h)
        assert h.shape == finer.shape


def test_a_latent_enters_through_the_dense_layer_alone():
    decoder = ResNetDecoder(5, widths=WIDTHS)
    z = example(2, 5)
    h = (z @ decoder.dense.weight.T + decoder.dense.bias).reshape(2, *decoder.in_shape)
    torch.testing.assert_close(decoder(z), decoder.decode_map(h))
    assert decoder.decode_map(example(1, 32, 6, 8)).shape == (1, 3, 48, 64)  # a map of any size


def test_a_pre_activation_network_ends_with_its_activation():
    decoder = ResNetDecoder(5, blocks=(1,), widths=(8,), strides=(2,), config=BlockConfig(norm="batch"))
    decoder.eval()
    h = example(2, 8, 4, 4)
    last = decoder.stages[0](h)
    norm, activation = decoder.final
    torch.testing.assert_close(decoder.decode_map(h), decoder.out(activation(norm(last))))
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(activation, nn.SiLU)


def test_it_gives_the_channels_a_likelihood_wants():
    assert ResNetDecoder(5, widths=WIDTHS, out_channels=100)(example(1, 5)).shape == (1, 100, 32, 32)
    assert ResNetDecoder(5, (1, 32, 32), widths=WIDTHS)(example(1, 5)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize("depth", [28, 1000])
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
def test_any_depth_starts_close_to_zero_and_feels_its_latent(depth, upsample):
    torch.manual_seed(0)
    blocks = vae_blocks(depth)[::-1]
    decoder = ResNetDecoder(16, blocks=blocks, widths=WIDTHS, config=BlockConfig(upsample=upsample))
    z = example(8, 16).requires_grad_()
    y = decoder(z)
    assert 0.02 < y.std() < 0.5
    assert y.std(0).mean() > 0.02  # between latents, not only between pixels
    (y * example(*y.shape, seed=1)).sum().backward()
    assert z.grad.norm(dim=1).min() > 0.1


def test_a_plain_decoder_of_a_thousand_layers_builds():
    decoder = ResNetDecoder(16, blocks=vae_blocks(1000)[::-1], widths=WIDTHS, config=BlockConfig(merge="none"))
    y = decoder(example(2, 16))
    assert y.isfinite().all()
    assert y.std() < 1e-6


def test_wrong_arguments_are_refused():
    for wrong, said in (
        ({"latent_dim": 0}, "latent_dim: 0"),
        ({"out_channels": 0}, "out_channels: 0"),
        ({"image_shape": (3, 30, 32)}, "30x32 .* 8 in all; the nearest to 30 are 24 and 32"),
        ({"image_shape": ()}, "image_shape"),
        ({"blocks": (1, 1)}, "one number per stage"),
        ({"strides": (1, 2, 0, 2)}, r"strides: \(1, 2, 0, 2\)"),
    ):
        with pytest.raises(ResvaeError, match=said):
            ResNetDecoder(**{"latent_dim": 4, **wrong})


@pytest.mark.parametrize("config", [BlockConfig(), ARTICLE, BlockConfig(upsample="nearest", norm="group")])
def test_copies_pickles_exports_and_compiled_graphs_agree(config):
    module, fresh = (ResNetDecoder(5, widths=WIDTHS, config=config).eval() for _ in range(2))
    x = example(2, 5)
    for twin in twins(module, fresh, x):
        assert torch.allclose(twin(x), module(x), rtol=1.3e-6, atol=1e-5)
