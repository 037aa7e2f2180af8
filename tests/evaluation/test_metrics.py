import numpy as np
import torch

from resvae.evaluation import ActiveUnits


def means(num=200, seed=0):
    """Six latents, whose posterior means vary by 0, .0009, .0081, .0144, .25 and 4, around 0 and far from it."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, 6, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean(0)) / noise.std(0)
    return noise * torch.tensor([0, 0.03, 0.09, 0.12, 0.5, 2]) + torch.tensor([5, 0, -3, 0, 1, 1000])


def test_variance_is_numpys_whatever_the_batches():
    values = means()
    for sizes in ([200], [1] * 200, [3, 100, 97], [64, 64, 64, 8]):
        active = ActiveUnits()
        for part in values.split(sizes):
            active.update(part)
        np.testing.assert_allclose(active.variance().numpy(), values.numpy().var(0, ddof=1), rtol=1e-9, atol=1e-12)
        assert active.latents == 6


def test_active_units_vary_by_more_than_a_hundredth():
    active = ActiveUnits()
    for part in means().split(50):
        active.update(part)
    assert active.count() == 3


def test_means_far_from_zero_do_not_cancel():
    """Sums of squares in float32 would find noise of about 1e5 * 6e-8 * 1e5 here."""
    values = 1e5 + 0.05 * torch.randn(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    active = ActiveUnits()
    for part in values.split(100):
        active.update(part)
    np.testing.assert_allclose(active.variance().numpy(), values.numpy().var(0, ddof=1), rtol=1e-6)
    assert active.count() == 0


def test_latents_of_any_shape_count_each():
    values = means().float().unflatten(1, (2, 3))
    active = ActiveUnits()
    active.update(values.requires_grad_())
    assert active.latents == 6
    assert active.variance().shape == (6,)
    assert not active.variance().requires_grad


def test_one_image_tells_nothing():
    active = ActiveUnits()
    active.update(torch.ones(1, 4))
    assert active.count() is None
    assert active.latents == 4
