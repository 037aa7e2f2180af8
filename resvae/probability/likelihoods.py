"""Likelihoods p(x|z): modules that turn a decoder's features ``[B, num_features, H, W]`` into a distribution."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent

from resvae.errors import ResvaeError, one_line, whole_from
from resvae.probability.distributions import DiscretizedLogistic, DiscretizedLogisticMixture

MIN_VARIANCE = 1 / (12 * 255**2)  # of the rounding to 256 values: a sharper density would only praise itself


class Likelihood(nn.Module, ABC):
    """What a likelihood must have. Its constructor takes the number of the image's channels first.

    Features of zero should give a sane start: a broad distribution around grey. ``resvae.models.register`` gives a
    class of your own a name, by which models that use it can be saved.
    """

    num_features: int  # the channels that it reads
    discrete: bool = False  # whether it is a probability of the 256 values of a pixel
    # Row and column of the four pixels of a square of 2x2, if it also takes their features side by side in this order.
    order: Sequence[tuple[int, int]] | None = None
    has_layers: bool = False  # whether it has layers of its own: what makes its features then is no last layer

    def __init__(self, channels: int = 1):
        super().__init__()
        whole_from(1, channels=channels)

    @abstractmethod
    def forward(self, features: Tensor, x: Tensor | None = None) -> Distribution:
        """p(x|z) on [0, 1], batch shape ``[B]``, event shape ``[C, H, W]``, in float32 whatever the features are.

        ``x``: the images, where they are known; in training, a likelihood may fit its own statistics to them.
        """

    def floor(self, x: Tensor) -> Tensor | None:
        """The least that -log p(x|z) can be, ``[B]``; None where there is no such number, or none of use."""
        return None


class Bernoulli(Likelihood):
    """Cross-entropy of real-valued targets in [0, 1], nats: neither a density nor a probability of the 256 values."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.num_features = channels

    def forward(self, features: Tensor, x: Tensor | None = None) -> Distribution:
        """Features are the logits."""
        logits = _checked(features, self.num_features)
        return Independent(distributions.Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)

    def floor(self, x: Tensor) -> Tensor:
        """The entropy of the targets, nats per image, ``[B]``: no cross-entropy falls under it."""
        x = x.float()
        return (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(1)


class Gaussian(Likelihood):
    """A Gaussian density on [0, 1]; its variance is ``learned`` per pixel, a fixed number, or ``optimal``, one for all.

    ``optimal`` is the batch's own mean squared error (sigma-VAE, Rybkin et al. 2021, eq. 6) in training, where x is
    given. Without x and in evaluation it is the running average of that, so that no image depends on its batch.
    """

    variance: Tensor
    num_batches: Tensor

    def __init__(self, channels: int, variance: Literal["learned", "optimal"] | float = "optimal"):
        super().__init__(channels)
        self.learned, self.optimal = variance == "learned", variance == "optimal"
        if isinstance(variance, str) and not self.learned and not self.optimal:
            raise ResvaeError(f"variance: {variance!r} is not allowed; learned, optimal or a number")
        if not isinstance(variance, str) and not 0 < variance < math.inf:
            raise ResvaeError(f"variance: {variance} is not allowed; more than 0")
        self.num_features = channels * (2 if self.learned else 1)
        if not self.learned:
            self.register_buffer("variance", torch.tensor(1.0 if self.optimal else float(variance)))
        if self.optimal:
            self.register_buffer("num_batches", torch.tensor(0.0))

    def forward(self, features: Tensor, x: Tensor | None = None) -> Distribution:
        """Features are the mean on [-1, 1] and, for a learned variance, the standard deviation before a softplus."""
        features, *raw = _checked(features, self.num_features).chunk(2 if self.learned else 1, 1)
        mean = (features + 1) / 2
        if self.learned:
            scale = math.sqrt(MIN_VARIANCE) + 0.25 * F.softplus(raw[0], beta=math.log(2))  # .25 at 0
        elif self.optimal and self.training and x is not None:
            scale = self._fit(mean, x).sqrt()
        else:
            scale = self.variance.sqrt()
        return Independent(distributions.Normal(mean, scale, validate_args=False), 3, validate_args=False)

    @torch.no_grad()  # at its optimum the variance's own gradient is 0
    def _fit(self, mean: Tensor, x: Tensor) -> Tensor:
        error = (x - mean).square().mean().clamp(min=MIN_VARIANCE)
        finite = error.isfinite()  # one bad batch must not spoil the average for ever
        self.num_batches += finite
        weight = (1 / self.num_batches.clamp(min=1)).clamp(min=0.01)
        self.variance.copy_(torch.where(finite, self.variance.lerp(error, weight), self.variance))
        return error


class Logistic(Likelihood):
    """One discretised logistic per channel of a pixel, channels independent."""

    discrete = True

    def __init__(self, channels: int):
        super().__init__(channels)
        self.num_features = 2 * channels

    def forward(self, features: Tensor, x: Tensor | None = None) -> Distribution:
        """Features are the centre on [-1, 1] and the log-scale, less 1.5: a spread like that of images at 0."""
        loc, log_scale = _checked(features, self.num_features).chunk(2, 1)
        return Independent(DiscretizedLogistic(loc, log_scale - 1.5, validate_args=False), 3, validate_args=False)


class LogisticMixture(Likelihood):
    """A mixture of discretised logistics per pixel, channels autoregressive in each component (PixelCNN++).

    Features per pixel, with C channels and K mixtures: K logits, K C centres, K C log-scales, K C (C - 1) / 2
    coefficients before a tanh; at 0 the centres are spread evenly over [-1, 1] and the log-scales are -2.
    """

    discrete = True
    spread: Tensor
    places: Tensor

    def __init__(self, channels: int, num_mixtures: int = 10):
        super().__init__(channels)
        whole_from(1, num_mixtures=num_mixtures)
        k = num_mixtures
        self.sizes = (k, k * channels, k * channels, k * channels * (channels - 1) // 2)
        self.num_features = sum(self.sizes)
        spread = torch.linspace(-1, 1, k) if k > 1 else torch.zeros(1)
        self.register_buffer("spread", spread[:, None, None, None], persistent=False)
        order = torch.arange(self.num_features).split(self.sizes)
        order = [part.view(k, -1).mT.flatten() for part in order]  # components side by side
        self.register_buffer("places", torch.cat(order), persistent=False)

    def forward(self, features: Tensor, x: Tensor | None = None) -> DiscretizedLogisticMixture:
        """Features in the order logits, centres, log-scales, coefficients; a component's channels side by side."""
        return self.around(features, None)

    def around(self, features: Tensor, centre: Tensor | None) -> DiscretizedLogisticMixture:
        """The same of each pixel's difference from ``centre [B, C, H, W]``, which is on [-1, 1]; None is 0."""
        features = _checked(features, self.num_features)
        batch, _, height, width = features.shape
        k, channels = self.sizes[0], self.sizes[1] // self.sizes[0]
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)  # a view of what a convolution makes, channels last
        inside_graph = self.training and rows.device.type == "cpu"
        rows = reordered(rows, self.places) if inside_graph else rows.index_select(1, self.places)
        # For each pixel, components side by side: [N, 1 or C or C (C - 1) / 2, K]
        logits, loc, log_scale, coefficients = rows.unflatten(1, (-1, k)).split([size // k for size in self.sizes], 1)
        loc, coefficients = loc + self.spread.flatten(), coefficients.tanh()
        if centre is not None:  # centre_c + sum_j coefficient_cj (x_j - centre_j)
            around = centre.permute(0, 2, 3, 1).reshape(-1, channels, 1).unbind(1)
            pairs, own = iter(coefficients.unbind(1)), list(loc.unbind(1))
            for c in range(channels):
                own[c] = own[c] + around[c]
                for j in range(c):
                    own[c] = own[c] - next(pairs) * around[j]
            loc = torch.stack(own, 1)
        parts = (
            part.unflatten(0, (batch, height, width)).permute(0, 4, 3, 1, 2)
            for part in (loc, log_scale - 2, coefficients)
        )
        logits = logits.squeeze(1).unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)
        return DiscretizedLogisticMixture(logits, *parts, validate_args=False)

    def narrower(self, factor: float) -> Tensor:
        """Features ``[num_features]`` at which scales, and distances of centres, are ``factor`` times those at 0."""
        logits, loc, log_scale, coefficients = (torch.zeros(size) for size in self.sizes)
        loc = ((factor - 1) * self.spread).expand(-1, len(loc) // self.sizes[0], 1, 1).flatten()
        return torch.cat([logits, loc, log_scale + math.log(factor), coefficients])


# A factory of each by name: channels and further arguments to a likelihood. ``resvae.models.register`` adds to it.
LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "discretized_mixture": LogisticMixture,
    "discretized_logistic": Logistic,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "gaussian_learned": partial(Gaussian, variance="learned"),
    "gaussian_fixed": partial(Gaussian, variance=1.0),
}
LikelihoodChoice = type[Likelihood] | dict[str, Any] | str


def make_likelihood(likelihood: LikelihoodChoice, channels: int) -> Likelihood:
    """The likelihood of images of ``channels`` channels that a name, a dict or a class stands for.

    A name is one of ``LIKELIHOODS``, ``gaussian`` with a batch-optimal variance, or that of a registered class. A dict
    has such a ``name``, and arguments: ``{"name": "discretized_mixture", "num_mixtures": 5}``. All else, arguments that
    it does not take, and fewer than one channel raise ``ResvaeError``.
    """
    if isinstance(likelihood, type):
        if not issubclass(likelihood, Likelihood):
            raise ResvaeError(f"likelihood: {likelihood.__name__} is not allowed; a subclass of Likelihood")
        return likelihood(channels)
    given = dict(likelihood) if isinstance(likelihood, dict) else {"name": likelihood}
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in LIKELIHOODS:
        raise ResvaeError(f"likelihood: {name!r} is not allowed; {', '.join(LIKELIHOODS)} or a subclass of Likelihood")
    taken = list(inspect.signature(LIKELIHOODS[name]).parameters)[1:]
    for key, value in given.items():
        if key not in taken:
            allowed = ", ".join(taken) or "no arguments"
            raise ResvaeError(f"likelihood.{key}: {value!r} is not allowed; {name} takes {allowed}")
    try:
        return LIKELIHOODS[name](channels, **given)
    except TypeError as error:
        raise ResvaeError(f"likelihood: {likelihood} is not allowed ({one_line(error)})") from error


@torch.library.custom_op("resvae::reordered", mutates_args=())
def reordered(rows: Tensor, order: Tensor) -> Tensor:
    """``rows [N, D]`` with their columns in another order: a copy that compiled graphs keep as one.

    Compiled loops on a CPU would rather read number by number what does not lie as they need it, each time anew.
    """
    return rows.gather(1, order.expand(rows.shape))  # in parallel, where index_select is not


@reordered.register_fake
def _(rows: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


reordered.register_autograd(
    lambda ctx, gradient: (reordered(gradient.contiguous(), ctx.saved_tensors[0].argsort()), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


def _checked(features: Tensor, num_features: int) -> Tensor:
    if features.ndim != 4 or features.shape[1] != num_features:
        raise ResvaeError(f"features: shape {tuple(features.shape)} is not allowed; (batch, {num_features}, H, W)")
    return features.float()
