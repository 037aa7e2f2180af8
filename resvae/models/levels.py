"""The levels of a hierarchical VAE: a group of latents each, and who chooses them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.types import _size

from resvae.errors import ResvaeError
from resvae.models.base import Encoded
from resvae.networks import BlockConfig
from resvae.networks.blocks import SECOND_MOMENT

PosteriorKind = Literal["concat_1x1", "concat_3x3", "sum_3x3"]

# Given a level's number, prior and posterior (None without an image): the latents that the decoder continues with.
Choose = Callable[[int, Normal, Normal | None], Tensor]


@dataclass(frozen=True)
class Visit:
    """One level on the way down: its prior and posterior given the levels above, and the latents chosen there."""

    z: Tensor  # as all: [B, K, h, w]
    prior: Normal
    posterior: "RelativeNormal | None"  # None where there is no image


class RelativeNormal(Normal):
    """N(m + shift, s e^log_factor), where m and s are those of a ``prior``."""

    def __init__(self, prior: Normal, shift: Tensor, log_factor: Tensor):
        self.prior_scale, self.shift, self.log_factor = prior.stddev, shift, log_factor
        super().__init__(prior.mean + shift, prior.stddev * log_factor.exp(), validate_args=False)

    def kl(self) -> Tensor:
        """KL to the prior in closed form, nats, elementwise; m and log s are not in it, so that nothing cancels."""
        relative = self.shift / self.prior_scale
        return (relative.square() + torch.expm1(2 * self.log_factor)) / 2 - self.log_factor


class Level(nn.Module):
    """One group of latents ``z [B, K, h, w]`` on a map ``h [B, C, h, w]``: prior, posterior, and the way back to h.

    C ``channels`` are those of the map and of the encoder's features at its resolution, K is ``latent_channels``. The
    latents of all ``num_levels`` of the network together add a variance of 1 to h at the start. ``posterior`` says how
    the posterior reads h and the features: by a convolution of 1x1 or 3x3 over both, or of 3x3 over their sum.
    """

    hidden_layers = ("prior_net", "posterior_net", "project")

    def __init__(
        self, channels: int, latent_channels: int, num_levels: int, config: BlockConfig, posterior: PosteriorKind
    ):
        super().__init__()
        if posterior not in get_args(PosteriorKind):
            allowed = ", ".join(get_args(PosteriorKind))
            raise ResvaeError(f"posterior: {posterior!r} is not allowed; one of {allowed}")
        self.prior_net = nn.Sequential(config.make_activation(), nn.Conv2d(channels, 2 * latent_channels, 1))
        # One convolution: a branch of several hides the image from the latents for the first hundreds of updates, and
        # the decoder learns to do without them.
        merge, size = posterior.split("_")
        self.adds, kernel = merge == "sum", int(size[0])
        read = nn.Conv2d(channels if self.adds else 2 * channels, 2 * latent_channels, kernel, padding=kernel // 2)
        self.posterior_net = nn.Sequential(config.make_activation(), read)
        self.project = nn.Conv2d(latent_channels, channels, 1)
        gain = 1 / SECOND_MOMENT[config.activation]
        nn.init.normal_(read.weight, std=0.1 * (gain / read.weight[0].numel()) ** 0.5)
        nn.init.normal_(self.project.weight, std=(latent_channels * num_levels) ** -0.5)
        prior = self.prior_net[1]
        for zero in (prior.weight, prior.bias, read.bias, self.project.bias):  # priors start as N(0, 1)
            nn.init.zeros_(zero)  # pyright: ignore[reportArgumentType]

    def prior(self, h: Tensor) -> Normal:
        """p(z_l | z_<l), in float32."""
        mean, log_scale = self.prior_net(h).float().chunk(2, 1)
        # No sharper than e^-2: a shift costs (shift / scale)^2, and against a sharp prior one bad batch would throw
        # training off. Latents have no unit of their own: ``project`` makes up for it.
        return Normal(mean, _soft(log_scale, 2).exp(), validate_args=False)

    def posterior(self, h: Tensor, features: Tensor, prior: Normal) -> RelativeNormal:
        """q(z_l | z_<l, x), in float32, relative to the prior."""
        read = h + features if self.adds else torch.cat([h, features], 1)
        shift, log_factor = self.posterior_net(read).float().chunk(2, 1)
        # No shift in units of the prior's scale: the KL would not depend on the prior, which would learn slowly.
        return RelativeNormal(prior, shift, _soft(log_factor, 5))


def sample_of(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
    """A ``Choose``: every level draws from its posterior ``[B, K, h, w]``; there must be one."""
    assert posterior is not None
    return posterior.rsample()


def mean_of(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
    """A ``Choose``: every level takes its posterior's mean ``[B, K, h, w]``; there must be a posterior."""
    assert posterior is not None
    return posterior.mean


