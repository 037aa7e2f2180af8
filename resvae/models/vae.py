"""A residual VAE around one latent vector."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.distributions.kl import kl_divergence

from resvae.errors import at_least
from resvae.models.base import ImageVAE, Shape, json_arguments, level_temperatures
from resvae.models.images import to_unit
from resvae.networks import BlockConfig, ResNetDecoder, ResNetEncoder, vae_blocks
from resvae.networks.stages import checked_shape
from resvae.probability import ElboTerms, make_likelihood


class VAE(ImageVAE):
    """A ResNet encoder and its mirror around one latent vector, at any depth.

    ::

        x [B C H W] -> encoder -> h [B K h w] -> head -> mean, scale [B D]
                                                            |
                                                  z = mean + scale * noise
                                                            |
        p(x|z)      <- likelihood <- [B P H W] <- decoder <- z [B D]

    Args:
        depth: weighted layers on the main path of the whole network (28, 40, 70, 100, ... 1000), or the number of
            blocks a stage as a tuple. The stem, the head, the decoder's dense layer and its last convolution are 4;
            each block counts 3 (bottleneck) or 2 (basic) in the encoder and again in the decoder.
        latent_dim: D, the number of latents.
        image_shape: ``(C, H, W)``; the product of ``strides`` must divide H and W.
        widths: channels a stage, finest first; the decoder has them in reverse.
        strides: down-sampling at the start of each stage.
        block: what a block is made of.
        likelihood: ``discretized_mixture``, ``discretized_logistic``, ``bernoulli``, ``gaussian`` (batch-optimal
            variance), ``gaussian_learned``, ``gaussian_fixed``.

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
        likelihood: str = "discretized_mixture",
    ):
        super().__init__()
        self.arguments = json_arguments(locals())
        at_least(1, latent_dim=latent_dim)
        self.image_shape = checked_shape("model", image_shape)
        self.latent_dim = latent_dim
        blocks = vae_blocks(depth, len(widths), block.kind)
        self.likelihood = make_likelihood(likelihood, image_shape[0])
        self.encoder = ResNetEncoder(self.image_shape, blocks, widths, strides, config=block)
        self.head = nn.Linear(math.prod(self.encoder.out_shape), 2 * latent_dim)
        self.decoder = ResNetDecoder(
            latent_dim,
            self.image_shape,
            out_channels=self.likelihood.num_features,
            blocks=blocks[::-1],
            widths=widths[::-1],
            strides=(1, *strides[:0:-1]),
            config=block,
        )
        # The latents speak from the first step: means of spread 1, scales e^-1. From a posterior that starts at the
        # prior, a decoder first learns to ignore its noise, and takes hundreds of updates to forget that.
        mean, log_scale = self.head.weight.chunk(2)
        nn.init.normal_(mean, std=self.head.in_features**-0.5)
        nn.init.normal_(log_scale, std=0.1 * self.head.in_features**-0.5)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, -1.0]).repeat_interleave(latent_dim))

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x), a diagonal Gaussian, event shape ``[D]``, in float32."""
        return self._posterior(to_unit(x, self.image_shape))

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for ``z [B, D]``."""
        return self.likelihood(self.decoder(z))

    def sample_prior(self, num: int, temperature: float | Sequence[float] = 1.0) -> Tensor:
        """``[num, D]`` from N(0, temperature^2)."""
        (factor,) = level_temperatures(temperature, 1)
        return factor * torch.randn(num, self.latent_dim, device=self.head.weight.device)

    def elbo(self, x: Tensor) -> ElboTerms:
        """The ELBO of each image with the KL in closed form; ``kl`` is ``[B, 1]``: one level."""
        x = to_unit(x, self.image_shape)
        q = self._posterior(x)
        p = self.likelihood(self.decoder(q.rsample()), x)
        return ElboTerms(
            log_likelihood=p.log_prob(x),
            kl=kl_divergence(q, self._prior(q.mean))[:, None],
            num_dims=math.prod(self.image_shape),
            discrete=self.likelihood.discrete,
            floor=self.likelihood.floor(x),
        )

    def log_weights(self, x: Tensor, num_samples: int) -> Iterator[Tensor]:
        """log p(x, z) - log q(z|x) for one sample of z at a time, each ``[B]``; the encoder runs once."""
        x = to_unit(x, self.image_shape)
        q = self._posterior(x)
        prior = self._prior(q.mean)
        for _ in range(num_samples):
            z = q.rsample()
            yield self.decode(z).log_prob(x) + prior.log_prob(z) - q.log_prob(z)

    def _posterior(self, x: Tensor) -> Independent:
        h = self.head(self.encoder(2 * x - 1).flatten(1))
        mean, log_scale = h.float().chunk(2, 1)
        # A soft clamp (NVAE, Vahdat & Kautz 2020, appendix): e^-5 < scale < e^5 with a gradient everywhere.
        scale = (5 * torch.tanh(log_scale / 5)).exp()
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)

    @staticmethod
    def _prior(like: Tensor) -> Independent:
        return Independent(Normal(torch.zeros_like(like), torch.ones_like(like), validate_args=False), 1)
