import itertools
import math

import pytest
import torch
from torch import Tensor

from resvae.errors import ResvaeError
from resvae.probability import DiscretizedLogistic, DiscretizedLogisticMixture

LEVELS = torch.arange(256) / 255
LOCS = [0.0, 0.3, 1.0, -1.0, 2 * 17.5 / 255 - 1, 1 - 1 / 255, -1.7, 60.0, -1e4]
LOG_SCALES = [-50.0, -7.0, -6.5, -4.0, -2.0, 0.0, 3.0, 7.0, 50.0]


def extremes() -> tuple[Tensor, Tensor]:
    loc, log_scale = map(torch.tensor, zip(*itertools.product(LOCS, LOG_SCALES), strict=True))
    generator = torch.Generator().manual_seed(0)
    loc = torch.cat([loc, 3 * torch.rand(400, generator=generator) - 1.5])
    log_scale = torch.cat([log_scale, 12 * torch.rand(400, generator=generator) - 8])
    return loc, log_scale


def mixture(c: int, k: int = 4, b: int = 1, h: int = 1, w: int = 1, seed: int = 0, spread: float = 1.0):
    """Random parameters of a mixture."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, k, h, w, generator=g)
    loc = 0.6 * torch.randn(b, k, c, h, w, generator=g)
    log_scale = spread * torch.randn(b, k, c, h, w, generator=g) - 2.5
    coefficients = torch.randn(b, k, c * (c - 1) // 2, h, w, generator=g).tanh()
    return logits, loc, log_scale, coefficients


def cdf_difference(lower: Tensor, upper: Tensor) -> Tensor:
    """sigmoid(upper) - sigmoid(lower), between the upper tails on the right, where the cdf itself cancels."""
    return torch.where(upper > 0, (-lower).sigmoid() - (-upper).sigmoid(), upper.sigmoid() - lower.sigmoid())


def naive(value: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, coefficients: Tensor) -> Tensor:
    """Mass of one pixel ``[C]`` under parameters ``[K, ...]``: the definition, with loops, in float64."""
    total = 0.0
    for k, weight in enumerate(logits.double().softmax(0)):
        mass, row = weight, 0
        for c in range(len(value)):
            centre = loc[k, c].double()
            for j in range(c):
                centre = centre + coefficients[k, row].double() * (2 * value[j].double() - 1)
                row += 1
            y, scale = 2 * value[c].double() - 1, log_scale[k, c].double().exp()
            lower = (y - 1 / 255 - centre) / scale if value[c] > 0 else torch.tensor(-math.inf)
            upper = (y + 1 / 255 - centre) / scale if value[c] < 1 else torch.tensor(math.inf)
            mass = mass * cdf_difference(lower, upper)
        total = total + mass
    return torch.as_tensor(total)


def test_logistic_bins_sum_to_one_and_stay_finite_everywhere():
    loc, log_scale = extremes()
    log_mass = DiscretizedLogistic(loc, log_scale).log_prob(LEVELS[:, None])
    assert log_mass.dtype == torch.float32
    assert log_mass.isfinite().all()
    assert (log_mass <= 0).all()
    torch.testing.assert_close(log_mass.exp().sum(0), torch.ones(len(loc)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0, 2.0])
def test_logistic_is_the_difference_of_the_cdf(log_scale):
    loc = torch.tensor(0.2)
    y = 2 * torch.arange(256, dtype=torch.float64) / 255 - 1
    edges = torch.cat([y - 1 / 255, y[-1:] + 1 / 255])
    z = (edges - loc.double()) / math.exp(log_scale)
    z[0], z[-1] = -math.inf, math.inf
    expected = cdf_difference(z[:-1], z[1:])
    actual = DiscretizedLogistic(loc, torch.tensor(log_scale)).log_prob(LEVELS).double()
    torch.testing.assert_close(actual, expected.log(), atol=2e-5, rtol=2e-6)


def test_logistic_gradients_are_finite_everywhere_and_right():
    loc, log_scale = (p.requires_grad_() for p in extremes())
    DiscretizedLogistic(loc, log_scale).log_prob(LEVELS[:, None]).sum().backward()
    assert loc.grad.isfinite().all()
    assert log_scale.grad.isfinite().all()

    loc = torch.tensor([-0.9, 0.0, 0.95], dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([-3.0, -1.0, 1.0], dtype=torch.float64, requires_grad=True)
    value = LEVELS[[0, 1, 60, 128, 254, 255]].double()[:, None]
    assert torch.autograd.gradcheck(lambda m, s: DiscretizedLogistic(m, s).log_prob(value), (loc, log_scale))


def test_far_tails_pull_the_location_towards_the_value():
    loc = torch.tensor([-1.0, 1.0], requires_grad=True)
    log_mass = DiscretizedLogistic(loc, torch.tensor(-7.0)).log_prob(LEVELS[[254, 1]])
    log_mass.sum().backward()
    assert (log_mass < -2000).all()
    torch.testing.assert_close(loc.grad, torch.tensor([1.0, -1.0]) * math.exp(7), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("loc", "log_scale"), [(0.1, -4.0), (-1.0, -2.0), (0.9, 0.0), (2 * 99.5 / 255 - 1, -7.0)])
def test_logistic_samples_follow_log_prob(loc, log_scale):
    torch.manual_seed(0)
    p = DiscretizedLogistic(torch.tensor(loc), torch.tensor(log_scale))
    num = 200_000
    samples = p.sample((num,))
    levels = (samples * 255).round()
    torch.testing.assert_close(samples, levels / 255, rtol=0, atol=0)
    assert_frequencies(levels.long().bincount(minlength=256), p.log_prob(LEVELS).exp(), num)


def test_logistic_mean():
    loc, log_scale = extremes()
    p = DiscretizedLogistic(loc, log_scale)
    exact = (p.log_prob(LEVELS[:, None]).exp() * LEVELS[:, None]).sum(0)
    assert ((p.mean - exact).abs() <= 0.5 / 255 + 1e-4).all()
    wide = (log_scale.exp() * 127.5 > 1) & (log_scale < 7)
    torch.testing.assert_close(p.mean[wide], exact[wide], atol=1e-4, rtol=0)


def test_values_off_the_grid_count_as_the_nearest():
    p = DiscretizedLogistic(torch.tensor(0.1), torch.tensor(-3.0))
    torch.testing.assert_close(p.log_prob(LEVELS[100] + 0.4 / 255), p.log_prob(LEVELS[100]), rtol=0, atol=0)


def test_validation_refuses_values_outside_the_unit_interval():
    p = DiscretizedLogistic(torch.zeros(2), torch.zeros(2), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor([0.5, 128.0]))
    with pytest.raises(ValueError, match="support"):
        DiscretizedLogisticMixture(*mixture(3), validate_args=True).log_prob(torch.full((1, 3, 1, 1), 2.0))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_mixture_sums_to_one(channels, spread):
    p = DiscretizedLogisticMixture(*mixture(channels, k=10, b=3, seed=1, spread=spread))
    values = torch.cartesian_prod(*[LEVELS] * channels).view(-1, 1, channels, 1, 1)
    log_mass = p.log_prob(values)
    assert log_mass.shape == (256**channels, 3)
    assert log_mass.isfinite().all()
    torch.testing.assert_close(log_mass.double().exp().sum(0), torch.ones(3).double(), atol=1e-5, rtol=0)


def test_mixture_of_three_channels_sums_to_one_over_all_16_million_colours():
    p = DiscretizedLogisticMixture(*mixture(3, k=2, seed=2, spread=2.0))
    rest = torch.cartesian_prod(LEVELS, LEVELS)
    total = 0.0
    for red in LEVELS:
        colours = torch.cat([red.expand(len(rest), 1), rest], 1)
        log_mass = p.log_prob(colours.view(-1, 1, 3, 1, 1))
        total += log_mass.double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_mixture_is_its_definition(c):
    parameters = mixture(c, k=5, b=2, h=2, w=3, seed=c)
    g = torch.Generator().manual_seed(7)
    value = torch.randint(0, 256, (2, c, 2, 3), generator=g)
    value.flatten()[:3] = torch.tensor([0, 255, 254])
    value = value / 255
    p = DiscretizedLogisticMixture(*parameters)
    expected = torch.empty(2, 2, 3, dtype=torch.float64)
    for b, i, j in itertools.product(range(2), range(2), range(3)):
        expected[b, i, j] = naive(value[b, :, i, j], *(q[b, ..., i, j] for q in parameters)).log()
    torch.testing.assert_close(p.log_prob(value).double(), expected.sum((1, 2)), atol=1e-3, rtol=1e-5)


def test_mixture_is_finite_with_finite_gradients_at_extremes():
    for c, spread in itertools.product((1, 3), (1.0, 20.0)):
        parameters = [q.requires_grad_() for q in mixture(c, k=3, b=256, seed=c, spread=spread)]
        with torch.no_grad():
            parameters[0].mul_(50)
            parameters[1][::2].mul_(100)
        log_prob = DiscretizedLogisticMixture(*parameters).log_prob(LEVELS.view(256, 1, 1, 1).expand(-1, c, 1, 1))
        log_prob.sum().backward()
        assert log_prob.isfinite().all()
        assert all(q.grad.isfinite().all() for q in parameters if q.numel())


def test_mixture_gradients_are_right():
    parameters = [q.double().requires_grad_() for q in mixture(3, k=2, h=2, seed=5, spread=0.5)]
    value = torch.tensor([0, 100, 180, 255, 3, 90]).view(1, 3, 2, 1).double() / 255
    assert torch.autograd.gradcheck(lambda *q: DiscretizedLogisticMixture(*q).log_prob(value), parameters)


def test_mixture_samples_follow_log_prob():
    torch.manual_seed(0)
    num = 200_000
    p = DiscretizedLogisticMixture(*mixture(2, k=3, seed=3, spread=0.5))
    samples = p.sample((num,))
    assert samples.shape == (num, 1, 2, 1, 1)
    levels = (samples.view(num, 2) * 255).round().long()
    mass = p.log_prob(torch.cartesian_prod(LEVELS, LEVELS).view(-1, 1, 2, 1, 1)).exp().view(256, 256)
    # Cells of 8 x 8 levels, and each channel's edge values by themselves.
    cells = levels // 8
    assert_frequencies(
        (cells[:, 0] * 32 + cells[:, 1]).bincount(minlength=1024), mass.view(32, 8, 32, 8).sum((1, 3)).flatten(), num
    )
    assert_frequencies(levels[:, 0].bincount(minlength=256), mass.sum(1), num)
    assert_frequencies(levels[:, 1].bincount(minlength=256), mass.sum(0), num)


def test_mixture_samples_an_image_of_its_shape_on_the_grid():
    p = DiscretizedLogisticMixture(*mixture(3, b=2, h=4, w=5))
    sample = p.sample()
    assert sample.shape == p.mean.shape == (2, 3, 4, 5)
    assert p.sample((3, 2)).shape == (3, 2, 2, 3, 4, 5)
    torch.testing.assert_close((sample * 255).round() / 255, sample, rtol=0, atol=0)
    assert DiscretizedLogisticMixture(*mixture(1, b=2)).sample().shape == (2, 1, 1, 1)


def test_mixture_mean():
    torch.manual_seed(0)
    logits, loc, log_scale, coefficients = mixture(3, k=3, h=3, w=3, seed=6, spread=0.2)
    p = DiscretizedLogisticMixture(logits, 0.3 * loc, log_scale - 1, 0.3 * coefficients)
    num = 20_000
    samples = p.sample((num,))
    error = samples.std(0) / math.sqrt(num)
    assert ((p.mean - samples.mean(0)).abs() < 5 * error + 1e-3).all()
    wild = DiscretizedLogisticMixture(logits, 50 * loc, log_scale, coefficients).mean
    assert (wild >= 0).all()
    assert (wild <= 1).all()


def test_mixture_refuses_shapes_that_do_not_fit():
    logits, loc, log_scale, coefficients = mixture(3)
    with pytest.raises(ResvaeError, match="coefficients"):
        DiscretizedLogisticMixture(logits, loc, log_scale, coefficients[:, :, :2])


def assert_frequencies(counts: Tensor, mass: Tensor, num: int) -> None:
    """Counts of ``num`` draws fit ``mass``: every cell within 5.5 standard errors, and chi-squared within 5."""
    mass = mass.double()
    spread = (num * mass * (1 - mass)).sqrt()
    assert ((counts - num * mass).abs() <= 5.5 * spread + 5).all()
    kept = num * mass > 20
    chi2 = ((counts - num * mass).square() / (num * mass))[kept].sum()
    degrees = kept.sum()
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees) + 5
