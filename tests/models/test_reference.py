import math

import pytest
import torch
from torch import nn

from resvae.errors import ResvaeError
from resvae.models import ReferenceVAE, reference

ENCODER = {28: 18_485_824, 40: 19_885_376, 70: 26_940_096, 100: 33_994_816}
TOTAL = {28: 26_773_187, 40: 29_572_291, 70: 43_681_731, 100: 57_791_171}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(reference, "WIDTHS", (8, 8, 16, 16))

    def make(compat):
        torch.manual_seed(0)
        vae = ReferenceVAE(28, latent_dim=5, intermediate_dim=32, compat=compat).eval()
        with torch.no_grad():  # heads that do not sit at zero
            vae.encoder.log_variance.bias.copy_(torch.linspace(-2, 1, 5))
            vae.encoder.mean.bias.copy_(torch.linspace(-1, 1, 5))
        return vae

    return make


def images(num=3):
    return torch.randint(0, 256, (num, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", TOTAL)
def test_the_articles_parameters(depth):
    with torch.device("meta"):
        vae = ReferenceVAE(depth)
    assert count(vae) == TOTAL[depth]
    assert count(vae.encoder) == ENCODER[depth]
    assert count(vae.decoder) == TOTAL[depth] - ENCODER[depth]
    assert all(p.requires_grad for p in vae.parameters())


def test_the_articles_shapes():
    with torch.device("meta"):
        vae = ReferenceVAE(28)
        mean, log_variance = vae.encoder(torch.empty(2, 3, 32, 32))
        logits = vae.decoder(torch.empty(2, 256))
    assert mean.shape == log_variance.shape == (2, 256)
    assert logits.shape == (2, 3, 32, 32)
    assert vae.encoder.network.out_shape == (2048, 4, 4)
    assert vae.decoder.out.in_channels == 2048  # it widens as it up-samples


def test_the_articles_layers():
    with torch.device("meta"):
        vae = ReferenceVAE(28)
    norms = [m for m in vae.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    convolutions = [m for m in vae.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(m.bias is not None for m in convolutions)
    strided = [m for m in convolutions if m.stride != (1, 1)]
    assert {m.kernel_size for m in strided} == {(1, 1)}  # strides sit on 1x1 convolutions
    assert len(strided) == 2 * 2 * 3  # branch and shortcut, up and down, three times


def test_kerass_initial_weights():
    torch.manual_seed(0)
    vae = ReferenceVAE(28)
    weight = vae.encoder.mean.weight
    bound = math.sqrt(6 / (16 * 1024 + 256))  # Glorot & Bengio 2010, eq. 16
    assert weight.abs().max() <= bound
    torch.testing.assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.01, atol=0)
    assert not any(m.bias.any() for m in vae.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear))


@pytest.mark.parametrize("compat", [False, True])
def test_noise_scale(small, compat):
    """exp(log_variance) in the article, exp(log_variance / 2) as it should be."""
    vae = small(compat)
    x = images()
    mean, log_variance = vae.encoder(x / 255)
    assert log_variance.abs().min() > 1e-3
    q = vae.posterior(x)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.stddev, log_variance.exp() if compat else (log_variance / 2).exp())
    z = q.sample((20_000,))
    torch.testing.assert_close(z.std(0), q.stddev, rtol=0.03, atol=0)


@pytest.mark.parametrize("compat", [False, True])
def test_charged_kl_takes_exp_log_variance_for_the_variance(small, compat):
    """Kingma & Welling 2014, appendix B, in both: -1/2 sum(1 + log s^2 - m^2 - s^2)."""
    vae = small(compat)
    mean, log_variance = vae.encoder(images() / 255)
    expected = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    torch.testing.assert_close(vae.elbo(images()).kl[:, 0], expected)


def test_compat_understates_the_kl_by_a_known_amount(small):
    """With s = exp(log_variance): the noise has scale s, so the true KL is 1/2 (m^2 + s^2 - 1 - 2 ln s) a latent.

    Charged is 1/2 (m^2 + s - 1 - ln s); the difference is 1/2 (s^2 - s - ln s), and that is at least 0.
    """
    vae = small(True)
    x = images()
    s = vae.encoder(x / 255)[1].exp()
    charged = vae.elbo(x).kl[:, 0]
    q = vae.posterior(x)
    prior = torch.distributions.Normal(0.0, 1.0)
    true = torch.distributions.kl_divergence(q.base_dist, prior).sum(1)
    torch.testing.assert_close(true - charged, 0.5 * (s**2 - s - s.log()).sum(1), rtol=1e-4, atol=1e-5)
    assert (true > charged).all()
    # and the true one is what the noise says
    z = q.sample((40_000,))
    sampled = (q.log_prob(z) - prior.log_prob(z).sum(-1)).mean(0)
    torch.testing.assert_close(sampled, true, rtol=0.02, atol=0.02)


def test_penalty_is_the_articles_l2_on_the_heads(small):
    vae = small(True)
    with torch.no_grad():
        for parameter in vae.encoder.mean.parameters():
            parameter.fill_(0.5)
        for parameter in vae.encoder.log_variance.parameters():
            parameter.fill_(-0.25)
    num = count(vae.encoder.mean)
    assert num == 5 * 16 * 32 + 5
    torch.testing.assert_close(vae.penalty().item(), num * (0.01 * 0.25 + 0.1 * 0.0625), rtol=1e-5, atol=0)
    vae.penalty().backward()
    assert {name for name, p in vae.named_parameters() if p.grad is not None} == {
        f"encoder.{head}.{part}" for head in ("mean", "log_variance") for part in ("weight", "bias")
    }
    assert small(False).penalty().item() == 0


@pytest.mark.parametrize("arguments", [{"intermediate_dim": 100}, {"intermediate_dim": 0}, {"latent_dim": 0}])
def test_sizes_that_no_map_has_are_refused(arguments):
    with pytest.raises(ResvaeError, match=f"^{next(iter(arguments))}: "):
        ReferenceVAE(28, **arguments)