def given(latents: Sequence[Tensor]) -> Choose:
    """A ``Choose``: every level takes the next of ``latents``, each ``[B, K, h, w]``, the coarsest first."""
    remaining = iter(latents)
    return lambda level, prior, posterior: next(remaining)


def joined(visits: Sequence[Visit]) -> Tensor:
    """The latents of all levels side by side, ``[B, D]``."""
    return torch.cat([visit.z.flatten(1) for visit in visits], 1)


class LevelsPosterior(Distribution):
    """q(z|x) = prod_l q(z_l | z_<l, x) over ``z [B, D]``: exact samples and log-probabilities.

    ``mean`` is each level's conditional mean given the means above it: the posterior's own mean at level 0 alone.
    """

    has_rsample = True
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    arg_constraints = {}  # noqa: RUF012  # pyright: ignore  it is made of a model, not of parameters

    def __init__(self, vae: Any, seen: Encoded):
        self._visits = lambda choose: vae.descend(choose, seen, fit=False)[1]
        self._split = vae.split
        num_dims = sum(math.prod(vae.latent_shapes[level]) for level in vae.stochastic)
        super().__init__(torch.Size([len(seen)]), torch.Size([num_dims]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """``[B, D]``."""
        return joined(self._visits(mean_of))

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """``[*sample_shape, B, D]``, differentiable; one pass per sample."""
        shape = torch.Size(sample_shape)
        samples = [joined(self._visits(sample_of)) for _ in range(shape.numel())]
        return torch.stack(samples).view(*shape, *samples[0].shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(z|x) of ``value [B, D]``, nats, ``[B]``."""
        visits = self._visits(given(self._split(value)))
        return torch.stack([log_prob(visit.posterior, visit.z) for visit in visits if visit.posterior]).sum(0)


def log_prob(distribution: Normal, z: Tensor) -> Tensor:
    """log p of ``z [B, K, h, w]``, nats, summed to ``[B]``."""
    return distribution.log_prob(z).flatten(1).sum(1)


@torch.no_grad()
def redrawn(vae: Any, level: int, num: int, temperature: float = 1.0, seed: int = 0) -> Tensor:
    """``num`` images from the prior, ``[num, C, H, W]``: all levels but ``level`` have the first image's noise."""
    generator = torch.Generator().manual_seed(seed)  # the first image is the same at every level
    noise = [torch.randn(num, *shape, generator=generator) for shape in vae.latent_shapes]
    choose: Choose = lambda here, prior, posterior: (  # noqa: E731
        prior.mean + temperature * prior.stddev * noise[here][slice(None) if here == level else slice(1)].to(prior.mean)
    )
    return vae.descend(choose, num=num)[0].mean.clamp(0, 1)


def _soft(x: Tensor, bound: float) -> Tensor:
    """A soft clamp to (-bound, bound), with a gradient everywhere (Vahdat & Kautz 2020, appendix)."""
    return bound * torch.tanh(x / bound)
