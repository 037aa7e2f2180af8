import math
import weakref
from itertools import pairwise
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions.kl import kl_divergence
from torch.optim import Adam

from resvae import ImageDataModule, LitVAE, load, save
from resvae.errors import ResvaeError
from resvae.evaluation import evaluate
from resvae.models import HierarchicalVAE
from resvae.models.hierarchical import Level
from resvae.networks.blocks import ResidualBlock
from resvae.probability import importance_bound

TINY: dict[str, Any] = {"depth": (1, 1), "levels": (2, 1), "latent_channels": 2, "image_shape": (3, 8, 8)}
TINY |= {"widths": (8, 16), "strides": (1, 2)}
FOUR: dict[str, Any] = {"latent_channels": 2, "image_shape": (3, 8, 8), "widths": (4, 4, 8, 8)}


def drawn(vae, size=0.5):
    """With weights drawn anew, of one scale: priors that differ from N(0, 1), and posteriors from them."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in vae.parameters():
            fan_in = p[0].numel() if p.ndim == 4 else 10
            p.copy_(size * fan_in**-0.5 * torch.randn(p.shape, generator=generator))
    return vae.eval()


def fresh(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return HierarchicalVAE(**TINY | arguments)


def tiny(**arguments):
    return drawn(fresh(**arguments))


def images(num, shape=(3, 8, 8), seed=1):
    return torch.randint(0, 256, (num, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def seeded(seed, function, *args, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


def sampled(level, prior, posterior):
    return posterior.rsample()


def means(level, prior, posterior):
    return (prior if posterior is None else posterior).mean


def levels_of(vae: Any) -> list[Any]:
    return [module for stage in vae.stages for module in stage if isinstance(module, Level)]


def assert_zero_mean(values, error_below):
    """Of draws along the first dimension, within 5 standard errors, which are small enough to tell."""
    values = values.double()
    error = values.std(0) / len(values) ** 0.5
    assert (values.mean(0).abs() < 5 * error).all()
    assert (error < error_below).all()


def same_visits(a, b):
    pairs = [(v.z, w.z) for v, w in zip(a, b, strict=True)]
    for part in ("prior", "posterior"):
        for v, w in zip(a, b, strict=True):
            p, q = getattr(v, part), getattr(w, part)
            pairs += [(p.mean, q.mean), (p.stddev, q.stddev)]
    return all(torch.equal(x, y) for x, y in pairs)


# KL, ELBO and the importance-weighted bound


@torch.no_grad()
def test_each_level_s_kl_is_the_mean_log_ratio_of_posterior_and_prior():
    vae, x = tiny(), images(1).expand(2000, -1, -1, -1)
    kl = seeded(3, vae.elbo, x).kl
    _, visits = seeded(3, vae.descend, sampled, x)
    ratios = torch.stack([(v.posterior.log_prob(v.z) - v.prior.log_prob(v.z)).flatten(1).sum(1) for v in visits], 1)
    assert (kl.mean(0) > 0.2).all()
    assert (kl[:, 1:].std(0) > 0.1).all()  # given the levels above
    assert_zero_mean(ratios - kl, 0.15)
    assert_zero_mean((ratios - kl).sum(1), 0.15)
    prior = visits[1].prior  # which differs from N(0, 1), and from image to image
    assert prior.mean.std(0).min() > 0.1
    assert (prior.stddev - 1).abs().mean() > 0.1


@torch.no_grad()
def test_the_kl_is_the_closed_form_of_the_posterior_relative_to_the_prior():
    vae, x, raw = tiny(), images(3), []
    for level in levels_of(vae):
        level.posterior_net.register_forward_hook(lambda *args: raw.append(args[-1]))
    kl = seeded(3, vae.elbo, x).kl
    _, visits = seeded(3, vae.descend, sampled, x)
    for i, visit in enumerate(visits):
        a, b = raw[i].chunk(2, 1)
        b = 5 * torch.tanh(b / 5)
        s = visit.prior.stddev
        torch.testing.assert_close(kl[:, i], (((a / s) ** 2 + (2 * b).exp() - 1) / 2 - b).flatten(1).sum(1))
        torch.testing.assert_close(visit.posterior.mean, visit.prior.mean + a)


@torch.no_grad()
@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize(("net", "bound"), [("prior_net", 2), ("posterior_net", 5)])
def test_scales_stay_within_bounds(net, bound, value):
    vae, x = tiny(), images(3)
    for level in levels_of(vae):
        getattr(level, net)[1].bias[2:] = value
    terms = vae.elbo(x)
    assert terms.elbo.isfinite().all()
    _, visits = vae.descend(sampled, x)
    for visit in visits:
        log_scale = visit.prior.stddev.log()
        if net == "posterior_net":
            log_scale = visit.posterior.stddev.log() - log_scale
        torch.testing.assert_close(log_scale, torch.full_like(log_scale, math.copysign(bound, value)))


@torch.no_grad()
@pytest.mark.parametrize("stochastic_depth", [None, 1])
def test_one_sample_s_log_weight_is_the_elbo_on_average(stochastic_depth):
    vae, x = tiny(stochastic_depth=stochastic_depth), images(1).expand(2000, -1, -1, -1)
    weights = next(seeded(4, vae.log_weights, x, 1))
    assert_zero_mean(weights - seeded(4, vae.elbo, x).elbo, 0.15)


def test_log_weights_encode_once_and_keep_nothing():
    vae, encoded, kept, most = tiny(), [], [], 0
    vae.encoder.stem.register_forward_hook(lambda *_: encoded.append(1))

    def count(module, inputs, output):
        nonlocal most
        kept.append(weakref.ref(output))
        most = max(most, sum(reference() is not None for reference in kept))

    vae.out.register_forward_hook(count)
    vae.log_likelihood(images(2), 30)
    assert len(encoded) == 1
    assert len(kept) == 30
    assert most <= 2  # this sample's and the last one's
    stream = vae.log_weights(images(2), 10**9)
    for _ in range(2):
        next(stream)
    assert len(kept) == 32


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


# The start and training


def test_priors_start_at_a_standard_normal_and_posteriors_near():
    vae, x = fresh(), images(4)
    _, visits = vae.descend(sampled, x)
    for visit in visits:
        torch.testing.assert_close(visit.prior.mean, torch.zeros_like(visit.z))
        torch.testing.assert_close(visit.prior.stddev, torch.ones_like(visit.z))
        assert kl_divergence(visit.posterior, visit.prior).mean() < 1
    assert (vae.elbo(x).kl > 0).all()


def test_bf16_gives_nearly_the_same_elbo_and_float32_terms():
    vae, x = tiny(), images(8)
    with torch.autocast("cpu", torch.bfloat16):
        terms = seeded(2, vae.elbo, x)
        p, visits = vae.descend(sampled, x)
    exact = seeded(2, vae.elbo, x)
    assert terms.log_likelihood.dtype == terms.kl.dtype == p.mean.dtype == torch.float32
    assert {v.dtype for visit in visits for v in (visit.prior.mean, visit.posterior.stddev)} == {torch.float32}
    assert not torch.equal(terms.elbo, exact.elbo)
    torch.testing.assert_close(terms.elbo.mean(), exact.elbo.mean(), rtol=0.02, atol=0)


@torch.no_grad()
def test_the_decoder_s_state_starts_at_one_size_whatever_the_depth_and_the_levels():
    sizes = []
    for depth, levels in [((1, 1), 2), ((1, 1), 40), ((30, 30), 2), ((30, 30), 40)]:
        vae = fresh(depth=depth, levels=levels)
        vae.final.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].std().item()))
        assert vae.elbo(images(4)).elbo.isfinite().all()
    assert max(sizes) < 5 * min(sizes), sizes


@pytest.mark.filterwarnings("ignore:.*many workers.*")
def test_training_lowers_the_loss_and_logs_each_level():
    model = LitVAE(fresh(image_shape=(1, 8, 8)), lambda p: Adam(p, 5e-3), precision="fp32")
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, max_epochs=8, **quiet)
    data = ImageDataModule("digits", batch_size=16, validation=50, limit=96)
    before = trainer.validate(model, data, verbose=False)[0]
    trainer.fit(model, data)
    after = trainer.callback_metrics
    assert after["val/loss"] < before["val/loss"] - 20
    assert {f"{split}/kl_level_0{i}" for split in ("train", "val") for i in range(3)} < after.keys()
    assert sum(after[f"val/kl_level_0{i}"] for i in range(3)) == pytest.approx(after["val/kl"].item(), rel=1e-4)
    assert model.guard.skipped == 0


# Posterior, prior and likelihood


@torch.no_grad()
@pytest.mark.parametrize("stochastic_depth", [None, 2])
def test_latents_side_by_side_and_level_by_level_are_the_same(stochastic_depth):
    vae, x = tiny(levels=(2, 2), stochastic_depth=stochastic_depth), images(3)
    posterior = vae.posterior(x)
    p, visits = vae.descend(means, x)
    torch.testing.assert_close(vae.decode(posterior.mean).log_prob(x / 255), p.log_prob(x / 255))
    z = seeded(6, posterior.rsample)
    assert z.shape == (3, *posterior.event_shape)
    parts = vae.split(z)
    assert [part.shape[1:] for part in parts] == [vae.latent_shapes[level] for level in vae.stochastic]
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], 1), z)
    _, visits = seeded(6, vae.descend, sampled, x)
    assert all(torch.equal(visit.z, part) for visit, part in zip(visits, parts, strict=True))
    of_levels = [visit.posterior.log_prob(visit.z).flatten(1).sum(1) for visit in visits]
    torch.testing.assert_close(posterior.log_prob(z), torch.stack(of_levels).sum(0))
    assert posterior.log_prob(z).shape == (3,)
    both = seeded(6, posterior.sample, (2, 1))
    assert both.shape == (2, 1, *z.shape)
    assert torch.equal(both[0, 0], z)
    assert not torch.equal(both[1, 0], z)
    p, visits = seeded(7, vae.descend, lambda level, prior, posterior: prior.sample(), num=3)
    assert all(visit.posterior is None for visit in visits)
    z = seeded(7, vae.sample_prior, 3)
    torch.testing.assert_close(vae.split(z), [visit.z for visit in visits])
    torch.testing.assert_close(vae.decode(z).mean, p.mean)


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
    vae = fresh(depth=(1, blocks), levels=(levels, 1))
    kinds = {Level: "L", ResidualBlock: "B"}
    assert ["".join(kinds[type(module)] for module in stage) for stage in vae.stages] == [order, "LB"]


@pytest.mark.parametrize("depth", [28, 40])
def test_depth_counts_the_weighted_layers_of_the_main_path(depth):
    vae = HierarchicalVAE(depth, 8, **FOUR)
    own = [f"{name}." for name, module in vae.named_modules() if isinstance(module, Level)]
    weighted = nn.Conv2d | nn.ConvTranspose2d
    layers = [name for name, m in vae.named_modules() if isinstance(m, weighted) and "shortcut" not in name]
    assert len([name for name in layers if not name.startswith(tuple(own))]) + 2 == depth


def test_more_levels_add_their_own_parameters_and_no_others():
    def count(modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    few, many = (fresh(levels=levels) for levels in ((2, 1), (4, 2)))
    assert count(levels_of(many)) == 2 * count(levels_of(few))
    assert count([many]) - count([few]) == count(levels_of(few))


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
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, said):
    with pytest.raises(ResvaeError, match=f"^{said}") as caught:
        fresh(**arguments)
    assert "\n" not in str(caught.value)
