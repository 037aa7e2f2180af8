import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from resvae.errors import ResvaeError
from resvae.models import VAE, HierarchicalVAE, ReferenceVAE, reference
from resvae.probability import ElboTerms, importance_bound
from resvae.probability.likelihoods import LIKELIHOODS

FLAT = (*LIKELIHOODS, "reference", "reference_compat")  # one level, whose prior is N(0, 1)
NAMES = (*FLAT, "hierarchical", "hierarchical_gaussian", "hierarchical_subpixel")
flat = pytest.mark.parametrize("vae", FLAT, indirect=True)


def small(name, monkeypatch):
    """A model whose statistics (norms, optimal variance) are not those of the start."""
    torch.manual_seed(0)
    if name.startswith("reference"):
        monkeypatch.setattr(reference, "WIDTHS", (8, 8, 16, 16))
        vae = ReferenceVAE(28, latent_dim=5, intermediate_dim=32, compat=name.endswith("compat"))
    elif name.startswith("hierarchical"):
        likelihood = {"hierarchical_gaussian": "gaussian", "hierarchical_subpixel": "subpixel_mixture"}
        likelihood = likelihood.get(name, "discretized_mixture")
        patch = 2 if likelihood == "subpixel_mixture" else 1
        vae = HierarchicalVAE((1, 1), (2, 1), 2, (3, 8, 8), (8, 16), (1, 2), likelihood=likelihood, patch=patch)
        nn.init.normal_(vae.start)  # zero at the start: nothing would reach the first level's prior
    else:
        vae = VAE((1, 1), 5, (3, 8, 8), (8, 16), (1, 2), likelihood=name)
    vae.train()
    for seed in range(3):
        vae.elbo(images(vae, 4, seed=100 + seed))
    return vae.eval()


