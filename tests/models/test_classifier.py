import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resvae.errors import ResvaeError
from resvae.models import VAE, ResNetClassifier
from resvae.networks import BlockConfig, ResNetDecoder


def small_vae(seed=0):
    torch.manual_seed(seed)
    return VAE((1, 1), 4, (3, 8, 8), (8, 16), (1, 2)).eval()


def labelled(num=24):
    """Three classes: the colour that stands out."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num) % 3
    x = torch.randint(0, 128, (num, 3, 8, 8), generator=generator, dtype=torch.uint8)
    x[torch.arange(num), y] += 100
    return x, y


def train(parameters, loss_of, steps, rate=5e-3):
    optimizer = torch.optim.Adam(parameters, rate)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_he_2015_table_6(depth, millions):
    with torch.device("meta"):
        classifier = ResNetClassifier(depth=depth)
        logits = classifier(torch.empty(2, 3, 32, 32, dtype=torch.uint8))
    assert float(f"{sum(p.numel() for p in classifier.parameters()) / 1e6:.2g}") == millions
    assert logits.shape == (2, 10)
    weighted = [
        name
        for name, m in classifier.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and ".shortcut" not in name
    ]
    assert len(weighted) == depth


def test_he_2016_bottlenecks():
    block = BlockConfig(norm="batch", activation="relu", residual_scale=1.0)
    with torch.device("meta"):
        classifier = ResNetClassifier(depth=164, block=block)
    assert round(sum(p.numel() for p in classifier.parameters()) / 1e6, 1) == 1.7
    assert classifier.encoder.stem[0].out_channels == 16
    assert classifier.encoder.channels == (64, 128, 256)


def test_a_classifier_is_encoder_mean_and_linear():
    classifier = ResNetClassifier(depth=8, num_classes=5).eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = classifier.encoder(2 * (x / 255) - 1)
    expected = features.mean((2, 3)) @ classifier.classifier.weight.T + classifier.classifier.bias
    torch.testing.assert_close(classifier(x), expected)
    torch.testing.assert_close(classifier(x / 255), expected)


def test_a_vaes_encoder_trains_in_a_classifier():
    vae = small_vae()
    classifier = ResNetClassifier(encoder=vae.encoder, num_classes=3)
    assert classifier.encoder is vae.encoder
    x, y = labelled()
    before = copy.deepcopy(vae.encoder.state_dict())
    losses = train(classifier.parameters(), lambda: F.cross_entropy(classifier(x), y), 25)
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(vae.encoder.state_dict()["stem.0.weight"], before["stem.0.weight"])  # it trains along
    assert (classifier(x).argmax(1) == y).float().mean() > 0.8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"depth": 21}, "depth: 21.*6n.2"), ({"num_classes": 0}, "num_classes: 0")],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ResvaeError, match=said):
        ResNetClassifier(**arguments)


def test_images_are_checked_at_the_door():
    classifier = ResNetClassifier(encoder=small_vae().encoder)
    with pytest.raises(ResvaeError, match="shape"):
        classifier(torch.rand(2, 1, 8, 8))
    with pytest.raises(ResvaeError, match="values"):
        classifier(torch.full((2, 3, 8, 8), torch.nan))


def test_the_encoders_pyramid():
    encoder = small_vae().encoder
    x = torch.rand(2, 3, 8, 8)
    maps = encoder.features(x)
    assert [tuple(m.shape) for m in maps] == [(2, c, 8 // s, 8 // s) for c, s in zip((8, 16), (1, 2), strict=True)]
    assert encoder.channels == (8, 16)
    assert encoder.strides == (1, 2)
    assert torch.equal(maps[-1], encoder(x))


def test_the_decoder_generates_from_another_latent():
    """As a generator: a new first layer feeds it, its weights stay, and the images follow."""
    decoder = small_vae().decoder
    image = torch.rand(1, decoder.out.out_channels, 8, 8)
    latent = nn.Linear(7, decoder.latent_dim)
    noise = torch.randn(4, 7)
    generator = nn.Sequential(latent, decoder)
    losses = train(generator.parameters(), lambda: F.mse_loss(generator(noise), image.expand(4, -1, -1, -1)), 15)
    assert losses[-1] < losses[0]
    assert latent.weight.grad.any()
    plain = ResNetDecoder(7, (3, 8, 8), blocks=(1, 1), widths=(16, 8), strides=(1, 2))
    assert plain(noise).shape == (4, 3, 8, 8)
    h = torch.randn(4, *plain.in_shape)
    assert plain.decode_map(h).shape == (4, 3, 8, 8)


@pytest.mark.parametrize(("part", "shape"), [("encoder", (2, 3, 8, 8)), ("decoder", (2, 4))])
def test_export_and_one_compiled_graph(part, shape):
    module, x = getattr(small_vae(), part), torch.rand(shape)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.cat([x, x, x])  # of any batch size
    torch.testing.assert_close(exported.module()(more), module(more))
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), module(x))


def test_the_elbo_in_one_compiled_graph():
    vae = small_vae()
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    expected = vae.elbo(x).elbo
    torch.manual_seed(0)
    compiled = torch.compile(vae.elbo, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x).elbo, expected)
