"""The contracts that every model keeps: ``ImageModel`` for all of them, ``ImageVAE`` for those with latents."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from resvae.errors import ResvaeError, whole_from
from resvae.files import place
from resvae.networks.depth import is_sequence
from resvae.probability import ElboTerms, Likelihood, importance_bound
from resvae.probability.likelihoods import LIKELIHOODS

Shape = tuple[int, int, int]
# Images in a pass of ``log_weights``, by device: more do not make a CPU faster, fewer leave a GPU waiting.
AT_ONCE = {"cpu": 32, "cuda": 4096}


class ImageModel(nn.Module, ABC):
    """A network on images, with figures that say how good it is. The base of VAEs and of classifiers.

    Images come in as uint8 or as float32 in [0, 1], ``[B, C, H, W]``. Nothing here knows how the model is trained.
    A class of your own can be saved and loaded by name after ``resvae.models.register``.
    """

    field: ClassVar[str]  # its name in configurations (``model.vae``) and in checkpoints (``vae.``)
    image_shape: Shape
    arguments: dict[str, Any] | None = None  # the constructor's, as JSON can hold them; None: it cannot be saved
    earlier: ClassVar[dict[str, Any]] = {}  # values of arguments newer than saved models, where not today's defaults

    @abstractmethod
    def figures(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Figures ``[B]`` of each image by their names in the log, with a differentiable ``loss``; labels ``y [B]``."""

    @property
    @abstractmethod
    def deciding(self) -> str:
        """The name of the figure that decides which weights are best, and that plots show; lower is better."""

    @property
    def chance(self) -> float | None:
        """The deciding figure of a model that gives all outcomes equal probability, where this is known."""
        return None

    def encoded(self, x: Tensor) -> Any:
        """What ``evaluate`` hands to its measures in place of a batch of images; by default the images themselves."""
        return x

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Self:
        """A model in eval mode from a folder that ``save_pretrained`` wrote, or ``user/model`` on the Hub.

        Raises ``ResvaeError`` where there is nothing, and for a model of another class.
        """
        from resvae.models.pretrained import CONFIG, fetch, load_folder  # which imports this module

        folder = place(source)
        model = load_folder(folder if (folder / CONFIG).is_file() else fetch(str(source), revision))
        if not isinstance(model, cls):
            raise ResvaeError(f"model: {source} is a {type(model).__name__}, not a {cls.__name__}")
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, as ``resvae.storage.save`` does."""
        from resvae.models.pretrained import save

        save(self, folder)

    def push_to_hub(self, name: str, private: bool | None = None, revision: str | None = None) -> str:
        """Upload the model as ``user/model`` of the Hugging Face Hub; returns its address. ``ResvaeError`` if it fails.

        ``private``: whether only you see it, where it is new. ``revision``: a branch, which is made; default: main.
        """
        from resvae.models.pretrained import push_model

        return push_model(self, name, private, revision)

    def check_labels(self, y: Tensor, data: str | None) -> None:
        """Raise ``ResvaeError`` where the model cannot use the labels ``y [N]`` of a data set; by default it can."""
        return


@dataclass(frozen=True)
class Encoded:
    """Images and what a model's encoder makes of them. The model's methods take it in place of images."""

    x: Tensor  # float32 in [0, 1], [B, C, H, W]
    features: Any  # what ``encoder_features`` returned: tensors, the batch first, in lists or tuples

    def __len__(self) -> int:
        return len(self.x)

    def first(self, num: int) -> "Encoded":
        """The first ``num`` images, or all where there are fewer."""

        def cut(part: Any) -> Any:
            return part[:num] if isinstance(part, Tensor) else type(part)(map(cut, part))

        return self if num >= len(self) else Encoded(self.x[:num], cut(self.features))

    def repeat(self, num: int) -> "Encoded":
        """All images ``num`` times, one time after another."""

        def times(part: Any) -> Any:
            return torch.cat([part] * num) if isinstance(part, Tensor) else type(part)(map(times, part))

        return self if num == 1 else Encoded(times(self.x), times(self.features))


class ImageVAE(ImageModel):
    """A variational autoencoder of images ``x`` with latents ``z``: q(z|x), p(z), p(x|z).

    Everything is a plain method on tensors. Images go out as float32 in [0, 1]. Log-probabilities are in nats per
    image. Each method that takes images also takes what ``encoded`` returns, and then does not run the encoder.
    """

    field = "vae"
    likelihood: Likelihood

    @abstractmethod
    def encoder_features(self, x: Tensor) -> Any:
        """What the encoder makes of float32 images in [0, 1], ``[B, C, H, W]``: all that ``posterior`` needs."""

    @abstractmethod
    def elbo(self, x: Tensor | Encoded) -> ElboTerms:
        """The evidence lower bound of each image, from one posterior sample (Kingma & Welling 2014, eq. 3)."""

    @abstractmethod
    def posterior(self, x: Tensor | Encoded) -> Distribution:
        """q(z|x), batch shape ``[B]``."""

    @abstractmethod
    def decode(self, z: Tensor) -> Distribution:
        """p(x|z), batch shape ``[B]``, event shape ``[C, H, W]``."""

    @abstractmethod
    def sample_prior(self, num: int, temperature: float | Sequence[float] = 1.0) -> Tensor:
        """``[num, D]``: latents from p(z), their scale times ``temperature``: one number, or one per level."""

    @abstractmethod
    def log_weight(self, x: Tensor | Encoded) -> Tensor:
        """``[B]``: log p(x, z) - log q(z|x) of each image with a z drawn from q(z|x)."""

    def forward(self, x: Tensor | Encoded) -> Tensor:
        """``vae(x)``: the mean of p(x|z) at the posterior's mean, ``[B, C, H, W]``, with a gradient."""
        return self.at_mean(x)[1].mean

    def encode(self, x: Tensor | Encoded) -> Distribution:
        """``posterior`` by the name that most libraries have for it."""
        return self.posterior(x)

    def encoded(self, x: Tensor | Encoded) -> Encoded:
        """Checked images with what the encoder makes of them, to be given to several methods."""
        if isinstance(x, Encoded):
            return x
        x = to_unit(x, self.image_shape)
        return Encoded(x, self.encoder_features(x))

    def figures(self, x: Tensor | Encoded, y: Tensor | None = None) -> dict[str, Tensor]:
        """The figures of the ELBO's terms; labels are not needed."""
        return self.elbo(x).figures()

    @property
    def deciding(self) -> str:
        """``bits_per_dim`` where the likelihood is a probability of the 256 values, else ``loss``."""
        return "bits_per_dim" if self.likelihood.discrete else "loss"

    @property
    def chance(self) -> float | None:
        """8 bits per dimension, where all 256 values are equally probable."""
        return 8.0 if self.likelihood.discrete else None

    def penalty(self) -> Tensor:
        """What the model adds to the loss besides -elbo (weight penalties), a scalar; 0 by default."""
        return torch.zeros((), device=next(self.parameters()).device)

    def log_weights(self, x: Tensor | Encoded, num_samples: int) -> Iterator[Tensor]:
        """``num_samples`` times ``log_weight``, each ``[B]``; the encoder runs once, the decoder on many at once."""
        seen = self.encoded(x)
        at_once = max(1, AT_ONCE.get(seen.x.device.type, AT_ONCE["cpu"]) // max(1, len(seen)))
        while num_samples:
            num = min(num_samples, at_once)
            try:
                weights = self.log_weight(seen.repeat(num))
            except torch.OutOfMemoryError:
                if num == 1:
                    raise
                at_once = num // 2
                continue
            yield from weights.unflatten(0, (num, len(seen)))
            num_samples -= num

    @torch.no_grad()
    def log_likelihood(self, x: Tensor | Encoded, num_samples: int = 100) -> Tensor:
        """The importance-weighted bound on log p(x) (Burda 2016, eq. 8), nats, ``[B]``, in constant memory."""
        whole_from(1, num_samples=num_samples)
        return importance_bound(self.log_weights(x, num_samples)).float()

    def prior_images(self, num: int, temperature: float | Sequence[float] = 1.0) -> Distribution:
        """p(x|z) for ``num`` latents from the prior; a model that decodes as it draws them decodes once."""
        return self.decode(self.sample_prior(num, temperature))

    @torch.no_grad()
    def sample(self, num: int, temperature: float | Sequence[float] = 1.0, pixel_noise: bool = False) -> Tensor:
        """Means of p(x|z) for z from the prior, or draws from it with ``pixel_noise``: ``[num, C, H, W]`` in [0, 1]."""
        whole_from(1, num=num)
        return self._pixels(self.prior_images(num, temperature), pixel_noise)

    def shift(self, x: Tensor | Encoded) -> Tensor:
        """``[B, D]``: the posterior's mean less the prior's given the latents above: what the image itself decides."""
        return self.posterior(x).mean

    def latents(self, x: Tensor | Encoded) -> list[tuple[Tensor, Tensor]]:
        """The posterior's mean and standard deviation by level, coarsest first; a level's are given the means above.

        Both are ``[B, ...]``; the means, flattened and side by side, are what ``decode`` takes.
        """
        q = self.posterior(x)
        return [(q.mean, q.stddev)]

    def at_mean(self, x: Tensor | Encoded) -> tuple[Tensor, Distribution]:
        """The posterior's mean ``[B, D]``, and p(x|z) there."""
        z = self.posterior(x).mean
        return z, self.decode(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor | Encoded) -> Tensor:
        """The mean of p(x|z) at the posterior's mean, float32 in [0, 1], ``[B, C, H, W]``."""
        return self._pixels(self.at_mean(x)[1])

    @torch.no_grad()
    def interpolate(self, a: Tensor | Encoded, b: Tensor | Encoded, steps: int = 8) -> Tensor:
        """Images on the line between the latents of ``a`` and ``b``, both ends included: ``[B, steps, C, H, W]``."""
        whole_from(2, steps=steps)
        (start, first), (end, last) = self.at_mean(a), self.at_mean(b)
        between = [self.decode(start.lerp(end, t)) for t in torch.linspace(0, 1, steps).tolist()[1:-1]]
        return torch.stack([self._pixels(p) for p in (first, *between, last)], 1)

    def _terms(self, log_likelihood: Tensor, kl: Tensor, x: Tensor) -> ElboTerms:
        num_dims, likelihood = math.prod(self.image_shape), self.likelihood
        return ElboTerms(log_likelihood, kl, num_dims, likelihood.discrete, likelihood.floor(x))

    @staticmethod
    def _pixels(likelihood: Distribution, noise: bool = False) -> Tensor:
        return (likelihood.sample() if noise else likelihood.mean).clamp(0, 1).float()


def to_unit(x: Tensor, image_shape: tuple[int, int, int]) -> Tensor:
    """Images ``[B, C, H, W]``, uint8 in 0..255 or floats in [0, 1], as float32 in [0, 1]: all are checked here.

    Raises ``ResvaeError`` for another shape or type, values outside [0, 1], and NaN.
    """
    if not isinstance(x, Tensor):
        raise ResvaeError(f"images: {type(x).__name__} is not allowed; a tensor, such as torch.as_tensor(...)")
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(image_shape):
        taken = ", ".join(map(str, image_shape))
        raise ResvaeError(f"images: shape {tuple(x.shape)} does not fit this model, which takes (batch, {taken})")
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise ResvaeError(f"images: type {x.dtype} is not allowed; give uint8 in 0..255 or floats in [0, 1]")
    # The check reads two numbers back from the device; a compiled graph cannot, and training feeds uint8 anyway.
    if not torch.compiler.is_compiling() and x.numel():
        low, high = x.aminmax()
        if not (low >= 0 and high <= 1):
            raise ResvaeError(
                f"images: values from {low.item():.4g} to {high.item():.4g} are not allowed; floats must lie in [0, 1]"
            )
    return x.float()


def level_temperatures(temperature: float | Sequence[float], num_levels: int) -> list[float]:
    """One temperature per level, from one number or a list; ``ResvaeError`` for a negative one or another length."""
    given: Any = temperature
    each = list(given) if is_sequence(given) else [given] * num_levels
    if len(each) != num_levels or not all(isinstance(value, Real) and float(value) >= 0 for value in each):
        raise ResvaeError(
            f"temperature: {temperature!r} is not allowed; 0 or more, one number or one per level ({num_levels})"
        )
    return list(map(float, each))


def json_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments (``locals()`` at its start) for JSON: dataclasses as dicts, tuples as lists.

    A registered likelihood's class becomes its name. What JSON cannot hold stays as it is, and cannot be saved.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, type):
            return next((name for name, known in LIKELIHOODS.items() if known is value), value)
        if is_dataclass(value):
            value = asdict(value)  # pyright: ignore[reportArgumentType]  no class, see above
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, Real) and not isinstance(value, bool):  # numpy's too
            return int(value) if isinstance(value, Integral) else float(value)
        return value

    return {name: plain(value) for name, value in arguments.items() if name not in ("self", "__class__")}
