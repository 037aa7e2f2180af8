import copy
import math

import numpy as np
import pytest
import torch

from resvae.errors import ResvaeError
from resvae.probability import (
    Bernoulli,
    DiscretizedLogistic,
    ElboTerms,
    Gaussian,
    LogisticMixture,
    make_likelihood,
)
from resvae.probability.likelihoods import LIKELIHOODS, reordered


@pytest.fixture(params=LIKELIHOODS)
def name(request):
    return request.param


def images(b=2, c=3, size=4, seed=0):
    return torch.randint(0, 256, (b, c, size, size), generator=torch.Generator().manual_seed(seed)) / 255


def features_of(likelihood, b=2, size=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, likelihood.num_features, size, size, generator=g)


@pytest.mark.parametrize("channels", [1, 3])
def test_contract(name, channels):
    likelihood = make_likelihood(name, channels).eval()
    p = likelihood(features_of(likelihood, size=8))
    x = images(c=channels, size=8)
    assert p.batch_shape == (2,)
    assert p.event_shape == (channels, 8, 8)
    assert p.log_prob(x).shape == (2,)
    assert p.log_prob(x).isfinite().all()
    assert p.mean.shape == p.sample().shape == x.shape
    floor = likelihood.floor(x)
    assert floor is None or floor.shape == (2,)
    assert likelihood.discrete == ("logistic" in name or "mixture" in name)
    assert not p.sample().requires_grad


