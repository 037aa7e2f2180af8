import math
import weakref
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hierarchies import assert_zero_mean, fresh, images, levels_of, means, sampled, seeded, tiny
from torch.distributions import Normal
from torch.distributions.kl import kl_divergence
from torch.optim import Adam

from resvae import HierarchicalVAE, ImageDataModule, LitVAE
from resvae.models.levels import Level, RelativeNormal

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
    assert prior.mean.std(0).min() > 0.02
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
def test_the_kl_is_torch_s_own_and_keeps_its_digits_where_the_prior_is_far_from_0():
    generator = torch.Generator().manual_seed(0)
    mean, log_scale, shift, factor = torch.randn(4, 1000, generator=generator)
    prior = Normal(mean.double(), log_scale.double().exp())
    ours = RelativeNormal(prior, shift.double(), factor.double())
    torch.testing.assert_close(ours.kl(), kl_divergence(ours, prior))
    small, far = 1e-4 * shift, Normal(1000 + mean, log_scale.exp())
    exact = (small.double() / far.stddev.double()).square() / 2
    torch.testing.assert_close(RelativeNormal(far, small, torch.zeros(1000)).kl().double(), exact, rtol=1e-5, atol=0)


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
    vae.log_likelihood(images(16), 30)  # two times 16 images in a pass
    assert len(encoded) == 1
    assert len(kept) == 15
    assert most <= 2  # this pass's and the last one's
    stream = vae.log_weights(images(16), 10**9)
    for _ in range(3):
        next(stream)
    assert len(kept) == 17


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_samples_in_one_pass_are_samples_one_by_one(monkeypatch, num_samples):
    vae, x = tiny(), images(3)
    alone = [weight.clone() for weight in vae.log_weights(x[:1], 400)]
    monkeypatch.setattr("resvae.models.base.AT_ONCE", {"cpu": 6})
    together = list(vae.log_weights(x, num_samples))
    assert [len(weight) for weight in together] == [3] * num_samples
    monkeypatch.setattr("resvae.models.base.AT_ONCE", {"cpu": 1})
    again = [weight.clone() for weight in vae.log_weights(x[:1], 400)]
    assert abs(torch.cat(alone).mean() - torch.cat(again).mean()) < 5 * torch.cat(again).std() / 200**0.5
    ones = tiny()
    monkeypatch.setattr(type(ones), "log_weight", lambda self, seen: seen.x.flatten(1).sum(1))
    monkeypatch.setattr("resvae.models.base.AT_ONCE", {"cpu": 6})
    for weight in ones.log_weights(x, num_samples):
        torch.testing.assert_close(weight, (x / 255).flatten(1).sum(1))


def test_a_pass_that_memory_does_not_hold_is_made_in_parts(monkeypatch):
    vae, sizes = tiny(), []

    def limited(self, seen):
        sizes.append(len(seen))
        if len(seen) > 40:
            raise torch.OutOfMemoryError
        return seen.x.flatten(1).sum(1)

    monkeypatch.setattr("resvae.models.base.AT_ONCE", {"cpu": 256})
    monkeypatch.setattr(type(vae), "log_weight", limited)
    assert len(list(vae.log_weights(images(10), 20))) == 20
    assert sizes == [200, 100, 50, 20, *[20] * 9]
    with pytest.raises(torch.OutOfMemoryError):
        list(vae.log_weights(images(50), 2))  # not even once


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


def test_silent_levels_take_no_gradient_and_what_was_frozen_stays_so():
    vae = HierarchicalVAE(
        (2, 2), levels=(2, 2), image_shape=(1, 8, 8), widths=(4, 8), strides=(1, 2), stochastic_depth=2
    )
    levels = [module for module in vae.modules() if isinstance(module, Level)]
    assert [level.posterior_net[1].weight.requires_grad for level in levels] == [True, False, True, False]
    vae.elbo(torch.zeros(1, 1, 8, 8)).elbo.sum().backward()
    assert all(p.grad is not None for p in vae.parameters() if p.requires_grad)
    vae.stochastic_depth = None
    assert all(p.requires_grad for p in vae.parameters())
    vae.requires_grad_(False)
    vae.stochastic_depth = 4
    assert not any(p.requires_grad for p in vae.parameters())
