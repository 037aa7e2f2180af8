"""Residual VAEs around one latent vector."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.distributions.kl import kl_divergence

from resvae.errors import whole_from
from resvae.models.base import Encoded, ImageVAE, Shape, json_arguments, level_temperatures
from resvae.models.registry import register
from resvae.networks import BlockConfig, ResNetDecoder, ResNetEncoder, vae_blocks
from resvae.networks.blocks import check_block
from resvae.networks.depth import check_shape, per_stage
from resvae.probability import ElboTerms, LikelihoodChoice, make_likelihood


class OneLatentVAE(ImageVAE):
    """A VAE of one latent vector ``z [B, D]`` with the prior N(0, 1).

    A subclass sets ``image_shape``, ``latent_dim``, ``likelihood``, ``decoder``; it defines ``encode``, ``posterior``.
    """

    latent_dim: int  # D
    decoder: nn.Module  # z [B, D] to the likelihood's features [B, P, H, W]

    @abstractmethod
    def posterior(self, x: Tensor | Encoded) -> Independent:
        """q(z|x), a diagonal Gaussian, event shape ``[D]``, in float32."""

    def charged(self, x: Encoded, q: Independent) -> Independent:
        """The distribution whose KL to the prior the ELBO counts: the posterior ``q`` itself."""
        return q

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for ``z [B, D]``."""
        return self.likelihood(self.decoder(z))

    def sample_prior(self, num: int, temperature: float | Sequence[float] = 1.0) -> Tensor:
        """``[num, D]`` from N(0, temperature^2)."""
        (factor,) = level_temperatures(temperature, 1)
        return factor * torch.randn(num, self.latent_dim, device=next(self.parameters()).device)

    def elbo(self, x: Tensor | Encoded) -> ElboTerms:
        """The ELBO of each image with the KL in closed form; ``kl`` is ``[B, 1]``: one level."""
        seen = self.encoded(x)
        q = self.posterior(seen)
        p = self.likelihood(self.decoder(q.rsample()), seen.x)
        log_likelihood, q = p.log_prob(seen.x), self.charged(seen, q)
        return self._terms(log_likelihood, kl_divergence(q, _standard(q.mean))[:, None], seen.x)

    def log_weight(self, x: Tensor | Encoded) -> Tensor:
        """As ``ImageVAE`` says."""
        seen = self.encoded(x)
        q = self.posterior(seen)
        z = q.rsample()
        return self.decode(z).log_prob(seen.x) + _standard(q.mean).log_prob(z) - q.log_prob(z)


def gaussian(mean: Tensor, scale: Tensor) -> Independent:
    """The diagonal Gaussian of ``[B, D]``."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def _standard(like: Tensor) -> Independent:
    return gaussian(torch.zeros_like(like), torch.ones_like(like))


@register
class VAE(OneLatentVAE):
    """A ResNet encoder and its mirror around one latent vector, at any depth.

    ::

        x [B C H W] -> encoder -> h [B K h w] -> head -> mean, scale [B D]
                                                            |
                                                  z = mean + scale * noise
                                                            |
        p(x|z)      <- likelihood <- [B P H W] <- decoder <- z [B D]

    Args:
        depth: weighted layers on the main path of the whole network (28, 40, 70, 100, ... 1000), or the number of
            blocks per stage as a tuple. The stem, the head, the decoder's dense layer and its last convolution are 4;
            each block counts 3 (bottleneck) or 2 (basic) in the encoder and again in the decoder.
        latent_dim: D, the number of latents.
        image_shape: ``(C, H, W)``; ``patch`` times the product of ``strides`` must divide H and W.
        widths: channels per stage, finest first; the decoder has them in reverse.
        strides: down-sampling at the start of each stage.
        block: what a block is made of.
        likelihood: ``discretized_mixture``, ``discretized_logistic``, ``bernoulli``, ``gaussian`` (batch-optimal
            variance), ``gaussian_learned``, ``gaussian_fixed``; a dict of such a ``name`` and its arguments; or a
            subclass of ``Likelihood``.
        patch: encoder and decoder see squares of ``patch`` x ``patch`` pixels as one pixel each (1, 2, 4).

    Raises:
        ResvaeError: a depth that no number of blocks gives, an image size that the strides do not divide.
    """

    def __init__(
        self,
        depth: int | tuple[int, ...] = 28,
        latent_dim: int = 256,
        image_shape: Shape = (3, 32, 32),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        strides: tuple[int, ...] = (1, 2, 2, 2),
        block: BlockConfig = BlockConfig(),  # noqa: B008  frozen
        likelihood: LikelihoodChoice = "discretized_mixture",
        patch: int = 1,
    ):
        super().__init__()
        self.arguments = json_arguments(locals())
        whole_from(1, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        check_block(block)
        check_shape(image_shape)
        blocks = vae_blocks(depth, per_stage(widths=widths, strides=strides), block.kind)
        self.likelihood = make_likelihood(likelihood, image_shape[0])
        self.encoder = ResNetEncoder(image_shape, blocks, widths, strides, config=block, patch=patch)
        self.image_shape = self.encoder.image_shape
        self.head = nn.Linear(math.prod(self.encoder.out_shape), 2 * latent_dim)
        mirrored = blocks[::-1], widths[::-1], (1, *strides[:0:-1])
        self.decoder = ResNetDecoder(
            latent_dim, self.image_shape, self.likelihood.num_features, *mirrored, block, patch
        )
        self.decoder.hidden_layers = ("out",) if self.likelihood.has_layers else ()
        # The latents speak from the first step: means of spread 1, scales e^-1. From a posterior that starts at the
        # prior, a decoder first learns to ignore its noise, and takes hundreds of updates to forget that.
        mean, log_scale = self.head.weight.chunk(2)
        nn.init.normal_(mean, std=self.head.in_features**-0.5)
        nn.init.normal_(log_scale, std=0.1 * self.head.in_features**-0.5)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, -1.0]).repeat_interleave(latent_dim))

    def encoder_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log-scale before its clamp, each ``[B, D]``, in float32."""
        return self.head(self.encoder(2 * x - 1).flatten(1)).float().chunk(2, 1)

    def posterior(self, x: Tensor | Encoded) -> Independent:
        """q(z|x), event shape ``[D]``."""
        mean, log_scale = self.encoded(x).features
        # A soft clamp (NVAE, Vahdat & Kautz 2020, appendix): e^-5 < scale < e^5 with a gradient everywhere.
        return gaussian(mean, (5 * torch.tanh(log_scale / 5)).exp())
