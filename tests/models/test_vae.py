import math

import pytest
import torch
from torch import nn

from resvae.errors import ResvaeError
from resvae.models import VAE
from resvae.networks import BlockConfig

TINY = {"latent_dim": 4, "image_shape": (3, 8, 8), "widths": (4, 4, 8, 8)}


def images(num=2, shape=(3, 8, 8)):
    return torch.randint(0, 256, (num, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def main_path(vae, x):
    """Names of the weighted layers that an image passes on its way through the model, shortcuts left out."""
    passed = []
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and ".shortcut" not in name:
            module.register_forward_hook(lambda *_, name=name: passed.append(name))
    vae.elbo(x)
    return passed


@pytest.mark.parametrize(
    ("depth", "kind", "blocks"),
    [
        (28, "bottleneck", (1, 1, 1, 1)),
        (40, "bottleneck", (1, 2, 2, 1)),
        (70, "bottleneck", (2, 3, 4, 2)),
        (100, "bottleneck", (3, 4, 6, 3)),
        (202, "bottleneck", (3, 4, 23, 3)),
        (304, "bottleneck", (3, 8, 36, 3)),
        (20, "basic", (1, 1, 1, 1)),
        (68, "basic", (3, 4, 6, 3)),
    ],
)
def test_depth_counts_the_weighted_layers_of_the_main_path(depth, kind, blocks):
    vae = VAE(depth, block=BlockConfig(kind=kind), **TINY)
    assert tuple(map(len, vae.encoder.stages)) == blocks
    assert tuple(map(len, vae.decoder.stages)) == blocks[::-1]
    passed = main_path(vae, images())
    assert len(passed) == len(set(passed)) == depth


def test_blocks_a_stage_instead_of_a_depth():
    vae = VAE((1, 2, 3, 1), **TINY)
    assert tuple(map(len, vae.encoder.stages)) == (1, 2, 3, 1)
    assert len(main_path(vae, images())) == 2 * 3 * 7 + 4


@pytest.mark.parametrize("patch", [2, 4])
def test_patches_are_pixels_of_encoder_and_decoder(patch):
    vae = VAE((1, 1), 4, (3, 16, 16), (4, 8), (1, 2), patch=patch)
    assert vae.encoder.out_shape == vae.decoder.in_shape == (8, 8 // patch, 8 // patch)
    assert vae.sample(2).shape == (2, 3, 16, 16)
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(vae.posterior(x).mean.sum(), x)
    assert gradient.ne(0).all()
    with pytest.raises(ResvaeError, match=r"patch: 0 is not allowed; at least 1"):
        VAE((1, 1), 4, (3, 16, 16), (4, 8), (1, 2), patch=0)


def test_a_depth_that_no_blocks_give_is_refused_with_the_two_nearest():
    with pytest.raises(ResvaeError, match=r"depth: 29.*28 and 34") as caught:
        VAE(29)
    assert "\n" not in str(caught.value)
    with pytest.raises(ResvaeError, match=r"depth: 22.*28 and 34.*basic"):
        VAE(22)
    with pytest.raises(ResvaeError, match=r"depth: \(1, 2\)"):
        VAE((1, 2))


def test_depth_1000_starts_finite():
    torch.manual_seed(0)
    vae = VAE(1000, **TINY)
    assert sum(map(len, vae.encoder.stages)) == sum(map(len, vae.decoder.stages)) == 166
    loss = -vae.elbo(images()).elbo.mean()
    loss.backward()
    # About what a shallow one starts with: the scaled branches add up to the size of one.
    shallow = -VAE(28, **TINY).elbo(images()).elbo.mean()
    assert 0.5 < loss / shallow < 2
    gradients = torch.stack([p.grad.norm() for p in vae.parameters()])
    assert gradients.isfinite().all()
    stem = vae.encoder.stem[0].weight.grad.norm()
    assert stem > 1e-3 * gradients.max()  # what reaches the first layer has not vanished


@pytest.mark.parametrize("shape", [(3, 10, 8), (3, 8, 30), (3, 4, 4)])
def test_an_image_size_that_the_strides_do_not_divide_is_refused(shape):
    with pytest.raises(ResvaeError, match=rf"{shape[1]}x{shape[2]}.*8 in all.*nearest"):
        VAE(28, 4, shape, (4, 4, 8, 8))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 16, 24), (4, 8, 40)])
