import math

import pytest
import torch
from torch.distributions import Normal

from resvae.errors import ResvaeError
from resvae.probability import ElboTerms, KlSchedule, importance_bound, weighted_elbo


def test_the_uniform_distribution_costs_eight_bits_a_dimension():
    num_dims = 3 * 32 * 32
    terms = ElboTerms(torch.full((4,), -num_dims * math.log(256)), torch.zeros(4, 1), num_dims, discrete=True)
    torch.testing.assert_close(terms.bits_per_dim, torch.full((4,), 8.0))


def log_weights(k, repeats, generator):
    """log p(x, z) - log q(z) for p(z) = N(0, 1), p(x|z) = N(z, 1), x = 1.5 and a q that is not the posterior."""
    q, prior = Normal(0.3, 1.2), Normal(0.0, 1.0)
    for _ in range(k):
        z = 0.3 + 1.2 * torch.randn(repeats, generator=generator)
        yield prior.log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.5)) - q.log_prob(z)


def test_importance_bound_rises_with_k_to_the_log_likelihood():
    g = torch.Generator().manual_seed(0)
    truth = Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.5)).item()
    bounds = [importance_bound(log_weights(k, 20_000, g)).mean().item() for k in (1, 3, 10, 100)]
    assert bounds == sorted(bounds)
    assert bounds[0] < truth - 0.1
    assert bounds[-1] < truth + 0.003
    assert bounds[-1] == pytest.approx(truth, abs=0.01)


def test_importance_bound_is_log_mean_exp_even_of_huge_numbers():
    weights = 50 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0)) - 8000
    exact = weights.double()
    torch.testing.assert_close(importance_bound(weights), exact.logsumexp(0) - math.log(7))
    torch.testing.assert_close(importance_bound([weights[0]]), exact[0], rtol=0, atol=0)
    torch.testing.assert_close(importance_bound([weights[0]] * 5), exact[0])


def test_importance_bound_takes_a_stream_and_refuses_an_empty_one():
    with pytest.raises(ResvaeError, match="log_weights"):
        importance_bound(iter(()))
    assert importance_bound(torch.zeros(2) for _ in range(1000)).abs().max() < 1e-3


def test_kl_schedule_is_a_straight_line():
    schedule = KlSchedule(start=0.1, end=0.9, warmup_steps=4)
    assert [schedule(step) for step in (0, 1, 2, 4, 100)] == pytest.approx([0.1, 0.3, 0.5, 0.9, 0.9])
    assert KlSchedule()(0) == 1.0


@pytest.mark.parametrize(
    ("field", "value"), [("warmup_steps", -1), ("start", -0.1), ("end", math.inf), ("end", math.nan)]
)
def test_kl_schedule_refuses(field, value):
    with pytest.raises(ResvaeError, match=field):
        KlSchedule(**{field: value})


def terms_of(kl):
    return ElboTerms(torch.tensor([-5.0, -7.0]), kl, 4, discrete=False)


def test_weights_of_one_give_the_elbo():
    terms = terms_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    torch.testing.assert_close(weighted_elbo(terms), terms.elbo, rtol=0, atol=0)
    torch.testing.assert_close(weighted_elbo(terms, 0.5), torch.tensor([-6.5, -10.5]))
    torch.testing.assert_close(weighted_elbo(terms, 0.0), terms.log_likelihood)


def test_free_bits_charge_each_level_its_mean_or_the_allowance():
    kl = torch.tensor([[0.1, 4.0], [0.3, 6.0]], requires_grad=True)
    objective = weighted_elbo(terms_of(kl), 1.0, free_bits=0.5)
    torch.testing.assert_close(objective.mean(), torch.tensor(-6.0 - max(0.2, 0.5) - max(5.0, 0.5)))
    objective.sum().backward()
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, -1.0], [0.0, -1.0]]))


def test_free_bits_judge_the_batch_not_the_image():
    kl = torch.tensor([[0.1], [2.0]])  # the first is under the allowance, their mean is not
    torch.testing.assert_close(weighted_elbo(terms_of(kl), 1.0, free_bits=0.5), terms_of(kl).elbo)


def test_free_bits_do_not_hide_a_broken_level():
    assert weighted_elbo(terms_of(torch.tensor([[math.nan], [1.0]])), 1.0, free_bits=0.5).isnan().any()