def images(vae, num, seed=1):
    """uint8, smooth enough that two of them differ in more than noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, vae.image_shape[0], 2, 2, generator=generator)
    x = nn.functional.interpolate(coarse, size=vae.image_shape[1:], mode="bilinear")
    return (255 * x).round().to(torch.uint8)


@pytest.fixture(params=NAMES)
def vae(request, monkeypatch):
    return small(request.param, monkeypatch)


def seeded(seed, function, *args, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def is_image(x, *shape):
    return x.shape == shape and x.dtype == torch.float32 and bool(((x >= 0) & (x <= 1)).all()) and not x.requires_grad


def test_elbo_is_a_term_an_image(vae):
    terms = vae.elbo(images(vae, 3))
    assert isinstance(terms, ElboTerms)
    assert terms.log_likelihood.shape == terms.elbo.shape == (3,)
    assert terms.kl.shape == (3, getattr(vae, "num_levels", 1))
    assert terms.num_dims == math.prod(vae.image_shape)
    assert terms.discrete == vae.likelihood.discrete
    assert terms.elbo.isfinite().all()
    torch.testing.assert_close(terms.elbo, terms.log_likelihood - terms.kl.sum(1))
    assert (terms.kl > 0).all()


def test_figures_are_the_terms_by_their_names(vae):
    x = images(vae, 3)
    terms, figures = seeded(7, vae.elbo, x), seeded(7, vae.figures, x, torch.zeros(3))
    assert torch.equal(figures["loss"], -terms.elbo)
    assert torch.equal(figures["kl"], terms.kl.sum(1))
    assert ("bits_per_dim" in figures) == terms.discrete == (vae.chance == 8.0)
    assert ("loss_over_floor" in figures) == (terms.floor is not None)
    assert vae.deciding == ("bits_per_dim" if terms.discrete else "loss")
    assert figures[vae.deciding].requires_grad
    vae.check_labels(torch.zeros(3), "any")  # it needs none


def counted(vae, *parts):
    """How often each part has run."""
    runs = dict.fromkeys(parts, 0)

    def count(name):
        runs[name] += 1

    for name in parts:
        vae.get_submodule(name).register_forward_hook(lambda *_, name=name: count(name))
    return runs


def test_what_is_encoded_serves_all_methods(vae):
    x = images(vae, 4)
    stem = "encoder.dense" if isinstance(vae, ReferenceVAE) else "encoder.stem"
    methods = {
        "elbo": lambda x: vae.elbo(x).elbo,
        "log_likelihood": lambda x: vae.log_likelihood(x, 2),
        "posterior": lambda x: vae.posterior(x).rsample(),
        "reconstruct": vae.reconstruct,
        "shift": vae.shift,
        "interpolate": lambda x: vae.interpolate(x, x, 3),
    }
    expected = {name: seeded(3, method, x) for name, method in methods.items()}
    runs = counted(vae, stem)
    seen = vae.encoded(x / 255)
    assert vae.encoded(seen) is seen
    assert seen.first(9) is seen
    for name, method in methods.items():
        assert torch.equal(seeded(3, method, seen), expected[name]), name
    assert runs[stem] == 1
    torch.testing.assert_close(vae.posterior(seen.first(2)).mean, vae.posterior(x).mean[:2])


def test_the_decoder_runs_no_more_than_it_must(vae):
    x, last = images(vae, 2), "out" if hasattr(vae, "descend") else "decoder"
    runs = counted(vae, last)
    for call, passes in (
        (lambda: vae.sample(2), 1),
        (lambda: vae.reconstruct(x), 1),
        (lambda: vae.interpolate(x, x, 5), 5),
    ):
        before = runs[last]
        call()
        assert runs[last] - before == passes


def test_a_real_floor_lies_under_the_loss(vae):
    terms = vae.elbo(images(vae, 3))
    assert (terms.floor is None) == (type(vae.likelihood).__name__ != "Bernoulli")
    if terms.floor is not None:
        assert terms.floor.shape == (3,)
        assert (terms.floor <= -terms.log_likelihood).all()


def test_every_parameter_gets_a_gradient(vae):
    vae.train()
    (-vae.elbo(images(vae, 4)).elbo.mean()).backward()
    for name, p in vae.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.ndim == 1 or p.grad.any(), name


def test_elbo_is_what_its_parts_say(vae):
    """z drawn from the posterior under the same seed, decoded, scored."""
    x = images(vae, 3)
    terms = seeded(7, vae.elbo, x)
    z = seeded(7, vae.posterior(x).rsample)
    torch.testing.assert_close(terms.log_likelihood, vae.decode(z).log_prob(x / 255))


def test_uint8_and_floats_are_the_same_images(vae):
    x = images(vae, 3)
    a, b = seeded(3, vae.elbo, x), seeded(3, vae.elbo, x.float() / 255)
    assert torch.equal(a.elbo, b.elbo)
    assert torch.equal(vae.reconstruct(x), vae.reconstruct(x.double() / 255))
    assert not torch.equal(vae.reconstruct(x), vae.reconstruct(255 - x))


def test_samples(vae):
    shape = (6, *vae.image_shape)
    assert is_image(vae.sample(6), *shape)
    assert is_image(vae.sample(6, temperature=0.5, pixel_noise=True), *shape)
    assert torch.equal(seeded(2, vae.sample, 6), seeded(2, vae.sample, 6))
    # The mean of p(x|z) for z from the prior; noise only where asked for.
    z = seeded(2, vae.sample_prior, 6)
    torch.testing.assert_close(seeded(2, vae.sample, 6), vae.decode(z).mean.clamp(0, 1))
    torch.manual_seed(2)
    noisy = vae.decode(vae.sample_prior(6)).sample().clamp(0, 1)
    torch.testing.assert_close(seeded(2, vae.sample, 6, pixel_noise=True), noisy)


@flat
def test_temperature_scales_the_prior(vae):
    z = vae.sample_prior(5000)
    assert z.shape == (5000, vae.latent_dim)
    torch.testing.assert_close(z.mean(0), torch.zeros(vae.latent_dim), atol=0.07, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(vae.latent_dim), atol=0.05, rtol=0)
    torch.testing.assert_close(seeded(4, vae.sample_prior, 9, 0.3), 0.3 * seeded(4, vae.sample_prior, 9))
    cold = vae.sample(3, temperature=0)
    assert torch.equal(cold[0], cold[1])


def test_reconstructions(vae):
    x = images(vae, 3)
    reconstruction = vae.reconstruct(x)
    assert is_image(reconstruction, 3, *vae.image_shape)
    assert torch.equal(reconstruction, vae.reconstruct(x))  # no noise
    torch.testing.assert_close(reconstruction, vae.decode(vae.posterior(x).mean).mean.clamp(0, 1))


def test_the_ecosystems_names_mean_what_ours_mean(vae):
    x = images(vae, 2)
    y = vae(x)
    torch.testing.assert_close(y.clamp(0, 1).float(), vae.reconstruct(x))
    y.sum().backward()
    assert any(p.grad is not None for p in vae.parameters())
    torch.testing.assert_close(vae.encode(x).mean, vae.posterior(x).mean)
    seen = vae.encoded(x)
    torch.testing.assert_close(vae(seen), y)


def test_a_model_without_values_has_shapes_all_the_same(vae):
    vae = copy.deepcopy(vae).to("meta")
    x = torch.empty(2, *vae.image_shape, dtype=torch.uint8, device="meta")
    terms = vae.elbo(x)
    assert terms.elbo.device.type == "meta"
    terms.elbo.sum().backward()
    assert all(p.grad is None or p.grad.device.type == "meta" for p in vae.parameters())
    assert vae.sample(3).shape == (3, *vae.image_shape)
    assert vae.reconstruct(x).shape == (2, *vae.image_shape)


def test_interpolation_runs_from_one_reconstruction_to_the_other(vae):
    a, b = images(vae, 2, seed=5), images(vae, 2, seed=6)
    line = vae.interpolate(a, b, 5)
    assert is_image(line, 2, 5, *vae.image_shape)
    torch.testing.assert_close(line[:, 0], vae.reconstruct(a))
    torch.testing.assert_close(line[:, -1], vae.reconstruct(b))
    middle = (vae.posterior(a).mean + vae.posterior(b).mean) / 2
    torch.testing.assert_close(line[:, 2], vae.decode(middle).mean.clamp(0, 1))
    assert vae.interpolate(a, b).shape[1] == 8


@flat
def test_kl_is_that_of_the_posterior_by_monte_carlo(vae):
    if getattr(vae, "compat", False):
        pytest.skip("charges another KL, which test_reference.py checks")
    x = images(vae, 2)
    q = vae.posterior(x)
    p = Independent(Normal(torch.zeros(vae.latent_dim), 1.0), 1)
    z = q.sample((40_000,))
    ratios = (q.log_prob(z) - p.log_prob(z)).double()
    error = 5 * ratios.std(0) / 200
    assert ((vae.elbo(x).kl[:, 0] - ratios.mean(0)).abs() < error).all()
    assert (error < 0.1).all()


@flat
def test_log_weights(vae):
    x = images(vae, 3)
    weight = next(seeded(5, vae.log_weights, x, 1))
    q = vae.posterior(x)
    z = seeded(5, q.rsample)
    prior = Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(weight, vae.decode(z).log_prob(x / 255) + prior - q.log_prob(z))
    assert len(list(vae.log_weights(x, 4))) == 4


def test_importance_bound_is_the_log_of_the_mean_weight(vae):
    x = images(vae, 3)
    torch.manual_seed(5)
    weights = torch.stack(list(vae.log_weights(x, 12))).detach()
    bound = seeded(5, vae.log_likelihood, x, 12)
    torch.testing.assert_close(bound, weights.logsumexp(0) - math.log(12))
    assert (bound > weights.mean(0)).all()  # Jensen
    assert weights.std(0).min() > 0.01  # each from a noise of its own


def test_importance_bound_rises_with_k(vae):
    x = images(vae, 1).expand(32, -1, -1, -1)  # 32 draws of the bound of one image
    torch.manual_seed(0)
    weights = torch.stack([w.detach() for w in vae.log_weights(x, 16)]).double()
    means = [torch.stack([importance_bound(part) for part in weights.split(k)]).mean() for k in (1, 4, 16)]
    assert all(b > a for a, b in pairwise(means))
    torch.testing.assert_close(seeded(0, vae.log_likelihood, x, 16).double().mean(), means[-1])
    draws_apart = [seeded(k, vae.log_likelihood, x, k).mean() for k in (1, 16)]
    assert draws_apart[1] > draws_apart[0]


def test_an_images_elbo_does_not_depend_on_its_batch_mates(vae):
    x, others = images(vae, 4), images(vae, 4, seed=9)
    mixed = torch.cat([x[:1], others[1:]])
    a, b = seeded(6, vae.elbo, x), seeded(6, vae.elbo, mixed)
    torch.testing.assert_close(a.elbo[0], b.elbo[0])
    assert not torch.allclose(a.elbo[1:], b.elbo[1:])
    torch.testing.assert_close(vae.reconstruct(x)[:1], vae.reconstruct(x[:1]))


def test_evaluation_changes_nothing_in_the_model(vae):
    before = copy.deepcopy(vae.state_dict())
    x = images(vae, 3)
    vae.elbo(x), vae.log_likelihood(x, 2), vae.reconstruct(x), vae.sample(2), vae.interpolate(x, x, 2)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_deepcopy_is_a_model_of_its_own(vae):
    x = images(vae, 3)
    expected = seeded(8, vae.elbo, x).elbo
    twin = copy.deepcopy(vae)
    assert torch.equal(seeded(8, twin.elbo, x).elbo, expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.equal(seeded(8, twin.elbo, x).elbo, expected)
    assert torch.equal(seeded(8, vae.elbo, x).elbo, expected)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda vae, x: vae.sample(0), "num: 0"),
        (lambda vae, x: vae.sample(2, temperature=-1.0), "temperature: -1.0"),
        (lambda vae, x: vae.sample(2, temperature=float("nan")), "temperature: nan"),
        (lambda vae, x: vae.interpolate(x, x, 1), "steps: 1"),
        (lambda vae, x: vae.log_likelihood(x, 0), "num_samples: 0"),
    ],
)
def test_refusals_name_the_field_and_the_value(call, field, monkeypatch):
    vae = small("bernoulli", monkeypatch)
    with pytest.raises(ResvaeError, match=field):
        call(vae, images(vae, 2))