def test_an_image_does_not_depend_on_its_batch(name):
    likelihood = make_likelihood(name, 3)
    features, x = features_of(likelihood, b=4), images(b=4)
    likelihood(features, x)  # one training batch, so that running statistics are not those of the start
    likelihood.eval()
    together = likelihood(features, x).log_prob(x)
    for i in range(4):
        alone = likelihood(features[i : i + 1], x[i : i + 1]).log_prob(x[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


def test_autocast_changes_nothing_but_the_features(name):
    likelihood = make_likelihood(name, 3).eval()
    features, x = features_of(likelihood).bfloat16(), images()
    expected = likelihood(features.float(), x)
    with torch.autocast("cpu", torch.bfloat16):
        p = likelihood(features, x)
        log_prob, mean, sample = p.log_prob(x), p.mean, p.sample()
    assert log_prob.dtype == mean.dtype == sample.dtype == torch.float32
    layers = any(True for _ in likelihood.parameters())  # these are lowered, as those of a decoder are
    torch.testing.assert_close(log_prob, expected.log_prob(x), rtol=1e-2 if layers else 1e-6, atol=0)


def test_one_graph_with_the_same_values_and_gradients(name):
    likelihood = make_likelihood(name, 3)

    def loss(module, features, x):
        p = module(features, x)
        terms = ElboTerms(p.log_prob(x), features.flatten(1)[:, :2], x[0].numel(), module.discrete, module.floor(x))
        return terms.elbo, terms.floor

    x = images()
    torch.compiler.reset()
    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        features = features_of(likelihood).requires_grad_()
        elbo, floor = run(copy.deepcopy(likelihood), features, x)
        elbo.sum().backward()
        results.append((elbo, features.grad, floor))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layout_changes_nothing(name, layout):
    likelihood = make_likelihood(name, 3).eval()
    features, x = features_of(likelihood), images()
    expected = likelihood(features).log_prob(x)
    actual = likelihood(features.contiguous(memory_format=layout)).log_prob(x.contiguous(memory_format=layout))
    torch.testing.assert_close(actual, expected)


def test_features_of_zero_are_a_sane_start(name):
    likelihood = make_likelihood(name, 3).eval()
    features = torch.zeros(2, likelihood.num_features, 4, 4)
    p = likelihood(features)
    torch.testing.assert_close(p.mean, torch.full((2, 3, 4, 4), 0.5), atol=1e-5, rtol=0)
    if likelihood.discrete:
        # Over greys, every value equally often: no distribution does better than 8 bits, and this is not far off.
        greys = (torch.arange(256) / 255).view(256, 1, 1, 1).expand(-1, 3, 4, 4)
        one = likelihood(features[:1])
        bits = -one.log_prob(greys[:, None]).mean() / (48 * math.log(2))
        assert bits < 9


@pytest.mark.parametrize("name", ["discretized_mixture", "discretized_logistic"])
def test_no_distribution_codes_uniform_noise_under_eight_bits(name):
    likelihood = make_likelihood(name, 1)
    greys = (torch.arange(256) / 255).view(256, 1, 1, 1, 1).expand(-1, 3, 1, 2, 2)
    log_prob = likelihood(features_of(likelihood, b=3, size=2)).log_prob(greys)
    assert (-log_prob.mean(0) / (4 * math.log(2)) >= 8).all()


@pytest.mark.parametrize(("channels", "num_features"), [(1, 30), (2, 60), (3, 100), (4, 150)])
def test_mixture_reads_the_published_number_of_channels(channels, num_features):
    assert LogisticMixture(channels).num_features == num_features


def test_mixture_of_one_is_the_logistic():
    likelihood = LogisticMixture(1, num_mixtures=1)
    features, x = features_of(likelihood), images(c=1)
    expected = DiscretizedLogistic(features[:, 1:2], features[:, 2:3] - 2).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood(features).log_prob(x), expected)


def test_mixture_learns_a_colour():
    likelihood = LogisticMixture(3)
    features = torch.zeros(1, 100, 1, 1, requires_grad=True)
    x = torch.tensor([200, 100, 50]).view(1, 3, 1, 1) / 255
    optimizer = torch.optim.Adam([features], 0.03)
    for step in range(300):
        optimizer.zero_grad()
        loss = -likelihood(features).log_prob(x).mean()
        loss.backward()
        assert step > 0 or (features.grad != 0).all()  # each feature is of use
        optimizer.step()
    assert loss.item() < 0.15  # nats, of ln(256^3) = 16.6
    torch.testing.assert_close(likelihood(features).mean, x, atol=1 / 255, rtol=0)


def test_bernoulli_floor_is_the_entropy_of_the_targets():
    x = np.random.default_rng(0).random((2, 3, 4, 4))
    expected = -(x * np.log(x) + (1 - x) * np.log1p(-x)).sum((1, 2, 3))
    likelihood = Bernoulli(3)
    floor = likelihood.floor(torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(floor.numpy(), expected, rtol=1e-5)
    # Reached by the targets themselves, and by nothing else; 0 where every target is 0 or 1.
    target = torch.tensor(x, dtype=torch.float32)
    torch.testing.assert_close(-likelihood(target.logit()).log_prob(target), floor, rtol=1e-5, atol=0)
    assert (-likelihood(target.logit() + 0.1).log_prob(target) > floor).all()
    assert likelihood.floor(torch.ones(1, 3, 2, 2)).item() == 0


def test_bernoulli_is_the_cross_entropy_of_real_values():
    likelihood = Bernoulli(3)
    logits, x = features_of(likelihood), images()
    p = logits.sigmoid()
    expected = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    torch.testing.assert_close(likelihood(logits).log_prob(x), expected)
    torch.testing.assert_close(likelihood(logits).mean, p)


def test_optimal_variance_is_the_best_one():
    likelihood = Gaussian(3, "optimal")
    features, x = features_of(likelihood), images()
    p = likelihood(features, x)
    mse = (x - p.mean).square().mean()
    torch.testing.assert_close(p.variance[0, 0, 0, 0], mse)
    best = p.log_prob(x).mean()
    for factor in (0.9, 1.1):
        assert Gaussian(3, mse.item() * factor)(features).log_prob(x).mean() < best


def test_optimal_variance_in_evaluation_is_the_running_average():
    likelihood = Gaussian(1, "optimal")
    x = images(c=1)
    errors = []
    for seed in range(3):
        features = features_of(likelihood, seed=seed)
        errors.append((x - (features + 1) / 2).square().mean())
        likelihood(features, x)
    expected = torch.stack(errors).mean()
    torch.testing.assert_close(likelihood.variance, expected)
    likelihood(features * math.nan, x)  # a broken batch must not stay in the average
    torch.testing.assert_close(likelihood.variance, expected)
    before = likelihood.variance.clone()
    torch.testing.assert_close(likelihood(features).variance[0, 0, 0, 0], before)  # no target: nothing to fit
    likelihood.eval()
    torch.testing.assert_close(likelihood(features, x).variance[0, 0, 0, 0], before)
    torch.testing.assert_close(likelihood.variance, before, rtol=0, atol=0)
    restored = Gaussian(1, "optimal").eval()
    restored.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(restored(features).log_prob(x), likelihood(features).log_prob(x))


@pytest.mark.parametrize("variance", ["learned", "optimal"])
def test_a_perfect_fit_keeps_the_variance_above_the_rounding(variance):
    likelihood = Gaussian(1, variance)
    x = torch.full((2, 1, 4, 4), 0.5)
    features = torch.zeros(2, likelihood.num_features, 4, 4)
    if variance == "learned":
        features[:, 1:] = -1e4
    p = likelihood(features, x)
    assert p.log_prob(x).isfinite().all()
    torch.testing.assert_close(p.variance, torch.full_like(x, 1 / (12 * 255**2)))


def test_fixed_variance_has_no_parameters_and_its_own_value():
    likelihood = Gaussian(1, 0.04)
    features, x = features_of(likelihood), images(c=1)
    expected = torch.distributions.Normal((features + 1) / 2, 0.2).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(likelihood(features, x).log_prob(x), expected)


def test_errors_name_field_value_and_what_is_allowed():
    with pytest.raises(ResvaeError, match="channels: 0"):
        make_likelihood("bernoulli", 0)
    for variance in ("best", 0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ResvaeError, match="variance"):
            Gaussian(3, variance)
    with pytest.raises(ResvaeError, match=r"features: shape \(2, 7, 4, 4\).*\(batch, 100, H, W\)"):
        LogisticMixture(3)(torch.zeros(2, 7, 4, 4))


def test_a_mixture_around_a_centre_is_that_of_the_differences_from_it():
    torch.manual_seed(0)
    likelihood = LogisticMixture(3, 2)
    features, x = 0.3 * torch.randn(1, likelihood.num_features, 2, 2), torch.randint(100, 150, (1, 3, 2, 2)) / 255
    centre = torch.tensor([8, -12, 20]).view(1, 3, 1, 1) * 2 / 255  # whole grey levels: bins meet bins
    shifted = x - centre / 2
    torch.testing.assert_close(likelihood.around(features, centre).log_prob(x), likelihood(features).log_prob(shifted))


@pytest.mark.parametrize("channels", [1, 3])
def test_mixtures_are_the_same_in_training(channels):
    likelihood = LogisticMixture(channels, num_mixtures=4)
    features = torch.randn(2, likelihood.num_features, 3, 5).contiguous(memory_format=torch.channels_last)
    x = torch.randint(256, (2, channels, 3, 5)) / 255
    centre = torch.rand(2, channels, 3, 5)
    for around in (None, centre):
        gradients, values = [], []
        for training in (True, False):
            given = features.clone().requires_grad_()
            values.append(likelihood.train(training).around(given, around).log_prob(x))
            gradients += torch.autograd.grad(values[-1].sum(), given)
        assert torch.equal(*values)
        assert torch.allclose(*gradients)


def test_the_operation_of_compiled_graphs_keeps_torch_s_rules():
    rows, order = torch.randn(6, 4, requires_grad=True), torch.tensor([2, 0, 3, 1])
    torch.library.opcheck(reordered, (rows, order))
    out = reordered(rows, order)
    assert torch.equal(out, rows[:, order])
    (gradient,) = torch.autograd.grad(out, rows, torch.arange(24.0).view(6, 4))
    assert torch.equal(gradient[:, order], torch.arange(24.0).view(6, 4))


def test_gradients_of_each_image_by_torch_func():
    likelihood = LogisticMixture(1, num_mixtures=2).eval()
    features, x = torch.randn(3, likelihood.num_features, 2, 2), torch.randint(256, (3, 1, 2, 2)) / 255

    def loss(features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return likelihood(features[None]).log_prob(x[None]).sum()

    each = torch.func.vmap(torch.func.grad(loss))(features, x)
    given = features.clone().requires_grad_()
    (together,) = torch.autograd.grad(likelihood(given).log_prob(x).sum(), given)
    assert torch.allclose(each, together, atol=1e-5)
