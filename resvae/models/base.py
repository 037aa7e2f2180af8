"""The contract that every model keeps: anything written against ``ImageVAE`` works with all of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from resvae.errors import ResvaeError, at_least
from resvae.probability import ElboTerms, Likelihood, importance_bound

Shape = tuple[int, int, int]


class ImageVAE(nn.Module, ABC):
    """A variational autoencoder of images ``x`` with latents ``z``: q(z|x), p(z), p(x|z).

    Everything is a plain method on tensors; nothing here knows how it is trained. Images come in as uint8 or as
    float32 in [0, 1], ``[B, C, H, W]``, and go out as float32 in [0, 1]. Log-probabilities are nats an image.
    """

    image_shape: Shape
    likelihood: Likelihood
    arguments: dict[str, Any]  # the constructor's, as JSON can hold them: what `save` writes and `load` reads

    @abstractmethod
    def elbo(self, x: Tensor) -> ElboTerms:
        """The evidence lower bound of each image, from one posterior sample (Kingma & Welling 2014, eq. 3)."""

    @abstractmethod
    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x), batch shape ``[B]``."""

    @abstractmethod
    def decode(self, z: Tensor) -> Distribution:
        """p(x|z), batch shape ``[B]``, event shape ``[C, H, W]``."""

    @abstractmethod
    def sample_prior(self, num: int, temperature: float | Sequence[float] = 1.0) -> Tensor:
        """``[num, D]``: latents from p(z), their scale times ``temperature``, one for all or one a level."""

    @abstractmethod
    def log_weights(self, x: Tensor, num_samples: int) -> Iterator[Tensor]:
        """``num_samples`` times log p(x, z) - log q(z|x) with z drawn from q(z|x), each ``[B]``."""

    def penalty(self) -> Tensor:
        """What the model adds to the loss besides -elbo (weight penalties), a scalar; nothing unless overridden."""
        return next(self.parameters()).new_zeros(())

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, num_samples: int = 100) -> Tensor:
        """The importance-weighted bound log 1/k sum_i w_i on log p(x) (Burda 2016, eq. 8), nats, ``[B]``.

        Memory does not grow with ``num_samples``.
        """
        at_least(1, num_samples=num_samples)
        return importance_bound(self.log_weights(x, num_samples)).float()

    @torch.no_grad()
    def sample(self, num: int, temperature: float | Sequence[float] = 1.0, pixel_noise: bool = False) -> Tensor:
        """``num`` images from the prior, float32 in [0, 1], ``[num, C, H, W]``.

        The mean of p(x|z) unless ``pixel_noise`` asks for a draw from it.
        """
        at_least(1, num=num)
        return self._pixels(self.decode(self.sample_prior(num, temperature)), pixel_noise)

    def shift(self, x: Tensor) -> Tensor:
        """``[B, D]``: the posterior's mean less the prior's given the latents above: what the image itself decides."""
        return self.posterior(x).mean

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) at the posterior's mean, float32 in [0, 1], ``[B, C, H, W]``."""
        return self._pixels(self.decode(self.posterior(x).mean), False)

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
        """Images along the straight line between the latents of ``a`` and ``b``, both ends included.

        Args:
            a, b: images ``[B, C, H, W]``.
            steps: images a line, at least 2.

        Returns:
            float32 in [0, 1], ``[B, steps, C, H, W]``.
        """
        at_least(2, steps=steps)
        start, end = self.posterior(a).mean, self.posterior(b).mean
        images = [self._pixels(self.decode(start.lerp(end, t)), False) for t in torch.linspace(0, 1, steps).tolist()]
        return torch.stack(images, 1)

    @staticmethod
    def _pixels(likelihood: Distribution, noise: bool) -> Tensor:
        return (likelihood.sample() if noise else likelihood.mean).clamp(0, 1).float()


def level_temperatures(temperature: float | Sequence[float], num_levels: int) -> list[float]:
    """One temperature a level, of one for all or one each; ``ResvaeError`` for another number of them or under 0."""
    each = [float(temperature)] * num_levels if isinstance(temperature, int | float) else list(temperature)
    if len(each) != num_levels or not all(value >= 0 for value in each):
        raise ResvaeError(
            f"temperature: {temperature} is not allowed; 0 or more, one for all or one a level ({num_levels})"
        )
    return each


def json_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments, as ``locals()`` has them at its start, with dataclasses as dicts and tuples as lists."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {k: plain(v) for k, v in asdict(value).items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    return {name: plain(value) for name, value in arguments.items() if name not in ("self", "__class__")}
