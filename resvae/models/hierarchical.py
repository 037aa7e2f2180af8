"""A residual VAE whose decoder's depth is depth in latent levels."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from resvae.errors import ResvaeError, whole_from
from resvae.models.base import Encoded, ImageVAE, Shape, json_arguments, level_temperatures
from resvae.models.levels import (
    Choose,
    Level,
    LevelsPosterior,
    PosteriorKind,
    Visit,
    given,
    joined,
    log_prob,
    mean_of,
    sample_of,
)
from resvae.models.registry import register
from resvae.networks import BlockConfig, ResNetEncoder, latent_levels, vae_blocks
from resvae.networks.blocks import ResidualBlock, check_block
from resvae.networks.depth import check_shape, per_stage
from resvae.networks.resnet import LastLayer, final_layers
from resvae.networks.segments import through
from resvae.probability import ElboTerms, LikelihoodChoice, make_likelihood


@register
class HierarchicalVAE(ImageVAE):
    """A bottom-up encoder and a top-down decoder with Gaussian latents all the way down.

    ::

        x [B C H W] -> encoder -> features, a map per resolution
                                      |
        start -> level -> block -> level -> block -> ... -> [B P H W] -> likelihood -> p(x|z)

                  +-> prior p(z_l | z_<l) --------------+
        a level:  h                                     +-> z_l -> 1x1 -> + -> h
                  +-> posterior q(z_l | z_<l, features) +                 ^
                  +-------------------------------------------------------+

    A level shares the decoder's state h between prior and posterior (Soenderby et al. 2016; Child 2021), and its
    posterior is relative to its prior: with m and s the prior's, mean m + a and scale s e^b, so that the KL is
    (a^2 / s^2 + e^2b - 1) / 2 - b (Vahdat & Kautz 2020, eq. 2). Priors start at N(0, 1), posteriors near them.

    Args:
        depth: as in ``VAE``: weighted layers on the main path, 2 c B + 4 with B blocks of c convolutions, or blocks per
            stage as a tuple. The levels' own convolutions, one for all of them on each side, are part of the 4.
        levels: groups of latents per resolution, coarsest first, or their number, distributed by ``latent_levels``.
            Level 0 is the coarsest. Independent of ``depth``: where they outnumber its blocks, several stand in a row.
        latent_channels: K, channels of each level's latents.
        image_shape: ``(C, H, W)``; ``patch`` times the product of ``strides`` must divide H and W.
        widths: channels per stage, finest first; the decoder has them in reverse.
        strides: down-sampling at the start of each stage, undone at its end; (1, 2, 2, 2, 4) goes from 32x32 to 1x1.
        block: what a block is made of.
        likelihood: as in ``VAE``.
        stochastic_depth: how many of the levels have latents, spread evenly from level 0 on; the others take their
            prior's mean, and their KL is 0. Default: all. It can be set on a trained model too.
        patch: encoder and decoder see squares of ``patch`` x ``patch`` pixels as one pixel each (1, 2, 4).
        level_block: whether a residual block of its own follows each level. ``depth`` does not count it.
        posterior: how a level's posterior reads the decoder's state and the encoder's features; ``concat_1x1``,
            ``concat_3x3`` or ``sum_3x3``.

    Raises:
        ResvaeError: a depth or levels that do not fit the stages, an image size that the strides do not divide.
    """

    segment: int | None = None  # see ``networks.segments``
    spared: float = 0.0
    earlier: ClassVar = {"level_block": False, "posterior": "concat_3x3"}

    def __init__(
        self,
        depth: int | tuple[int, ...] = 28,
        levels: int | tuple[int, ...] = 4,
        latent_channels: int = 16,
        image_shape: Shape = (3, 32, 32),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        block: BlockConfig = BlockConfig(),  # noqa: B008  frozen
        likelihood: LikelihoodChoice = "discretized_mixture",
        stochastic_depth: int | None = None,
        patch: int = 1,
        level_block: bool = True,
        posterior: PosteriorKind = "concat_1x1",
    ):
        super().__init__()
        self.arguments = json_arguments(locals())
        whole_from(1, latent_channels=latent_channels)
        check_block(block)
        check_shape(image_shape)
        num_stages = per_stage(widths=widths, strides=strides)
        blocks, placed = vae_blocks(depth, num_stages, block.kind), latent_levels(levels, num_stages)
        self.num_levels = sum(placed)
        self.likelihood = make_likelihood(likelihood, image_shape[0])
        self.encoder = ResNetEncoder(image_shape, blocks, widths, strides, config=block, patch=patch)
        self.image_shape = self.encoder.image_shape
        self.start = nn.Parameter(torch.zeros(self.encoder.out_shape))
        self.stages = nn.ModuleList()
        scale = block.scale(sum(blocks) + (self.num_levels if level_block else 0))
        for i in reversed(range(num_stages)):  # coarsest first; the last block of each stage goes up to the next
            stage = nn.ModuleList()
            width, num, within = widths[i], blocks[i], placed[num_stages - 1 - i]
            for j in range(num):
                for _ in range(math.ceil((j + 1) * within / num) - math.ceil(j * within / num)):
                    stage.append(Level(width, latent_channels, self.num_levels, block, posterior))
                    if level_block:
                        stage.append(ResidualBlock(width, width, config=block, residual_scale=scale))
                out, stride = (widths[max(i - 1, 0)], strides[i]) if j == num - 1 else (width, 1)
                stage.append(ResidualBlock(width, out, stride=stride, up=True, config=block, residual_scale=scale))
            self.stages.append(stage)
        self.final = final_layers(widths[0], block)
        self.out = LastLayer(widths[0], self.likelihood.num_features, patch, self.likelihood.order)
        self.hidden_layers = ("out",) if self.likelihood.has_layers else ()
        _, height, width = self.image_shape
        self.latent_shapes = [  # of each level, (K, h, w)
            (latent_channels, height // stride, width // stride)
            for stride, num in zip(self.encoder.strides[::-1], placed, strict=True)
            for _ in range(num)
        ]
        self.stochastic_depth = stochastic_depth

    @property
    def stochastic_depth(self) -> int:
        """How many levels have latents, spread evenly from level 0 on; set it to None for all of them."""
        return len(self.stochastic)

    @stochastic_depth.setter
    def stochastic_depth(self, num: int | None) -> None:
        """Set it; ``ResvaeError`` for a number below 1 or above that of the levels."""
        num = self.num_levels if num is None else num
        if not 1 <= num <= self.num_levels:
            raise ResvaeError(f"stochastic_depth: {num} is not allowed; 1 to the number of levels, {self.num_levels}")
        before = getattr(self, "stochastic", range(self.num_levels))
        self.stochastic = tuple(i * self.num_levels // num for i in range(num))
        levels = [module for module in self.modules() if isinstance(module, Level)]
        for i in set(before) ^ set(self.stochastic):  # several processes expect a gradient of all that can have one
            levels[i].posterior_net.requires_grad_(i in self.stochastic)
        assert self.arguments is not None
        self.arguments["stochastic_depth"] = None if num == self.num_levels else num

    def descend(
        self, choose: Choose, x: Tensor | Encoded | None = None, num: int = 1, *, fit: bool = True
    ) -> tuple[Distribution, list[Visit]]:
        """Go down all levels, with ``choose`` deciding what each one's latents are: every experiment is such a move.

        ::

            vae.descend(lambda level, prior, posterior: posterior.rsample(), x)                         # the ELBO's
            vae.descend(lambda level, prior, posterior: prior.sample(), num=64)                         # new images
            vae.descend(lambda level, prior, posterior: (prior if level == 3 else posterior).mean, x)   # a lesion

        ``choose`` is called with each level that has latents, in order; where there are no images x, ``num`` images are
        made, without posteriors. ``fit``: whether in training the likelihood may fit its own statistics to x. Returns
        p(x|z), batch shape ``[B]``, and the visits of the levels that have latents, in order.
        """
        seen = None if x is None else self.encoded(x)
        h = self.start.expand(num if seen is None else seen.x.shape[0], -1, -1, -1)
        h = h.contiguous(memory_format=torch.channels_last)
        visits: list[Visit] = []
        level = 0
        for i, stage in enumerate(self.stages):
            for module in runs(stage):
                if isinstance(module, list):
                    h = through(module, h, self.segment, self.spared)
                    continue
                prior = module.prior(h)
                z = prior.mean
                if level in self.stochastic:
                    posterior = None if seen is None else module.posterior(h, seen.features[i], prior)
                    z = choose(level, prior, posterior)
                    visits.append(Visit(z, prior, posterior))
                h = h + module.project(z)
                level += 1
        features = self.out(self.final(h))
        return self.likelihood(features, seen.x if seen is not None and fit else None), visits

    def encoder_features(self, x: Tensor) -> list[Tensor]:
        """A map per resolution, the coarsest first."""
        return self.encoder.features(2 * x - 1)[::-1]

    def elbo(self, x: Tensor | Encoded) -> ElboTerms:
        """The ELBO of each image, each level's KL in closed form given the levels above; ``kl`` is ``[B, L]``."""
        seen = self.encoded(x)
        p, visits = self.descend(sample_of, seen)
        kl = seen.x.new_zeros(len(seen), self.num_levels)
        for level, visit in zip(self.stochastic, visits, strict=True):
            assert visit.posterior is not None
            kl[:, level] = visit.posterior.kl().flatten(1).sum(1)
        return self._terms(p.log_prob(seen.x), kl, seen.x)

    def posterior(self, x: Tensor | Encoded) -> LevelsPosterior:
        """q(z|x) over the latents of all levels side by side, coarsest first: event shape ``[D]``."""
        return LevelsPosterior(self, self.encoded(x))

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for ``z [B, D]``, the latents of all levels side by side."""
        return self.descend(given(self.split(z)), num=z.shape[0])[0]  # ``len`` would fix an exported graph's batch

    def sample_prior(self, num: int, temperature: float | Sequence[float] = 1.0) -> Tensor:
        """``[num, D]`` from p(z), level after level, each one's standard deviation times its ``temperature``."""
        return joined(self.descend(self._tempered(temperature), num=num)[1])

    def prior_images(self, num: int, temperature: float | Sequence[float] = 1.0) -> Distribution:
        """As ``ImageVAE`` says; the decoder runs once."""
        return self.descend(self._tempered(temperature), num=num)[0]

    def latents(self, x: Tensor | Encoded) -> list[tuple[Tensor, Tensor]]:
        """As ``ImageVAE`` says, each ``[B, K, h, w]``."""
        _, visits = self.descend(mean_of, x, fit=False)
        return [(visit.posterior.mean, visit.posterior.stddev) for visit in visits if visit.posterior]

    def at_mean(self, x: Tensor | Encoded) -> tuple[Tensor, Distribution]:
        """As ``ImageVAE`` says; the decoder runs once."""
        p, visits = self.descend(mean_of, x, fit=False)
        return joined(visits), p

    def log_weight(self, x: Tensor | Encoded) -> Tensor:
        """As ``ImageVAE`` says."""
        seen = self.encoded(x)
        p, visits = self.descend(sample_of, seen, fit=False)
        weight = p.log_prob(seen.x)
        for visit in visits:
            assert visit.posterior is not None
            weight = weight + log_prob(visit.prior, visit.z) - log_prob(visit.posterior, visit.z)
        return weight

    def shift(self, x: Tensor | Encoded) -> Tensor:
        """``[B, D]``: each level's posterior mean less its prior's, both given the posterior's means above."""
        _, visits = self.descend(mean_of, x, fit=False)
        shifts = [(visit.posterior.mean - visit.prior.mean).flatten(1) for visit in visits if visit.posterior]
        return torch.cat(shifts, 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor | Encoded, num_levels: int | None = None) -> Tensor:
        """Images from the means of the posterior; after the ``num_levels`` coarsest levels, from those of the prior."""
        num_levels = self.num_levels if num_levels is None else num_levels
        if not 0 <= num_levels <= self.num_levels:
            raise ResvaeError(f"num_levels: {num_levels} is not allowed; 0 to {self.num_levels}")

        def choose(level: int, prior: Normal, posterior: Normal | None) -> Tensor:
            return mean_of(level, prior, posterior if level < num_levels else prior)

        return self._pixels(self.descend(choose, x, fit=False)[0])

    def split(self, z: Tensor) -> list[Tensor]:
        """Latents ``[B, D]`` as one map ``[B, K, h, w]`` per level that has latents."""
        shapes = [self.latent_shapes[level] for level in self.stochastic]
        parts = z.split([math.prod(shape) for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def chains(self) -> list[list[nn.Module]]:
        """Blocks that follow one another without a level between them."""
        return [run for stage in self.stages for run in runs(stage) if isinstance(run, list)]

    def _tempered(self, temperature: float | Sequence[float]) -> Choose:
        factors = level_temperatures(temperature, self.num_levels)
        return lambda level, prior, posterior: prior.mean + factors[level] * (prior.sample() - prior.mean)


def runs(stage: nn.Module) -> list[Level | list[nn.Module]]:
    """The levels of a stage, each alone, and between them the blocks that follow one another."""
    found: list[Level | list[nn.Module]] = []
    for module in stage.children():  # ``itertools.groupby`` would cut a compiled graph in pieces
        if isinstance(module, Level):
            found.append(module)
        elif found and isinstance(found[-1], list):
            found[-1].append(module)
        else:
            found.append([module])
    return found
