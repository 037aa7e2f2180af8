"""Where the levels of a hierarchical VAE stand, which have latents, and who decides what these are."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hierarchies import FOUR, fresh, images, levels_of, means, same_visits, sampled, seeded, tiny
from torch import nn
from torch.distributions.kl import kl_divergence

from resvae import load, save
from resvae.errors import ResvaeError
from resvae.evaluation import evaluate
from resvae.models import HierarchicalVAE
from resvae.models.hierarchical import Level
from resvae.networks.blocks import ResidualBlock

# What a caller decides


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("replacement", ["mean", "sample"])
def test_a_lesion_changes_its_level_and_what_comes_after(level, replacement):
    vae, x = tiny(), images(3)

    def lesion(here, prior, posterior):
        if here != level:
            return posterior.mean
        return prior.mean if replacement == "mean" else prior.sample()

    p, whole = vae.descend(means, x)
    q, hurt = vae.descend(lesion, x)
    assert same_visits(whole[:level], hurt[:level])
    a, b = whole[level], hurt[level]
    assert torch.equal(a.posterior.mean, b.posterior.mean)
    assert torch.equal(a.prior.stddev, b.prior.stddev)
    assert not torch.equal(a.z, b.z)
    for i in range(level + 1, 3):
        assert not same_visits(whole[i : i + 1], hurt[i : i + 1])
    assert not torch.equal(p.mean, q.mean)


@pytest.mark.parametrize("stochastic_depth", [None, 2])
def test_reconstructions_from_the_coarsest_levels(stochastic_depth):
    vae, x, others = tiny(levels=(2, 2), stochastic_depth=stochastic_depth), images(3), images(3, seed=2)
    assert torch.equal(vae.reconstruct(x, 0), vae.reconstruct(others, 0))
    torch.testing.assert_close(vae.reconstruct(x, 0), vae.sample(3, temperature=0))
    assert torch.equal(vae.reconstruct(x, 4), vae.reconstruct(x))
    steps = [vae.reconstruct(x, k) for k in range(5)]
    seen = [not torch.equal(a, b) for a, b in pairwise(steps)]
    assert seen == [level in vae.stochastic for level in range(4)]
    for num in (-1, 5):
        with pytest.raises(ResvaeError, match=rf"num_levels: {num} is not allowed; 0 to 4"):
            vae.reconstruct(x, num)


def test_a_temperature_a_level():
    vae = tiny()
    cold = vae.sample(3, temperature=[0, 0, 0])
    assert torch.equal(cold[0], cold[2])
    assert torch.equal(cold, vae.sample(3, temperature=0.0))
    plain, mixed = seeded(1, vae.sample_prior, 3), seeded(1, vae.sample_prior, 3, [0.5, 0, 1.0])
    _, visits = vae.descend(lambda level, prior, posterior: vae.split(mixed)[level], num=3)
    prior = visits[0].prior.mean
    torch.testing.assert_close(vae.split(mixed)[0] - prior, 0.5 * (vae.split(plain)[0] - prior))
    torch.testing.assert_close(visits[1].z, visits[1].prior.mean)
    assert (visits[2].z - visits[2].prior.mean).abs().min() > 0
    assert torch.equal(seeded(1, vae.sample_prior, 3, [1, 1, 1]), plain)
    vae = tiny(levels=(2, 2), stochastic_depth=2)  # levels 0 and 2 have latents
    assert torch.equal(vae.sample(3, temperature=[0, 1, 0, 1]), vae.sample(3, temperature=0))


@pytest.mark.parametrize("temperature", [[1.0], [1.0] * 4, [1.0, -0.1, 1.0], [1.0, math.nan, 1.0], [], -1.0])
def test_other_temperatures_are_refused(temperature):
    with pytest.raises(ResvaeError, match=r"^temperature: .* is not allowed; 0 or more, .*one per level \(3\)$"):
        tiny().sample(2, temperature=temperature)


# Levels without latents


@pytest.mark.parametrize(
    ("levels", "num", "stochastic"),
    [(8, 4, (0, 2, 4, 6)), (5, 2, (0, 2)), (4, 1, (0,)), (3, 2, (0, 1)), (5, 5, (0, 1, 2, 3, 4))],
)
def test_the_levels_that_have_latents_are_spread_evenly_from_the_first_on(levels, num, stochastic):
    vae = fresh(levels=(levels, 0), stochastic_depth=num)
    assert vae.stochastic == stochastic
    assert vae.stochastic_depth == num
    assert vae.posterior(images(2)).mean.shape == (2, num * 2 * 4 * 4)


@torch.no_grad()
@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_level_without_latents_takes_its_prior_s_mean(num):
    whole, part, x = tiny(levels=(2, 2)), tiny(levels=(2, 2), stochastic_depth=num), images(3)
    has = part.stochastic

    def choose(level, prior, posterior):
        return posterior.rsample() if level in has else prior.mean

    p, visits = seeded(5, whole.descend, choose, x)
    q, left = seeded(5, part.descend, sampled, x)
    terms = seeded(5, part.elbo, x)
    assert len(left) == num
    assert same_visits([visits[level] for level in has], left)
    torch.testing.assert_close(terms.log_likelihood, p.log_prob(x / 255))
    torch.testing.assert_close(q.mean, p.mean)
    for level, visit in enumerate(visits):
        kl = kl_divergence(visit.posterior, visit.prior).flatten(1).sum(1)
        torch.testing.assert_close(terms.kl[:, level], kl if level in has else torch.zeros(3), rtol=1e-5, atol=0)
    z = seeded(2, part.sample_prior, 3)
    torch.testing.assert_close(part.decode(z).mean.clamp(0, 1), seeded(2, part.sample, 3))


def test_levels_can_be_silenced_after_training_and_given_back(tmp_path):
    vae, x = tiny(levels=(2, 2)), images(3)
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    elbo, size = seeded(5, vae.elbo, x).elbo, vae.posterior(x).mean.shape[1]
    vae.stochastic_depth = 2
    assert vae.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    silenced = seeded(5, vae.elbo, x)
    loaded = load(save(vae, tmp_path))
    assert loaded.stochastic_depth == 2
    assert torch.equal(seeded(5, loaded.elbo, x).elbo, silenced.elbo)
    report = evaluate(loaded, [x], 3)
    assert [kl > 0 for kl in report.kl_levels] == [True, False, True, False]
    assert report.kl == pytest.approx(sum(report.kl_levels))
    assert report.latents == size - 2 * 4 * 4 - 2 * 8 * 8
    assert report.arguments["stochastic_depth"] == 2
    with pytest.raises(ResvaeError):
        vae.stochastic_depth = 5
    assert vae.stochastic_depth == 2
    vae.stochastic_depth = None
    assert torch.equal(seeded(5, vae.elbo, x).elbo, elbo)
    assert vae.arguments == fresh(levels=(2, 2)).arguments


# Where levels stand


def test_levels_stand_where_they_are_asked_for_whatever_the_depth():
    shapes = [(2, 1, 1), (2, 2, 2), (2, 2, 2), *[(2, 8, 8)] * 5]
    for depth in (28, 40, (1, 2, 1, 3)):
        vae = HierarchicalVAE(depth, (1, 2, 0, 5), **FOUR)
        assert vae.num_levels == 8
        assert vae.latent_shapes == shapes
        _, visits = vae.descend(sampled, images(2))
        assert [tuple(visit.z.shape[1:]) for visit in visits] == shapes
    assert HierarchicalVAE(28, 6, **FOUR).latent_shapes == HierarchicalVAE(40, (1, 1, 2, 2), **FOUR).latent_shapes


@pytest.mark.parametrize(
    ("blocks", "levels", "order"), [(4, 2, "LBBLBB"), (3, 3, "LBLBLB"), (1, 2, "LLB"), (2, 3, "LLBLB"), (2, 0, "BB")]
)
def test_levels_are_spread_over_the_blocks_of_their_stage(blocks, levels, order):
    kinds = {Level: "L", ResidualBlock: "B"}
    for level_block, level in ((False, "L"), (True, "LB")):
        vae = fresh(depth=(1, blocks), levels=(levels, 1), level_block=level_block)
        made = ["".join(kinds[type(module)] for module in stage) for stage in vae.stages]
        assert made == [order.replace("L", level), f"{level}B"]


@pytest.mark.parametrize("depth", [28, 40])
def test_depth_counts_the_weighted_layers_of_the_main_path(depth):
    vae = HierarchicalVAE(depth, 8, level_block=False, **FOUR)
    own = [f"{name}." for name, module in vae.named_modules() if isinstance(module, Level)]
    weighted = nn.Conv2d | nn.ConvTranspose2d
    layers = [name for name, m in vae.named_modules() if isinstance(m, weighted) and "shortcut" not in name]
    assert len([name for name in layers if not name.startswith(tuple(own))]) + 2 == depth


def test_more_levels_add_their_own_parameters_and_no_others():
    def count(modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    few, many = (fresh(levels=levels, level_block=False) for levels in ((2, 1), (4, 2)))
    assert count(levels_of(many)) == 2 * count(levels_of(few))
    assert count([many]) - count([few]) == count(levels_of(few))


@pytest.mark.parametrize("posterior", ["concat_1x1", "concat_3x3", "sum_3x3"])
def test_a_posterior_sees_the_state_and_the_features_of_its_pixel_and_of_its_neighbours_where_it_is_3x3(posterior):
    vae, x = tiny(posterior=posterior), images(1)
    level, h = levels_of(vae)[-1], torch.randn(1, 8, 8, 8, requires_grad=True)
    features = torch.randn(1, 8, 8, 8, requires_grad=True)
    shift = level.posterior(h, features, level.prior(h)).shift
    for gradient in torch.autograd.grad(shift[0, 0, 4, 4], (h, features)):
        seen = gradient[0].abs().sum(0) > 0
        expected = torch.zeros_like(seen)
        expected[(slice(4, 5),) * 2 if posterior == "concat_1x1" else (slice(3, 6),) * 2] = True
        assert torch.equal(seen, expected)
    assert vae.elbo(x).elbo.isfinite().all()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_move_pixels_into_channels_and_back(patch):
    vae = tiny(image_shape=(3, 16, 16), patch=patch)
    assert vae.latent_shapes == [(2, 8 // patch, 8 // patch)] * 2 + [(2, 16 // patch, 16 // patch)]
    assert vae.encoder.strides == (patch, 2 * patch)
    assert vae.sample(2).shape == (2, 3, 16, 16)
    x = images(2, (3, 16, 16)).float() / 255
    x.requires_grad = True
    p, _ = vae.descend(means, x)
    (gradient,) = torch.autograd.grad(p.mean.sum(), x)
    assert gradient.ne(0).all()


def test_models_that_were_saved_without_newer_arguments_are_those_of_their_time(tmp_path):
    vae = tiny(level_block=False, posterior="concat_3x3")
    folder = save(vae, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for name in ("level_block", "posterior", "patch"):
        del config["arguments"][name]
    del config["arguments"]["block"]["min_inner"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded, x = load(folder), images(3)
    assert loaded.arguments == vae.arguments
    assert torch.equal(seeded(1, loaded.elbo, x).elbo, seeded(1, vae.elbo, x).elbo)


@pytest.mark.parametrize(
    ("shape", "strides", "coarsest"),
    [
        ((3, 32, 32), (1, 2, 2, 2, 4), (1, 1)),
        ((1, 16, 16), (1, 2, 2, 4), (1, 1)),
        ((3, 48, 64), (1, 2, 2, 2), (6, 8)),
        ((2, 8, 24), (1, 2, 4), (1, 3)),
    ],
)
def test_every_pixel_reaches_the_coarsest_latents(shape, strides, coarsest):
    num = len(strides)
    sizes = {"depth": (1,) * num, "widths": (4,) * num, "strides": strides}
    vae = fresh(levels=num, latent_channels=1, image_shape=shape, **sizes)
    assert vae.latent_shapes[0] == (1, *coarsest)
    x = torch.rand(1, *shape, requires_grad=True)
    _, visits = vae.descend(sampled, x)
    assert visits[0].z.shape[2:] == coarsest
    (gradient,) = torch.autograd.grad(visits[0].posterior.mean.square().sum(), x)
    assert gradient.ne(0).all()
    assert vae.elbo(x.detach()).elbo.isfinite().all()
    assert vae.sample(2).shape == (2, *shape)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": 0}, "levels: 0 is not allowed; at least 1"),
        ({"levels": -3}, "levels: -3 is not allowed; at least 1"),
        ({"levels": (1, 1, 1)}, r"levels: \(1, 1, 1\) is not allowed; .* 2 numbers of levels, .* one of them above 0"),
        ({"levels": (0, 0)}, r"levels: \(0, 0\) is not allowed; .*above 0"),
        ({"levels": (2, -1)}, r"levels: \(2, -1\) is not allowed; "),
        ({"levels": "22"}, "levels: '22' is not allowed; "),
        ({"latent_channels": 0}, "latent_channels: 0 is not allowed; at least 1"),
        ({"stochastic_depth": 0}, "stochastic_depth: 0 is not allowed; 1 to the number of levels, 3"),
        ({"stochastic_depth": 4}, "stochastic_depth: 4 is not allowed; 1 to the number of levels, 3"),
        ({"image_shape": (3, 8, 9)}, "image size: 8x9 is not divisible by .*strides, 2 .*8 and 10"),
        ({"depth": 17}, "depth: 17 is not allowed .*16 and 22"),
        ({"likelihood": "poisson"}, "likelihood: 'poisson' is not allowed; "),
        ({"posterior": "sum_5x5"}, "posterior: 'sum_5x5' is not allowed; one of concat_1x1, concat_3x3, sum_3x3"),
        ({"patch": 0}, "patch: 0 is not allowed; at least 1"),
        ({"patch": 8}, "image size: 8x8 is not divisible by .*strides, 16 in all; .*16 and 32"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, said):
    with pytest.raises(ResvaeError, match=f"^{said}") as caught:
        fresh(**arguments)
    assert "\n" not in str(caught.value)
