import math
import weakref

import numpy as np
import pytest
import torch

from resvae.evaluation import ActiveUnits
from resvae.evaluation.bounds import bound_curve, powers_of_ten
from resvae.probability import importance_bound


@pytest.mark.parametrize(("num", "ks"), [(1, (1,)), (2, (1, 2)), (10, (1, 10)), (64, (1, 10, 64)), (100, (1, 10, 100))])
def test_powers_of_ten_end_at_the_number_itself(num, ks):
    assert powers_of_ten(num) == ks


def test_every_point_is_the_bound_of_a_prefix():
    w = -2000 + 10 * torch.randn(37, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k, bound in zip((1, 10, 37), bound_curve(iter(w), (1, 10, 37)), strict=True):
        torch.testing.assert_close(bound, importance_bound(iter(w[:k])))
        torch.testing.assert_close(bound, torch.logsumexp(w[:k], 0) - math.log(k))


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


def means(num=200):
    """Six latents, whose posterior means vary by 0, .0009, .0081, .0144, .25 and 4, around 0 and far from it."""
    noise = torch.randn(num, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean(0)) / noise.std(0)
    return noise * torch.tensor([0, 0.03, 0.09, 0.12, 0.5, 2]) + torch.tensor([5, 0, -3, 0, 1, 1000])


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [3, 100, 97]])
@pytest.mark.parametrize(("values", "count"), [(means(), 3), (1e5 + 0.05 * means()[:, 5:], 0)], ids=["six", "far"])
def test_variance_is_numpys_whatever_the_batches_and_active_is_above_a_hundredth(sizes, values, count):
    """Far from 0, sums of squares in float32 would find noise of about 1e5 * 6e-8 * 1e5."""
    active = ActiveUnits()
    for part in values.split(sizes):
        active.update(part.unflatten(1, (-1, 1)).requires_grad_())  # latents of any shape
    np.testing.assert_allclose(active.variance().numpy(), values.numpy().var(0, ddof=1), rtol=1e-6, atol=1e-12)
    assert (active.latents, active.count()) == (values.shape[1], count)


def test_one_image_tells_nothing():
    active = ActiveUnits()
    active.update(torch.ones(1, 4))
    assert (active.count(), active.latents) == (None, 4)
