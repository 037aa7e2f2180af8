"""Sub-images in turn: exact probabilities, samples and means, and no look at what comes later."""

import itertools
import math

import pytest
import torch

from resvae import VAE, HierarchicalVAE, load, save
from resvae.errors import ResvaeError
from resvae.networks.resnet import LastLayer
from resvae.probability import DiscretizedLogisticMixture, make_likelihood
from resvae.probability.subpixel import ORDER, SubPixelDistribution, SubPixelMixture, to_depth, to_space


@pytest.fixture
def likelihood() -> SubPixelMixture:
    """One whose layers matter: its context and its output start small."""
    torch.manual_seed(0)
    made = SubPixelMixture(2, num_mixtures=3, width=5, layers=2, scales=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def features(batch: int = 2, size: int = 4) -> torch.Tensor:
    return torch.randn(batch, 5, size, size, generator=torch.Generator().manual_seed(1))


def whole(p: SubPixelDistribution, x: torch.Tensor) -> DiscretizedLogisticMixture:
    """The mixtures of all pixels of images ``[B, C, H, W]``, given the sub-images before each."""
    names = ("logits", "loc", "log_scale", "coefficients")
    parts = [x[..., :: 2**i, :: 2**i] for i in reversed(range(len(p.later)))]
    arranged = []
    for name in names:
        value = getattr(p.first, name)
        for later, image in zip(p.later, parts, strict=True):
            rest = getattr(later(to_depth(image)), name).unflatten(0, (-1, 3))  # B 3 ... h w
            flat = [value.reshape(len(x), -1, *value.shape[-2:]), rest.reshape(len(x), -1, *rest.shape[-2:])]
            value = to_space(torch.cat(flat, 1)).unflatten(1, value.shape[1:-2])
        arranged.append(value)
    return DiscretizedLogisticMixture(*arranged)


def places(scales: int) -> list[tuple[int, int, int]]:
    """Of each sub-image in its turn, the distance of its pixels, and the row and column of the first."""
    steps = [2**i for i in range(scales, 0, -1)]
    later = [(step, row * step // 2, column * step // 2) for step in steps for row, column in ORDER[1:]]
    return [(2**scales, 0, 0), *later]


def of_values(mixture: DiscretizedLogisticMixture, row: int, column: int, values: torch.Tensor) -> torch.Tensor:
    """The log-probability of each grey value at a pixel, float64."""
    parts = (mixture.logits, mixture.loc, mixture.log_scale, mixture.coefficients)
    one = DiscretizedLogisticMixture(*(part[..., row : row + 1, column : column + 1] for part in parts))
    return one.log_prob(values.view(-1, 1, 1, 1, 1)).flatten().double()


def test_depth_and_space_are_inverse_and_each_sub_image_is_a_place_of_the_squares():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    assert torch.equal(to_space(to_depth(x)), x)
    for (row, column), part in zip(ORDER, to_depth(x).chunk(4, 1), strict=True):
        assert torch.equal(part, x[..., row::2, column::2])


def test_each_conditional_depends_on_the_sub_images_before_it_and_on_no_others(likelihood):
    x = torch.rand(1, 2, 8, 8)
    p = likelihood(features(1, 8))

    def of(places):
        loc = whole(p, x).loc
        return [loc[..., row::step, column::step] for step, row, column in places]

    assert len(places(2)) == 1 + 3 * 2
    assert sum(torch.ones(8, 8)[row::step, column::step].sum() for step, row, column in places(2)) == 64
    before = of(places(2))
    for changed, (step, row, column) in enumerate(places(2)):
        kept = x.clone()
        x[..., row::step, column::step] = torch.rand_like(x[..., row::step, column::step])
        same = [torch.equal(*pair) for pair in zip(before, of(places(2)), strict=True)]
        assert same == [i <= changed for i in range(7)]
        x = kept


def test_the_256_values_of_each_pixel_sum_to_1_given_those_before():
    torch.manual_seed(0)
    likelihood = SubPixelMixture(1, num_mixtures=2, width=5, scales=2)
    x = torch.randint(256, (1, 1, 4, 4)) / 255
    mixture = whole(likelihood(features(1)), x)
    for row, column in itertools.product(range(4), repeat=2):
        total = of_values(mixture, row, column, torch.arange(256) / 255).logsumexp(0)
        assert total.exp().item() == pytest.approx(1, abs=1e-5)


def test_all_images_of_2x2_together_have_probability_1():
    torch.manual_seed(0)
    likelihood = SubPixelMixture(1, num_mixtures=2, width=3, scales=1)
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    p = likelihood(torch.randn(1, 3, 2, 2))
    # Few grey levels: a value stands for its whole bin of 64, whose probability is the sum over the bin.
    values = torch.arange(256).view(4, 64) / 255
    total = 0.0
    for first, second, third in itertools.product(range(4), repeat=3):
        levels = [values[i][32] for i in (first, second, third)]  # given by one value of each bin
        x = torch.zeros(1, 1, 2, 2)
        log = torch.zeros((), dtype=torch.double)
        for (row, column), level, index in zip(ORDER, [*levels, None], [first, second, third, None], strict=True):
            mixture = whole(p, x)
            bins = values[index] if index is not None else torch.arange(256) / 255
            log = log + of_values(mixture, row, column, bins).logsumexp(0)
            if level is not None:
                x[..., row, column] = level
        total += log.exp().item()
    assert total == pytest.approx(1, abs=1e-4)


def test_log_prob_is_the_sum_of_the_conditionals_and_takes_many_samples(likelihood):
    p = likelihood(features())
    x = p.sample((3,))
    assert x.shape == (3, 2, 2, 4, 4)
    assert torch.equal((x * 255).round(), x * 255)
    log_probs = p.log_prob(x)
    assert log_probs.shape == (3, 2)
    torch.testing.assert_close(log_probs[1], whole(p, x[1]).log_prob(x[1]))


def test_samples_are_as_probable_as_their_entropy_says_and_look_at_each_other():
    torch.manual_seed(0)
    likelihood = SubPixelMixture(1, num_mixtures=1, width=2, scales=1)
    torch.nn.init.normal_(likelihood.scales[0].context.weight, std=2.0)  # pyright: ignore
    torch.nn.init.normal_(likelihood.scales[0].head.out.weight, std=1.0)  # pyright: ignore
    p = likelihood(torch.randn(1, 2, 2, 2).expand(4000, -1, -1, -1))
    x, y = p.sample(), p.sample()
    assert p.log_prob(x).mean().item() == pytest.approx(p.log_prob(y).mean().item(), rel=0.02)
    mixed = torch.where(torch.eye(2, dtype=torch.bool), x, y)  # the second diagonal of another image
    assert p.log_prob(mixed).mean() < p.log_prob(x).mean() - 0.05


def test_one_sub_image_alone_is_as_among_all(likelihood):
    p, x = likelihood(features()), torch.rand(2, 2, 4, 4)
    together, alone = p.later[-1](to_depth(x)), [p.later[-1](to_depth(x), i) for i in range(3)]
    for name in ("logits", "loc", "log_scale", "coefficients"):
        parts = torch.stack([getattr(each, name) for each in alone], 1).flatten(0, 1)
        torch.testing.assert_close(parts, getattr(together, name))


def test_the_mean_is_each_sub_images_given_the_means_before(likelihood):
    p = likelihood(features())
    mean = p.mean
    torch.testing.assert_close(mean, whole(p, mean).mean)
    assert mean.min() >= 0
    assert mean.max() <= 1


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_any_number_of_scales(scales):
    torch.manual_seed(0)
    size = 2**scales
    p = SubPixelMixture(3, num_mixtures=2, width=4, scales=scales)(torch.randn(2, 4, size, 2 * size))
    assert p.sample().shape == p.mean.shape == (2, 3, size, 2 * size)
    assert p.log_prob(p.mean).isfinite().all()


def test_a_start_expects_of_each_pixel_the_mean_of_its_nearest_neighbours_before_it():
    likelihood = SubPixelMixture(1, num_mixtures=4, width=3, layers=1)
    torch.nn.init.zeros_(likelihood.scales[0].head.out.weight)
    x = torch.rand(1, 1, 6, 6)
    expected, p = x[0, 0], whole(likelihood(torch.zeros(1, 3, 6, 6)), x)
    centre = (p.loc.mean(1)[0, 0] + 1) / 2
    torch.testing.assert_close(centre[2, 2], torch.tensor(0.5))  # the first sub-image has none before it
    corners = expected[2, 2] + expected[2, 4] + expected[4, 2] + expected[4, 4]
    torch.testing.assert_close(centre[3, 3], corners / 4)
    for row, column in ((2, 3), (3, 2)):
        cross = expected[row - 1, column] + expected[row + 1, column]
        cross = cross + expected[row, column - 1] + expected[row, column + 1]
        torch.testing.assert_close(centre[row, column], cross / 4)
    widths = p.loc[0, :, 0].amax(0) - p.loc[0, :, 0].amin(0)
    torch.testing.assert_close(widths[2, 2] / widths[3, 3], torch.tensor(4.0))
    torch.testing.assert_close(p.log_scale[0, 0, 0, 2, 2] - p.log_scale[0, 0, 0, 3, 3], torch.tensor(4.0).log())


@pytest.mark.parametrize("model", [VAE, HierarchicalVAE])
def test_models_train_score_sample_and_are_saved_with_it(tmp_path, model):
    torch.manual_seed(0)
    small = {"image_shape": (1, 8, 8), "widths": (8, 16), "strides": (1, 2)}
    vae = model(16, likelihood={"name": "subpixel_mixture", "width": 8, "num_mixtures": 2}, **small)
    x = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    terms = vae.elbo(x)
    (-terms.elbo.mean()).backward()
    assert all(p.grad is not None for p in vae.likelihood.parameters())
    assert 5 < -terms.log_likelihood.mean() / (64 * math.log(2)) < 20  # noise, where neighbours mislead
    vae.eval()
    assert vae.sample(2).shape == vae.reconstruct(x[:2]).shape == (2, 1, 8, 8)
    assert vae.interpolate(x[:1], x[1:2], 3).shape == (1, 3, 1, 8, 8)
    torch.manual_seed(0)
    tight = vae.log_likelihood(x, 30).mean()
    assert tight > vae.elbo(x).elbo.mean() - 5
    twin = load(save(vae, tmp_path / "saved"))
    torch.testing.assert_close(twin.reconstruct(x), vae.reconstruct(x))


@pytest.mark.parametrize(("scales", "patch"), [(1, 1), (1, 2), (2, 2), (1, 4)])
def test_what_a_last_layer_makes_of_a_patch_is_the_same_without_a_detour(scales, patch):
    torch.manual_seed(0)
    likelihood = SubPixelMixture(3, num_mixtures=2, width=5, scales=scales)
    layers = LastLayer(6, 5, patch), LastLayer(6, 5, patch, likelihood.order)
    layers[1].load_state_dict(layers[0].state_dict())
    h, x = torch.randn(2, 6, 8 // patch, 8 // patch), torch.rand(2, 3, 8, 8)
    made = [layer(h) for layer in layers]
    assert made[0].shape == (2, 5, 8, 8)
    assert made[1].shape == ((2, 20, 4, 4) if patch == 2 else (2, 5, 8, 8))
    found = [likelihood(features).log_prob(x) for features in made]
    torch.testing.assert_close(*found)
    gradients = [
        torch.autograd.grad(each.sum(), list(layer.parameters())) for each, layer in zip(found, layers, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_a_batch_mate_never_changes_a_result(likelihood):
    x = torch.rand(3, 2, 4, 4)
    together, alone = likelihood(features(3)).log_prob(x), likelihood(features(3)[:1]).log_prob(x[:1])
    torch.testing.assert_close(together[:1], alone)


def test_bad_shapes_are_refused_in_one_line(likelihood):
    with pytest.raises(ResvaeError, match=r"features: shape \(1, 5, 6, 4\) .* H and W multiples of 4"):
        likelihood(torch.zeros(1, 5, 6, 4))
    with pytest.raises(
        ResvaeError, match=r"likelihood\.colours: 3 .*subpixel_mixture takes num_mixtures, width, layers, scales"
    ):
        make_likelihood({"name": "subpixel_mixture", "colours": 3}, 1)
    with pytest.raises(ResvaeError, match="width: 0 is not allowed"):
        make_likelihood({"name": "subpixel_mixture", "width": 0}, 3)
    made = make_likelihood("subpixel_mixture", 3)
    assert made(torch.zeros(1, 64, 4, 4)).log_prob(torch.ones(1, 3, 4, 4)).isfinite().all()
