"""A residual VAE whose decoder's depth is depth in latent levels."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.distributions.kl import kl_divergence
from torch.types import _size

from resvae.errors import ResvaeError, at_least
from resvae.models.base import ImageVAE, Shape, json_arguments, level_temperatures
from resvae.models.images import to_unit
from resvae.models.levels import Choose, Level, Visit, given, log_prob, posterior_sample
from resvae.networks import BlockConfig, ResNetEncoder, latent_levels, vae_blocks
from resvae.networks.blocks import ResidualBlock
from resvae.networks.stages import checked_shape, final_layers
from resvae.probability import ElboTerms, make_likelihood


class HierarchicalVAE(ImageVAE):
    """A bottom-up encoder and a top-down decoder with Gaussian latents all the way down.

    ::

        x [B C H W] -> encoder -> features, a map a resolution
                                      |
        start -> level -> block -> level -> block -> ... -> [B widths[0] H W] -> likelihood -> p(x|z)

                  +-> prior p(z_l | z_<l) --------------+
        a level:  h                                     +-> z_l -> 1x1 -> + -> h
                  +-> posterior q(z_l | z_<l, features) +                 ^
                  +-------------------------------------------------------+

    A level shares the decoder's state h between prior and posterior (Soenderby et al. 2016; Child 2021), and its
    posterior is relative to its prior: with m and s the prior's, mean m + a and scale s e^b, so that the KL is
    (a^2 / s^2 + e^2b - 1) / 2 - b (Vahdat & Kautz 2020, eq. 2). Priors start at N(0, 1), posteriors near them.

    Args:
        depth: as in ``VAE``: weighted layers on the main path, 2 c B + 4 with B blocks of c convolutions, or blocks a
            stage as a tuple. The levels' own convolutions, one for all of them on each side, are part of the 4.
        levels: groups of latents a resolution, coarsest first, or their number, shared out by ``latent_levels``.
            Level 0 is the coarsest. Independent of ``depth``.
        latent_channels: K, channels of each level's latents.
        image_shape: ``(C, H, W)``; the product of ``strides`` must divide H and W.
        widths: channels a stage, finest first; the decoder has them in reverse.
        strides: down-sampling at the start of each stage, undone at its end; (1, 2, 2, 2, 4) goes from 32x32 to 1x1.
        block: what a block is made of.
        likelihood: as in ``VAE``.
        stochastic_depth: how many of the levels have latents, spread evenly from level 0 on; the others take their
            prior's mean, and their KL is 0. All unless told. It can be set on a trained model too.

    Raises:
        ResvaeError: a depth or levels that do not fit the stages, an image size that the strides do not divide.
    """

    def __init__(
        self,
        depth: int | tuple[int, ...] = 28,
        levels: int | tuple[int, ...] = 4,
        latent_channels: int = 16,
        image_shape: Shape = (3, 32, 32),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        block: BlockConfig = BlockConfig(),  # noqa: B008  frozen
        likelihood: str = "discretized_mixture",
        stochastic_depth: int | None = None,
    ):
        super().__init__()
        self.arguments: dict[str, Any] = json_arguments(locals())
        at_least(1, latent_channels=latent_channels)
        self.image_shape = checked_shape("model", image_shape)
        blocks = vae_blocks(depth, len(widths), block.kind)
        placed = latent_levels(levels, len(widths))
        self.num_levels = sum(placed)
        self.likelihood = make_likelihood(likelihood, image_shape[0])
        self.encoder = ResNetEncoder(self.image_shape, blocks, widths, strides, config=block)
        self.start = nn.Parameter(torch.zeros(self.encoder.out_shape))
        self.stages = nn.ModuleList()
        scale = block.scale(sum(blocks))
        for i in reversed(range(len(widths))):  # coarsest first; the last block of each stage goes up to the next
            out = widths[max(i - 1, 0)]
            stage = nn.ModuleList()
            num, within = blocks[i], placed[len(widths) - 1 - i]
            for j in range(num):
                for _ in range(math.ceil((j + 1) * within / num) - math.ceil(j * within / num)):
                    stage.append(Level(widths[i], latent_channels, self.num_levels, block))
                last = j == num - 1
                stage.append(
                    ResidualBlock(
                        widths[i],
                        out if last else widths[i],
                        stride=strides[i] if last else 1,
                        up=True,
                        config=block,
                        residual_scale=scale,
                    )
                )
            self.stages.append(stage)
        self.final = final_layers(widths[0], block)
        self.out = nn.Conv2d(widths[0], self.likelihood.num_features, 1)
        # A small last layer: training starts from the likelihood's own start, whatever the depth before it.
        nn.init.normal_(self.out.weight, std=0.1 * widths[0] ** -0.5)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        # of the latents of each level, [K, h, w]
        sizes = [(h // s, w // s) for s in self.encoder.strides[::-1] for h, w in [self.image_shape[1:]]]
        self.latent_shapes = [
            (latent_channels, *size) for size, num in zip(sizes, placed, strict=True) for _ in range(num)
        ]
        self.stochastic_depth = stochastic_depth

    @property
    def stochastic_depth(self) -> int:
        """How many levels have latents."""
        return len(self.stochastic)

    @stochastic_depth.setter
    def stochastic_depth(self, num: int | None) -> None:
        """Spread so many evenly, from level 0 on; None for all of them."""
        num = self.num_levels if num is None else num
        if not 1 <= num <= self.num_levels:
            raise ResvaeError(f"stochastic_depth: {num} is not allowed; 1 to the number of levels, {self.num_levels}")
        self.stochastic = tuple(i * self.num_levels // num for i in range(num))
        self.arguments["stochastic_depth"] = None if num == self.num_levels else num

    def descend(self, choose: Choose, x: Tensor | None = None, num: int = 1) -> tuple[Distribution, list[Visit]]:
        """Go down all levels, with ``choose`` deciding what each one's latents are: every experiment is such a move.

        ::

            vae.descend(lambda level, prior, posterior: posterior.rsample(), x)                         # the ELBO's
            vae.descend(lambda level, prior, posterior: prior.sample(), num=64)                         # new images
            vae.descend(lambda level, prior, posterior: (prior if level == 3 else posterior).mean, x)   # a lesion

        Args:
            choose: called with each level that has latents, in order.
            x: images ``[B, C, H, W]``, or None: no posteriors.
            num: how many images where there is no x.

        Returns:
            p(x|z), batch shape ``[B]``, and each level's visit, in order, the levels without latents left out.
        """
        if x is None:
            return self._descend(choose, None, num)
        x = to_unit(x, self.image_shape)
        return self._descend(choose, self._features(x), len(x), x)

    def elbo(self, x: Tensor) -> ElboTerms:
        """The ELBO of each image, each level's KL in closed form given the levels above; ``kl`` is ``[B, L]``."""
        x = to_unit(x, self.image_shape)
        p, visits = self._descend(posterior_sample, self._features(x), len(x), x)
        kl = x.new_zeros(len(x), self.num_levels)
        for level, visit in zip(self.stochastic, visits, strict=True):
            assert visit.posterior is not None
            kl[:, level] = kl_divergence(visit.posterior, visit.prior).flatten(1).sum(1)
        return ElboTerms(
            log_likelihood=p.log_prob(x),
            kl=kl,
            num_dims=math.prod(self.image_shape),
            discrete=self.likelihood.discrete,
            floor=self.likelihood.floor(x),
        )

    def posterior(self, x: Tensor) -> "HierarchicalPosterior":
        """q(z|x) over the latents of all levels side by side, coarsest first: event shape ``[D]``."""
        x = to_unit(x, self.image_shape)
        return HierarchicalPosterior(self, self._features(x), len(x))

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for ``z [B, D]``, the latents of all levels side by side."""
        return self._descend(given(self.split(z)), None, len(z))[0]

    def sample_prior(self, num: int, temperature: float | Sequence[float] = 1.0) -> Tensor:
        """``[num, D]`` from p(z), level after level, each one's standard deviation times its ``temperature``."""
        factors = level_temperatures(temperature, self.num_levels)

        def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
            return prior.mean + factors[level] * (prior.sample() - prior.mean)

        return self._join(self._descend(choose, None, num)[1])

    def log_weights(self, x: Tensor, num_samples: int) -> Iterator[Tensor]:
        """log p(x, z) - log q(z|x) for one sample of z at a time, each ``[B]``; the encoder runs once."""
        x = to_unit(x, self.image_shape)
        features = self._features(x)
        for _ in range(num_samples):
            p, visits = self._descend(posterior_sample, features, len(x))
            weight = p.log_prob(x)
            for visit in visits:
                assert visit.posterior is not None
                weight = weight + log_prob(visit.prior, visit.z) - log_prob(visit.posterior, visit.z)
            yield weight

    def shift(self, x: Tensor) -> Tensor:
        """``[B, D]``: each level's posterior mean less its prior's, both given the posterior's means above."""

        def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
            assert posterior is not None
            return posterior.mean

        _, visits = self.descend(choose, x)
        shifts = [(visit.posterior.mean - visit.prior.mean).flatten(1) for visit in visits if visit.posterior]
        return torch.cat(shifts, 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, num_levels: int | None = None) -> Tensor:
        """Images from the posterior's means, float32 in [0, 1], ``[B, C, H, W]``.

        Args:
            x: images ``[B, C, H, W]``.
            num_levels: of the coarsest levels that see the image; the others take their prior's mean. All unless told.
        """
        num_levels = self.num_levels if num_levels is None else num_levels
        if not 0 <= num_levels <= self.num_levels:
            raise ResvaeError(f"num_levels: {num_levels} is not allowed; 0 to {self.num_levels}")

        def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
            assert posterior is not None
            return (posterior if level < num_levels else prior).mean

        return self._pixels(self.descend(choose, x)[0], False)

    def split(self, z: Tensor) -> list[Tensor]:
        """Latents ``[B, D]`` as one map ``[B, K, h, w]`` a level that has latents."""
        shapes = [self.latent_shapes[level] for level in self.stochastic]
        parts = z.split([math.prod(shape) for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _features(self, x: Tensor) -> list[Tensor]:
        return self.encoder.features(2 * x - 1)[::-1]

    def _descend(
        self, choose: Choose, features: list[Tensor] | None, num: int, x: Tensor | None = None
    ) -> tuple[Distribution, list[Visit]]:
        h = self.start.expand(num, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        visits: list[Visit] = []
        level = 0
        for i, stage in enumerate(self.stages):
            for module in stage:  # pyright: ignore[reportGeneralTypeIssues]
                if not isinstance(module, Level):
                    h = module(h)
                    continue
                prior = module.prior(h)
                if level in self.stochastic:
                    posterior = None if features is None else module.posterior(h, features[i], prior)
                    z = choose(level, prior, posterior)
                    visits.append(Visit(z, prior, posterior))
                else:
                    z = prior.mean
                h = h + module.project(z)
                level += 1
        return self.likelihood(self.out(self.final(h)), x), visits

    @staticmethod
    def _join(visits: list[Visit]) -> Tensor:
        return torch.cat([visit.z.flatten(1) for visit in visits], 1)


class HierarchicalPosterior(Distribution):
    """q(z|x) = prod_l q(z_l | z_<l, x) over ``z [B, D]``: exact samples and log-probabilities.

    ``mean`` is each level's conditional mean given the means above it: the posterior's own mean at level 0 alone.
    """

    has_rsample = True
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, vae: HierarchicalVAE, features: list[Tensor], num: int):
        self._vae, self._features, self._num = vae, features, num
        dims = sum(math.prod(vae.latent_shapes[level]) for level in vae.stochastic)
        super().__init__(torch.Size([num]), torch.Size([dims]), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: it is made of a model, not of parameters."""
        return {}

    @property
    def mean(self) -> Tensor:
        """``[B, D]``."""

        def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
            assert posterior is not None
            return posterior.mean

        return self._latents(choose)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """``[*sample_shape, B, D]``, differentiable; one pass a sample."""
        shape = torch.Size(sample_shape)
        samples = [self._latents(posterior_sample) for _ in range(shape.numel())]
        return torch.stack(samples).view(*shape, *samples[0].shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(z|x) of ``value [B, D]``, nats, ``[B]``."""
        _, visits = self._vae._descend(given(self._vae.split(value)), self._features, self._num)
        return torch.stack([log_prob(visit.posterior, visit.z) for visit in visits if visit.posterior]).sum(0)

    def _latents(self, choose: Choose) -> Tensor:
        return self._vae._join(self._vae._descend(choose, self._features, self._num)[1])
