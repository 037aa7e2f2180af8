"""The article's network, parameter for parameter (Keng, "Residual Networks", 2018)."""

import torch
from torch import Tensor, nn
from torch.distributions import Independent

from resvae.errors import ResvaeError, whole_from
from resvae.models.base import Encoded, json_arguments
from resvae.models.registry import register
from resvae.models.vae import OneLatentVAE, gaussian
from resvae.networks import BlockConfig, ResidualBlock, ResNetEncoder, vae_blocks
from resvae.networks.segments import Blocks
from resvae.probability import Bernoulli

WIDTHS = (256, 512, 1024, 2048)
STRIDES = (1, 2, 2, 2)
EPS, MOMENTUM = 1e-3, 0.01  # Keras' batch normalisation: eps .001, momentum .99
UNIT = BlockConfig(
    order="original",
    norm="batch",
    activation="relu",
    conv_bias=True,
    stride_on="first",
    residual_scale=1.0,
    norm_eps=EPS,
    norm_momentum=MOMENTUM,
)


class ReferenceEncoder(nn.Module):
    """The article's encoder: no stem, no pooling."""

    def __init__(self, blocks: tuple[int, ...], latent_dim: int, intermediate_dim: int):
        super().__init__()
        self.network = ResNetEncoder((3, 32, 32), blocks, WIDTHS, STRIDES, stem="none", config=UNIT)
        self.dense = nn.Conv2d(WIDTHS[-1], intermediate_dim, 1)  # a dense layer at each location
        self.norm = nn.BatchNorm2d(intermediate_dim, EPS, MOMENTUM)
        self.mean = nn.Linear(16 * intermediate_dim, latent_dim)
        self.log_variance = nn.Linear(16 * intermediate_dim, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, 3, 32, 32]`` in [0, 1] to mean and log-variance, each ``[B, latent_dim]``."""
        h = torch.sigmoid(self.norm(self.dense(self.network(x)))).flatten(1)
        return self.mean(h), self.log_variance(h)


class ReferenceDecoder(nn.Module):
    """The article's decoder, which widens to 2048 channels as it up-samples."""

    def __init__(self, blocks: tuple[int, ...], latent_dim: int, intermediate_dim: int):
        super().__init__()
        self.dense = nn.Linear(latent_dim, intermediate_dim)
        self.norm = nn.BatchNorm1d(intermediate_dim, EPS, MOMENTUM)
        channels = intermediate_dim // 16
        self.units = Blocks()
        for width, stride, num in zip(WIDTHS, STRIDES, blocks, strict=True):
            for i in range(num):
                self.units.append(ResidualBlock(channels, width, stride=stride if i == 0 else 1, up=True, config=UNIT))
                channels = width
        self.out = nn.ConvTranspose2d(channels, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        """``z [B, latent_dim]`` to ``[B, 3, 32, 32]``, before the sigmoid."""
        h = torch.sigmoid(self.norm(self.dense(z))).unflatten(1, (-1, 4, 4))
        return self.out(self.units(h))


@register
class ReferenceVAE(OneLatentVAE):
    """The article's VAE of 32x32 colour images: Bernoulli on real-valued targets, 26.8 to 57.8 million parameters.

    ::

        x [B 3 32 32] -> units 256@32 512@16 1024@8 2048@4 -> dense 1024 a place -> mean, log-variance [B 256]
                                                                                              |
        p(x|z)        <- 3@32 <- units 2048@32 1024@16 512@8 256@4 <- 64@4 <- dense 1024 <- z [B 256]

    Args:
        depth: 28, 40, 70, 100 as published, or any other that `VAE` takes, or blocks per stage.
        latent_dim: 256 in the article.
        intermediate_dim: 1024 in the article; a multiple of 16.
        compat: the article's own objective. It scales the noise by exp(log-variance) where the KL takes
            exp(log-variance) for the variance, and adds L2 penalties on the two heads (.01 on the mean's, .1 on the
            log-variance's). Its losses understate the KL and are no bound: for comparison with the published table
            only. ``log_likelihood`` stays a true bound: it weighs with the distribution that was drawn from.

    Raises:
        ResvaeError: a depth that no number of blocks gives; another ``intermediate_dim``.
    """

    def __init__(
        self,
        depth: int | tuple[int, ...] = 28,
        latent_dim: int = 256,
        intermediate_dim: int = 1024,
        compat: bool = False,
    ):
        super().__init__()
        self.arguments = json_arguments(locals())
        whole_from(1, latent_dim=latent_dim, intermediate_dim=intermediate_dim)
        if intermediate_dim % 16:
            raise ResvaeError(f"intermediate_dim: {intermediate_dim} is not allowed; a multiple of 16")
        self.image_shape, self.latent_dim, self.compat = (3, 32, 32), latent_dim, compat
        blocks = vae_blocks(depth)
        self.encoder = ReferenceEncoder(blocks, latent_dim, intermediate_dim)
        self.decoder = ReferenceDecoder(blocks, latent_dim, intermediate_dim)
        self.likelihood = Bernoulli(3)
        for module in self.modules():  # Keras' default: Glorot uniform weights, zero biases
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def encoder_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each ``[B, latent_dim]``, in float32."""
        mean, log_variance = self.encoder(x)
        return mean.float(), log_variance.float()

    def posterior(self, x: Tensor | Encoded) -> Independent:
        """The distribution that z is drawn from, event shape ``[latent_dim]``; see ``compat``."""
        mean, log_variance = self.encoded(x).features
        return gaussian(mean, (log_variance if self.compat else 0.5 * log_variance).exp())

    def charged(self, x: Encoded, q: Independent) -> Independent:
        """The distribution of the KL, which takes exp(log-variance) for the variance; see ``compat``."""
        mean, log_variance = x.features
        return gaussian(mean, (0.5 * log_variance).exp())

    def penalty(self) -> Tensor:
        """The article's L2 on kernel and bias of both heads in ``compat``, else 0."""
        if not self.compat:
            return super().penalty()
        heads = self.encoder.mean, self.encoder.log_variance
        mean, log_variance = (head.weight.square().sum() + head.bias.square().sum() for head in heads)
        return 0.01 * mean + 0.1 * log_variance
