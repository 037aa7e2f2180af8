"""A VAE with one map of latents, in the place of the ``AutoencoderKL`` of diffusers."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from resvae.errors import ResvaeError
from resvae.models.base import ImageVAE


@dataclass(frozen=True)
class MapPosterior:
    """q(z|x), a diagonal Gaussian over maps ``[B, K, h, w]``, with the methods of diffusers' own."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw; ``generator`` must be on the same device."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean


class LatentMap(nn.Module):
    """What a latent diffusion model needs of a VAE, with diffusers' names; diffusers itself is not needed.

    ::

        x [B C H W] in [-1, 1] -> encode -> latent_dist: sample(), mode() [B K h w] -> decode -> sample [B C H W]

    A diffusion model trains on latents times ``config.scaling_factor`` (Rombach et al. 2022, appendix G): their
    standard deviation is then 1. ``LatentMap.measured`` finds the factor.

    Args:
        vae: with one level of latents that are a map, such as ``HierarchicalVAE(depth=(2, 2), levels=(1, 0), ...)``.
        scaling_factor: what ``config`` holds.

    Raises:
        ResvaeError: a model with several levels, or with a vector of latents.
    """

    def __init__(self, vae: ImageVAE, scaling_factor: float = 1.0):
        super().__init__()
        shapes: list[tuple[int, ...]] = getattr(vae, "latent_shapes", [])
        if len(shapes) != 1:
            has = f"{len(shapes)} levels" if shapes else "a vector"
            raise ResvaeError(f"vae: latent diffusion needs one level of latents that are a map; this model has {has}")
        self.vae = vae
        (channels, height, width), (colours, size, _) = shapes[0], vae.image_shape
        self.latent_shape = (channels, height, width)
        halvings = (size // height).bit_length() - 1
        self.config = SimpleNamespace(
            in_channels=colours,
            out_channels=colours,
            latent_channels=channels,
            sample_size=size,
            scaling_factor=scaling_factor,
            shift_factor=None,
            force_upcast=False,
            # Pipelines tell by their number how often an image is halved.
            block_out_channels=(channels,) * (halvings + 1),
        )

    @classmethod
    def measured(cls, vae: ImageVAE, x: Tensor) -> Self:
        """With the factor that gives the latents of images ``x [N, C, H, W]``, as the VAE takes them, a deviation of 1.

        In batches of 100; a few thousand training images are enough.
        """
        made = cls(vae)
        with torch.no_grad():
            latents = torch.cat([made._posterior(part).sample() for part in x.split(100)])
        made.config.scaling_factor = 1 / latents.std().item()
        return made

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images ``[B, C, H, W]`` in [-1, 1] to an object whose ``latent_dist`` is q(z|x), or to a tuple of it."""
        with self._in_type():
            posterior = self._posterior(((x.float() + 1) / 2).clamp(0, 1))
        found = MapPosterior(posterior.mean.to(x.dtype), posterior.std.to(x.dtype))
        return SimpleNamespace(latent_dist=found) if return_dict else (found,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Latents ``[B, K, h, w]`` to an object whose ``sample`` is the mean of p(x|z) in [-1, 1], or to a tuple of it.

        ``generator`` is taken, because diffusers' decoders take one; nothing is drawn.
        """
        with self._in_type():
            x = (2 * self.vae.decode(z.flatten(1).to(self.dtype)).mean - 1).to(z.dtype)
        return SimpleNamespace(sample=x) if return_dict else (x,)

    def forward(self, x: Tensor) -> Any:
        """The images back, as ``decode`` says, from the posterior's mean."""
        return self.decode(self.encode(x).latent_dist.mode())

    def _in_type(self) -> torch.autocast:
        # A VAE computes its distributions in float32, whatever its weights are.
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _posterior(self, x: Tensor) -> MapPosterior:
        return MapPosterior(*self.vae.latents(x)[0])
