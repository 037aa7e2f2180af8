"""What the VAEs around one latent vector share."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.distributions.kl import kl_divergence

from resvae.models.base import Encoded, ImageVAE, level_temperatures
from resvae.probability import ElboTerms


class OneLatentVAE(ImageVAE):
    """A VAE of one latent vector ``z [B, D]`` with the prior N(0, 1).

    A subclass sets ``image_shape``, ``latent_dim``, ``likelihood`` and ``decoder``, and defines ``encode`` and
    ``posterior``.
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
        return self._terms(log_likelihood, kl_divergence(q, standard(q.mean))[:, None], seen.x)

    def log_weights(self, x: Tensor | Encoded, num_samples: int) -> Iterator[Tensor]:
        """log p(x, z) - log q(z|x) for one sample of z at a time, each ``[B]``; the encoder runs once."""
        seen = self.encoded(x)
        q = self.posterior(seen)
        prior = standard(q.mean)
        for _ in range(num_samples):
            z = q.rsample()
            yield self.decode(z).log_prob(seen.x) + prior.log_prob(z) - q.log_prob(z)


def gaussian(mean: Tensor, scale: Tensor) -> Independent:
    """The diagonal Gaussian of ``[B, D]``."""
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


def standard(like: Tensor) -> Independent:
    """N(0, 1) of the shape of ``like [B, D]``."""
    return gaussian(torch.zeros_like(like), torch.ones_like(like))
