"""The importance-weighted bound nears log p(x), where that can be computed in another way."""

import math
from typing import Any

import pytest
import torch
from hierarchies import drawn, fresh, images, levels_of
from torch.distributions import Normal

from resvae.models import VAE, ReferenceVAE, reference
from resvae.probability import importance_bound


@torch.no_grad()
@pytest.mark.parametrize("stochastic_depth", [1, 2])
def test_importance_bound_nears_the_log_likelihood_that_the_prior_s_samples_give(stochastic_depth):
    shape: Any = {"levels": (2, 0), "latent_channels": 1, "image_shape": (1, 4, 4), "widths": (8, 8), "strides": (1, 4)}
    vae = drawn(fresh(stochastic_depth=stochastic_depth, **shape), 1.2)
    for level in levels_of(vae):
        level.posterior_net[1].bias[1] = 0.3  # wider than the prior: weights of finite variance
    x = images(1, (1, 4, 4)).expand(8000, -1, -1, -1)
    z = vae.sample_prior(8000)
    assert z.shape == (8000, stochastic_depth)
    likelihoods = vae.decode(z).log_prob(x / 255).double()
    truth = likelihoods.logsumexp(0) - math.log(8000)
    weights = next(vae.log_weights(x, 1)).double()
    assert likelihoods.std() > 0.3
    assert abs(weights.logsumexp(0) - math.log(8000) - truth) < 0.15
    bounds = [torch.stack([importance_bound(part) for part in weights.split(k)]).mean() for k in (1, 10, 100)]
    assert vae.elbo(x).elbo.mean() < truth
    assert bounds[0] < bounds[1] < bounds[2] < truth + 0.15


@pytest.mark.parametrize("name", ["discretized_mixture", "gaussian", "reference", "reference_compat"])
def test_importance_bound_nears_the_true_log_likelihood(name, monkeypatch):
    """log p(x) by quadrature over a single latent."""
    torch.manual_seed(0)
    if name.startswith("reference"):
        monkeypatch.setattr(reference, "WIDTHS", (4, 4, 8, 8))
        vae = ReferenceVAE(28, latent_dim=1, intermediate_dim=16, compat=name.endswith("compat"))
        spread, bias = vae.encoder.log_variance, torch.tensor([0.5])
    else:
        vae = VAE((1, 1), 1, (3, 4, 4), (8, 8), (1, 2), likelihood=name)
        spread, bias = vae.head, torch.tensor([0.5, 0.2])
        vae.decoder.out.weight.data.mul_(4)  # z matters
    vae.eval()
    with torch.no_grad():
        spread.weight.mul_(0.1)
        spread.bias.copy_(bias)  # as wide as the prior or wider: weights of finite variance
        x = images(1, vae.image_shape)
        z = torch.linspace(-7, 7, 701)[:, None]
        joint = vae.decode(z).log_prob(x / 255) + Normal(0.0, 1.0).log_prob(z[:, 0])
        truth = joint.double().logsumexp(0) + math.log(14 / 700)
        torch.manual_seed(1)
        bounds = vae.log_likelihood(x.expand(200, -1, -1, -1), 20).double()
        estimate = bounds.logsumexp(0) - math.log(200)
        elbo = vae.elbo(x.expand(200, -1, -1, -1)).elbo.mean()
    torch.testing.assert_close(estimate, truth, atol=0.15, rtol=0)
    if name != "reference_compat":  # whose elbo is no bound
        assert elbo < truth