def test_other_images(shape):
    vae = VAE(28, 4, shape, (4, 4, 8, 8)).eval()
    x = images(2, shape)
    assert vae.elbo(x).elbo.isfinite().all()
    assert vae.elbo(x).num_dims == math.prod(shape)
    assert vae.reconstruct(x).shape == vae.sample(2).shape == x.shape


def test_images_of_another_shape_are_refused_with_both_shapes():
    vae = VAE(28, **TINY)
    for x in (images(2, (1, 8, 8)), images(2, (3, 16, 16)), images(2)[0]):
        for method in (vae.elbo, vae.posterior, vae.reconstruct, vae.log_likelihood):
            with pytest.raises(ResvaeError) as caught:
                method(x)
            assert str(tuple(x.shape)) in str(caught.value)
            assert "(batch, 3, 8, 8)" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, 1.01, 255.0])
def test_values_that_no_image_has_are_refused(value):
    vae = VAE(28, **TINY)
    x = torch.rand(2, 3, 8, 8)
    vae.elbo(x)
    x[1, 2, 3, 4] = value
    for method in (vae.elbo, vae.posterior, vae.reconstruct, vae.log_likelihood):
        with pytest.raises(ResvaeError, match=r"values from .* are not allowed; floats must lie in \[0, 1\]"):
            method(x)
    with pytest.raises(ResvaeError, match="values"):
        vae.interpolate(torch.rand(2, 3, 8, 8), x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.int32])
def test_other_types_are_refused(dtype):
    with pytest.raises(ResvaeError, match=str(dtype)):
        VAE(28, **TINY).elbo(torch.ones(2, 3, 8, 8, dtype=dtype))


def test_the_ends_of_the_range_are_images():
    vae = VAE(28, **TINY)
    for value in (0.0, 1.0):
        assert vae.elbo(torch.full((2, 3, 8, 8), value)).elbo.isfinite().all()
    assert vae.elbo(torch.full((2, 3, 8, 8), 0.5, dtype=torch.float16)).elbo.dtype == torch.float32


def test_bad_arguments_are_refused():
    with pytest.raises(ResvaeError, match=r"image_shape: \(3, 32\) is not allowed; \(channels, height, width\)"):
        VAE(28, image_shape=(3, 32))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ResvaeError, match="latent_dim: 0"):
        VAE(28, **TINY | {"latent_dim": 0})
    with pytest.raises(ResvaeError, match="one number per stage"):
        VAE(28, 4, (3, 8, 8), (4, 4, 8, 8), (1, 2))


def test_bits_per_dim_of_a_model_that_knows_nothing():
    """A start at a broad distribution around grey costs about 8 bits, and the unit is right."""
    torch.manual_seed(0)
    terms = VAE(28, **TINY).elbo(images(16))
    torch.testing.assert_close(terms.bits_per_dim, -terms.elbo / (3 * 8 * 8 * math.log(2)))
    assert 6 < terms.bits_per_dim.mean() < 12
    with pytest.raises(ResvaeError, match="bits per dimension"):
        VAE(28, likelihood="bernoulli", **TINY).elbo(images()).bits_per_dim  # noqa: B018


def test_posterior_scales_stay_between_e_to_the_minus_5_and_e_to_the_5():
    vae = VAE(28, **TINY)
    with torch.no_grad():
        for value in (1e4, -1e4):
            vae.head.bias[4:] = value
            scale = vae.posterior(images()).base_dist.scale
            torch.testing.assert_close(scale.log(), torch.full_like(scale, math.copysign(5, value)))
            assert vae.elbo(images()).elbo.isfinite().all()


def test_the_latents_speak_from_the_first_step():
    torch.manual_seed(0)
    vae = VAE(28, 64, (3, 8, 8), (16, 16, 32, 32))
    q = vae.posterior(images(64)).base_dist
    torch.testing.assert_close(q.scale.log().mean(), torch.tensor(-1.0), atol=0.1, rtol=0)
    assert 0.15 < q.mean.std(0).mean() < 3  # images differ in their latents; from a zero head they would not
