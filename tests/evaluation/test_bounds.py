import math
import weakref

import numpy as np
import pytest
import torch

from resvae.evaluation import evaluate
from resvae.evaluation.metrics import bound_curve, powers_of_ten
from resvae.models import VAE
from resvae.probability import importance_bound


@pytest.mark.parametrize(
    ("num", "ks"), [(1, (1,)), (2, (1, 2)), (10, (1, 10)), (64, (1, 10, 64)), (1000, (1, 10, 100, 1000))]
)
def test_powers_of_ten_end_at_the_number_itself(num, ks):
    assert powers_of_ten(num) == ks


def weights(num, batch=5, offset=-2000.0):
    return offset + 10 * torch.randn(num, batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_point_is_the_bound_of_a_prefix():
    w = weights(37)
    curve = bound_curve(iter(w), (1, 10, 37))
    for k, bound in zip((1, 10, 37), curve, strict=True):
        torch.testing.assert_close(bound, importance_bound(iter(w[:k])))
        torch.testing.assert_close(bound, torch.logsumexp(w[:k], 0) - math.log(k))
    assert torch.equal(curve[0], w[0])


def test_one_weight_is_kept_at_a_time():
    given, most = [], 0

    def stream():
        nonlocal most
        for i in range(50):
            weight = torch.full((5,), float(i), dtype=torch.float64)
            given.append(weakref.ref(weight))
            most = max(most, sum(reference() is not None for reference in given))
            yield weight

    bound_curve(stream(), (50,))
    assert len(given) == 50
    assert most <= 3  # the sum so far, the last weight and this one


def test_many_samples_of_a_large_bound_are_not_lost_to_rounding():
    """Each weight adds about 1/k nats: in float32, steps at -30,000 are .002."""
    w = torch.full((5000, 1), -30000.0)
    w[2500:] += 1
    expected = -30000 + np.log((1 + np.e) / 2)
    assert bound_curve(iter(w), (5000,)).item() == pytest.approx(expected, abs=1e-6)


def test_the_curve_of_a_model():
    torch.manual_seed(0)
    vae = VAE((1, 1), 4, (1, 8, 8), (8, 8), (1, 2)).eval()
    x = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    report = evaluate(vae, [x], 100, seed=3)
    torch.manual_seed(3)
    with torch.no_grad():
        vae.elbo(x)
        first = next(vae.log_weights(x, 100))
    bounds = report.importance_curve
    assert [bound.k for bound in bounds] == [1, 10, 100]
    assert bounds[0].nats == pytest.approx(first.mean().item(), rel=1e-6)
    assert bounds[0].nats < bounds[1].nats < bounds[2].nats == report.importance_weighted
    for bound in bounds:
        assert bound.bits_per_dim == pytest.approx(-bound.nats / (64 * math.log(2)))
