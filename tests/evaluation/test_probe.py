from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resvae.errors import ResvaeError
from resvae.evaluation import linear_probe
from resvae.evaluation.probe import LIMIT, LinearProbe, representations, shortened
from resvae.models import VAE, ReferenceVAE


def small(latent_dim=4):
    torch.manual_seed(0)
    return VAE((1, 1), latent_dim, (1, 8, 8), (8, 12), (1, 2))


def probe(vae, train, test):
    asked = {"probe_images": 1000, "train": lambda num=None: train, "tested": lambda: test, "model": vae, "seed": 0}
    return LinearProbe(SimpleNamespace(**asked)).finish().figures["probe"]


def striped(num, seed=0):
    """Label 0: the left half is bright; 1: the right half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (num,), generator=generator)
    x = torch.randint(0, 100, (num, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for label in (0, 1):
        x[labels == label, :, :, 4 * label : 4 * label + 4] += 100
    return x, labels


def test_separable_features_are_told_apart_and_noise_is_not():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 600)
    x = generator.normal(size=(600, 10))
    assert linear_probe(x[:300], labels[:300], x[300:], labels[300:], 0) < 0.45  # chance is a third
    x[:, 2] += 12 * labels
    x *= 10.0 ** np.arange(-4, 6)  # of any scale
    assert linear_probe(x[:300], labels[:300], x[300:], labels[300:], 0) == 1


def test_what_a_model_knows():
    vae = small().train()
    found = probe(vae, striped(120), striped(50, 1))
    scores = {score.representation: score for score in found.scores}
    assert (found.train_images, found.test_images, found.classes) == (120, 50, 2)
    assert scores["raw pixels"].accuracy == 1
    assert list(scores) == ["posterior mean", "encoder, last map", "encoder, all stages", "raw pixels"]
    assert [score.dimensions for score in found.scores] == [4, 12, 20, 64]
    assert vae.training


def test_representations_are_the_models_own():
    vae, (x, _) = small().eval(), striped(7)
    found = representations(vae, x, 0)
    with torch.no_grad():
        maps = [h.mean((2, 3)) for h in vae.encoder.features(2 * (x / 255) - 1)]
        torch.testing.assert_close(found["posterior mean"], vae.posterior(x).mean)
    torch.testing.assert_close(found["encoder, last map"], maps[-1])
    torch.testing.assert_close(found["encoder, all stages"], torch.cat(maps, 1))
    assert torch.equal(found["raw pixels"], x.flatten(1).float())
    assert not any(module._forward_hooks for module in vae.modules())


def test_the_articles_model_scales_its_input_in_its_own_way():
    vae = ReferenceVAE((1, 1, 1, 1), 4, 16).eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        last = vae.encoder.network(x / 255).mean((2, 3))
    torch.testing.assert_close(representations(vae, x, 0)["encoder, last map"], last)


def test_long_vectors_are_projected_and_keep_their_distances():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6, 6000)).astype(np.float32)
    y = shortened(x, 0)
    assert y.shape == (6, LIMIT)
    np.testing.assert_array_equal(y[2:], shortened(x[2:], 0))
    for a, b in ((0, 1), (2, 3), (4, 5)):
        assert np.linalg.norm(y[a] - y[b]) == pytest.approx(np.linalg.norm(x[a] - x[b]), rel=0.1)


def test_a_model_of_many_latents():
    first, again = (probe(small(5000), striped(40), striped(20, 1)) for _ in range(2))
    assert {score.representation: score.dimensions for score in first.scores}["posterior mean"] == LIMIT
    assert first == again


def test_refusals():
    x, y = striped(20)
    with pytest.raises(ResvaeError, match="one label; a data set with labels"):
        probe(small(), (x, torch.zeros_like(y)), (x, y))
    with pytest.raises(ResvaeError, match="2 training images are too few"):
        probe(small(), (x[:2], torch.arange(2)), (x, y))
    vae = small()
    setattr(vae, "encoder", torch.nn.Identity())  # noqa: B010  no encoder, whatever its type says
    with pytest.raises(ResvaeError, match="VAE has no ResNetEncoder"):
        probe(vae, (x, y), (x, y))
