"""A likelihood that looks at its neighbours: the four sub-images of an image in turn, each given those before it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.types import _size

from resvae.errors import ResvaeError, at_least
from resvae.probability.distributions import DiscretizedLogisticMixture
from resvae.probability.likelihoods import LIKELIHOODS, Likelihood, LogisticMixture

# Row and column of each sub-image's pixels in every square of 2x2: each has neighbours before it on as many sides as
# the order allows.
ORDER = ((0, 0), (1, 1), (0, 1), (1, 0))


class SubPixelMixture(Likelihood):
    """Mixtures of discretised logistics, whose parameters depend on the pixels of the sub-images before.

    ::

        features [B F H W] -> to depth -> [B 4F H/2 W/2] --+
                                                            + -> h -> h + 3x3(act(h)) -> 1x1 -> to space -> mixtures
        x        [B C H W] -> to depth -> masked 3x3 ------+

    The sub-images are the pixels at the four places of each square of 2x2 (Menick & Kalchbrenner 2019, in two
    dimensions). A convolution's mask lets each place see only those before it, so that one pass gives the exact
    log-probability of all of them; sampling takes four passes. Under autocast these layers are lowered, as a decoder's.

    Args:
        channels: C, any number.
        num_mixtures: K, components per pixel.
        width: F, features per pixel.
    """

    discrete = True
    mask: Tensor

    def __init__(self, channels: int, num_mixtures: int = 10, width: int = 64):
        super().__init__()
        at_least(1, width=width)
        self.mixture = LogisticMixture(channels, num_mixtures)
        self.num_features = width
        self.context = nn.Conv2d(4 * channels, 4 * width, 3, padding=1, bias=False)
        place = torch.arange(4)
        mask = (place[:, None] > place).repeat_interleave(width, 0).repeat_interleave(channels, 1)
        self.register_buffer("mask", mask[:, :, None, None].float(), persistent=False)
        self.hidden = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4)
        self.out = nn.Conv2d(4 * width, 4 * self.mixture.num_features, 1, groups=4)
        nn.init.normal_(self.out.weight, std=0.1 * width**-0.5)  # training starts from the mixture's own start
        for layer in (self.hidden, self.out):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, x: Tensor | None = None) -> Distribution:
        """Features of images of an even height and width."""
        _, num, height, width = features.shape
        if num != self.num_features or height % 2 or width % 2:
            allowed = f"(batch, {self.num_features}, H, W) with H and W even"
            raise ResvaeError(f"features: shape {tuple(features.shape)} is not allowed; {allowed}")
        own = to_depth(features)

        def given(x: Tensor) -> DiscretizedLogisticMixture:
            seen = to_depth(2 * x - 1).to(own.dtype)
            h = own + F.conv2d(seen, (self.context.weight * self.mask).to(own.dtype), padding=1)
            h = h + self.hidden(F.silu(h))
            return self.mixture(to_space(self.out(F.silu(h))))

        channels = self.context.in_channels // 4
        return SubPixelDistribution(given, features.new_zeros(len(features), channels, height, width).float())


class SubPixelDistribution(Distribution):
    """p(x) = prod_g p(x_g | x_<g) over the four sub-images; batch shape ``[B]``, event shape ``[C, H, W]``.

    ``mean`` is the picture of each sub-image's mean given the means before it; it is not the mean of all samples.

    Args:
        given: from images ``[B, C, H, W]`` in [0, 1] to mixtures; the mixture of a pixel depends only on the
            sub-images before its own.
        blank: images of the shape that is wanted, on the device to compute on; their values do not count.
    """

    support = constraints.independent(constraints.unit_interval, 3)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, given: Callable[[Tensor], DiscretizedLogisticMixture], blank: Tensor):
        self.given, self.blank = given, blank
        super().__init__(blank.shape[:1], blank.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-probability of images ``[..., B, C, H, W]``, nats, ``[..., B]``."""
        images = value.reshape(-1, *self.batch_shape, *self.event_shape)
        return torch.stack([self.given(x).log_prob(x) for x in images]).view(value.shape[:-3])

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Exact samples on the grid k/255, ``[*sample_shape, B, C, H, W]``; four passes each."""
        shape = torch.Size(sample_shape)
        images = [self._in_turn(DiscretizedLogisticMixture.sample) for _ in range(shape.numel())]
        return torch.stack(images).view(*shape, *images[0].shape)

    @property
    def mean(self) -> Tensor:
        """``[B, C, H, W]`` in [0, 1]."""
        return self._in_turn(lambda mixture: mixture.mean)

    def _in_turn(self, choose: Callable[[DiscretizedLogisticMixture], Tensor]) -> Tensor:
        x = self.blank
        for row, column in ORDER:
            place = torch.zeros_like(x[0, 0], dtype=torch.bool)
            place[row::2, column::2] = True
            x = torch.where(place, choose(self.given(x)), x)
        return x


def to_depth(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, 4 C, H/2, W/2]``: the four sub-images one after another, in their order."""
    return torch.cat([x[..., row::2, column::2] for row, column in ORDER], 1)


def to_space(x: Tensor) -> Tensor:
    """The inverse of ``to_depth``."""
    parts = dict(zip(ORDER, x.chunk(4, 1), strict=True))
    rows = [torch.stack([parts[row, column] for column in (0, 1)], -1).flatten(-2) for row in (0, 1)]
    return torch.stack(rows, -2).flatten(-3, -2)


LIKELIHOODS["subpixel_mixture"] = SubPixelMixture
