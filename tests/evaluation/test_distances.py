import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from resvae.errors import ResvaeError
from resvae.evaluation import distances, feature_network, generate
from resvae.models import VAE, ResNetClassifier


def images(num, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, 3, 2, 2, generator=generator)
    return (255 * F.interpolate(coarse, size=(size, size), mode="bilinear")).round().to(torch.uint8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return feature_network("he", (3, 8, 8), lambda _: ResNetClassifier(depth=8, image_shape=(3, 8, 8)))


def test_the_features_are_the_classifiers_penultimate_layer():
    torch.manual_seed(0)
    classifier = ResNetClassifier(depth=8, image_shape=(3, 8, 8)).train()
    features = feature_network("he", (3, 8, 8), lambda _: classifier)
    x = images(5)
    with torch.no_grad():  # in eval mode: batch normalisation by its running figures
        assert torch.equal(classifier.classifier(features(x)), classifier.eval()(x))


def test_a_set_against_itself_is_nothing(network):
    x = images(120)
    d = distances(network, x.split(50), x.split(70), "he")
    assert d.fid == pytest.approx(0, abs=1e-3)
    assert (d.real, d.generated, d.num_features, d.features) == (120, 120, 64, "he")
    assert (d.kid_subset, d.kid_deviation) == (120, None)


def test_torchmetrics_by_hand_gives_the_same(network):
    a, b = images(90, 1), images(90, 2) // 2

    class Sized(nn.Module):  # whose number of features torchmetrics need not try out
        num_features = 64

        def forward(self, x):
            with torch.no_grad():
                return network(x)

    fid = FrechetInceptionDistance(Sized())
    with pytest.warns(UserWarning, match="buffer"):
        kid = KernelInceptionDistance(Sized(), subset_size=90)
    for metric in (fid, kid):
        for real, x in ((True, a), (False, b)):
            for part in x.split(40):
                metric.update(part, real=real)
    d = distances(network, a.split(30), b.split(30), "he")
    assert d.fid == pytest.approx(fid.compute().item(), rel=1e-3)
    assert d.kid == pytest.approx(kid.compute()[0].item(), rel=1e-3)
    fewer = distances(network, [a], [b[:60]], "he")
    assert fewer.kid_deviation is not None
    assert fewer.kid_deviation > 0
    assert fewer.kid == pytest.approx(d.kid, abs=5 * fewer.kid_deviation)


def test_fid_of_gaussians_is_the_formula():
    """With diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    generator = torch.Generator().manual_seed(0)

    def white():
        x = torch.randn(50, 3, generator=generator, dtype=torch.float64)
        x = x - x.mean(0)
        return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T

    a, b = white(), 2 * white() + torch.tensor([1.0, 0, -2])
    assert distances(nn.Identity(), [a], [b], "as they are").fid == pytest.approx(5 + 3)


def test_noise_lies_farther_than_another_half(network):
    x = images(400)
    noise = torch.randint(-60, 61, x.shape, generator=torch.Generator().manual_seed(1))
    noisy = (x + noise).clamp(0, 255).to(torch.uint8)
    near = distances(network, [x[:200]], [x[200:]], "he")
    far = distances(network, [x[:200]], [noisy[:200]], "he")
    assert far.fid > 2 * near.fid > 0
    assert far.kid > near.kid


def test_nothing_else_is_disturbed(network):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    x = images(20)
    first = distances(network, [x], [x[:10]], "he", seed=1)
    assert torch.equal(torch.rand(4), expected)
    assert distances(network, [x], [x[:10]], "he", seed=1) == first
    assert not any(module.training for module in network.modules())


def test_generated_images():
    torch.manual_seed(0)
    vae = VAE((1, 1), 4, (3, 8, 8), (8, 8), (1, 2))
    torch.manual_seed(9)
    expected = torch.rand(4)
    torch.manual_seed(9)
    batches = list(generate(vae, 25, seed=1, batch_size=10))
    assert torch.equal(torch.rand(4), expected)
    assert [len(x) for x in batches] == [10, 10, 5]
    assert all(x.dtype == torch.uint8 for x in batches)
    again = torch.cat(list(generate(vae, 25, seed=1, batch_size=10)))
    assert torch.equal(torch.cat(batches), again)
    assert len(again.flatten(1).unique(dim=0)) == 25  # each batch has its own noise
    assert not torch.equal(next(generate(vae, 10, seed=2)), again[:10])


def test_refusals(network):
    with pytest.raises(ResvaeError, match="1 generated"):
        distances(network, [images(3)], [images(1)], "he")
    with pytest.raises(ResvaeError, match=r"\(3, 32, 32\); these are \(3, 8, 8\)"):
        feature_network("he", (3, 8, 8), lambda _: ResNetClassifier(depth=8))
    with pytest.raises(ResvaeError, match="1 or 3 channels; these have 4"):
        feature_network("inception", (4, 8, 8), str)


def inception(monkeypatch, network):
    """Stands for torchmetrics' network, whose weights are downloaded."""
    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", network)


@pytest.mark.parametrize("fault", [ModuleNotFoundError("Torch-fidelity is\nneeded"), OSError("no network")])
def test_an_inception_that_cannot_be_had_names_the_other_way(monkeypatch, fault):
    def refuse():
        raise fault

    inception(monkeypatch, refuse)
    with pytest.raises(ResvaeError, match=r"torch-fidelity.*ResNetClassifier: --features") as told:
        feature_network("inception", (3, 8, 8), str)
    assert "\n" not in str(told.value)


def test_inception_sees_grey_images_in_three_channels(monkeypatch):
    class Fake:
        inception = nn.Flatten()

    inception(monkeypatch, Fake)
    x = images(2)[:, :1]
    assert torch.equal(feature_network("inception", (1, 8, 8), str)(x), x.repeat(1, 3, 1, 1).flatten(1))
