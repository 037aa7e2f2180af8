"""A likelihood that looks at its neighbours: the sub-images of an image in turn, each given those before it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.types import _size

from resvae.errors import ResvaeError, whole_from
from resvae.probability.distributions import DiscretizedLogisticMixture
from resvae.probability.likelihoods import LIKELIHOODS, Likelihood, LogisticMixture

# Row and column of each sub-image's pixels in every square of 2x2: each has neighbours before it on as many sides as
# the order allows.
ORDER = ((0, 0), (1, 1), (0, 1), (1, 0))
AFTER_FIRST = len(ORDER) - 1
# Neighbouring pixels differ by little of the range [-1, 1]. Scaled up, their differences are seen from the start.
CONTRAST = 4.0
# Mixtures centred by the pixels around start so much narrower than those of the first sub-image, which has none.
NARROWER = 1 / 4


class SubPixelMixture(Likelihood):
    """Mixtures of discretised logistics, whose parameters depend on the pixels of the sub-images before.

    ::

        features [B F H W] -> to depth -+-> the first F -> the next scale, or at the last mixtures of sub-image 0
                                        +-> 3F [B 3F H/2 W/2] --+
                                                                + -> h -> h + 3x3(act(h)) -> 1x1 -> sub-images 1 to 3
        x        [B C H W] -> to depth -> masked 3x3 -----------+                                   ^
                                      +-> masked 3x3 -> their centres, the mean of the pixels around at the start

    The sub-images are the pixels at the four places of each square of 2x2 (Menick & Kalchbrenner 2019, in two
    dimensions). The first of them, an image of half the size, is made in the same way, ``scales`` times in all (Reed et
    al. 2017). Masked convolutions let each sub-image see only those before it, so that one pass gives the exact
    log-probability of all of them; sampling takes ``1 + 3 scales`` passes.

    Args:
        channels: C, any number.
        num_mixtures: K, components per pixel.
        width: F, features per pixel.
        layers: how many times h becomes h + 3x3(act(h)).
        scales: how often the image is divided; 2 to this power must divide its height and width.
    """

    discrete = has_layers = True
    order = ORDER

    def __init__(self, channels: int, num_mixtures: int = 10, width: int = 64, layers: int = 1, scales: int = 1):
        super().__init__(channels)
        whole_from(1, width=width, layers=layers, scales=scales)
        self.mixture = LogisticMixture(channels, num_mixtures)
        self.num_features, self.channels = width, channels
        self.scales = nn.ModuleList(Scale(channels, width, layers, self.mixture) for _ in range(scales))
        self.first = Head(width, layers, 1, self.mixture.num_features)

    def forward(self, features: Tensor, x: Tensor | None = None) -> Distribution:
        """Features of images whose height and width 2 to the power of ``scales`` divides; or ``to_depth`` of them."""
        _, num, height, width = features.shape
        divided = num == len(ORDER) * self.num_features
        size = 2 ** (len(self.scales) - divided)
        if (num != self.num_features and not divided) or height % size or width % size:
            allowed = f"(batch, {self.num_features}, H, W) with H and W multiples of {2 ** len(self.scales)}"
            raise ResvaeError(f"features: shape {tuple(features.shape)} is not allowed; {allowed}")
        own: list[Tensor] = []  # of each scale's later sub-images, the finest first
        for i in range(len(self.scales)):
            parts = features if divided and i == 0 else to_depth(features)
            features, rest = parts.split([self.num_features, AFTER_FIRST * self.num_features], 1)
            own.append(rest)
        first = self.mixture(self.first(features))
        later = [partial(scale, each) for scale, each in zip(self.scales, own, strict=True)]
        return SubPixelDistribution(first, later[::-1])


class Head(nn.Module):
    """h to h + 3x3(act(h)), ``layers`` times, then parameters of mixtures by 1x1; each sub-image (group) by itself."""

    hidden_layers = ("hidden",)

    def __init__(self, width: int, layers: int, groups: int, num_parameters: int):
        super().__init__()
        self.groups = groups
        every = groups * width
        self.hidden = nn.ModuleList(nn.Conv2d(every, every, 3, padding=1, groups=groups) for _ in range(layers))
        self.out = nn.Conv2d(every, groups * num_parameters, 1, groups=groups)
        nn.init.normal_(self.out.weight, std=0.1 * width**-0.5)  # training starts from the mixture's own start
        for layer in (*self.hidden, self.out):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, h: Tensor, only: int | None = None) -> Tensor:
        """``[B, groups width, h, w]`` to ``[B, groups num_parameters, h, w]``; or of the ``only`` group both."""
        for layer in self.hidden:
            h = h + self._of(layer, F.silu(h), only)
        return self._of(self.out, F.silu(h), only)

    def _of(self, layer: nn.Module, h: Tensor, only: int | None) -> Tensor:
        if only is None:
            return layer(h)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        weight, bias = (parameter.chunk(self.groups)[only] for parameter in (layer.weight, layer.bias))
        return F.conv2d(h, weight, bias, padding=layer.padding)


class Scale(nn.Module):
    """Sub-images 1 to 3 of images at one scale, given their own features and the sub-images before each."""

    hidden_layers = ("context",)
    mask: Tensor

    def __init__(self, channels: int, width: int, layers: int, mixture: LogisticMixture):
        super().__init__()
        self.channels, self.mixture = channels, mixture
        self.context = nn.Conv2d(AFTER_FIRST * channels, AFTER_FIRST * width, 3, padding=1, bias=False)
        self.centre = nn.Conv2d(AFTER_FIRST * channels, AFTER_FIRST * channels, 3, padding=1, bias=False)
        mean = torch.einsum("gsyx,cd->gcsdyx", mean_of_nearest(), torch.eye(channels))
        self.centre.weight.data.copy_(mean.reshape(self.centre.weight.shape))
        self.head = Head(width, layers, AFTER_FIRST, mixture.num_features)
        self.head.out.bias.data.copy_(mixture.narrower(NARROWER).repeat(AFTER_FIRST))  # pyright: ignore[reportOptionalMemberAccess]
        place = torch.arange(AFTER_FIRST)
        mask = (place[:, None] >= place).repeat_interleave(channels, 1)
        self.register_buffer("mask", mask[:, :, None, None].float(), persistent=False)

    def forward(self, own: Tensor, x: Tensor, only: int | None = None) -> DiscretizedLogisticMixture:
        """Mixtures of sub-images 1 to 3 of each image in turn, batch shape ``[3 B]``, event shape ``[C, h, w]``.

        ``own`` are features ``[B, 3 width, h, w]``, ``x`` all sub-images ``[B, 4 C, h, w]``, in [0, 1]. With ``only``
        one of the three is made, 0 to 2: batch shape ``[B]``.
        """
        seen = 2 * x[:, : -self.channels] - 1  # the last is before no other
        device = x.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            # A centre is as exact as a pixel.
            centre = F.conv2d(seen, self._masked(self.centre, only), padding=1)
        context = F.conv2d(CONTRAST * seen.to(own.dtype), self._masked(self.context, only).to(own.dtype), padding=1)
        if only is not None:
            parameters = self.head(own.chunk(AFTER_FIRST, 1)[only] + context, only).contiguous()
            return self.mixture.around(parameters, centre)
        parameters = self.head(own + context).contiguous()
        return self.mixture.around(one_by_one(parameters), one_by_one(centre))

    def _masked(self, layer: nn.Conv2d, only: int | None) -> Tensor:
        weight = layer.weight * self.mask.repeat_interleave(layer.out_channels // AFTER_FIRST, 0)
        return weight if only is None else weight.chunk(AFTER_FIRST)[only]


class SubPixelDistribution(Distribution):
    """p(x) = prod_g p(x_g | x_<g) over sub-images; batch shape ``[B]``, event shape ``[C, H, W]``.

    ``mean`` is the picture of each sub-image's mean given the means before it; it is not the mean of all samples.

    Args:
        first: of the coarsest sub-image 0.
        later: of each scale, the coarsest first: from all its sub-images ``[B, 4 C, h, w]`` in [0, 1] to mixtures of
            1 to 3, batch shape ``[3 B]``, each of which depends only on the sub-images before its own; given a number 0
            to 2 as well, to that one alone.
    """

    support = constraints.independent(constraints.unit_interval, 3)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        first: DiscretizedLogisticMixture,
        later: Sequence[Callable[..., DiscretizedLogisticMixture]],
    ):
        self.first, self.later = first, later
        channels, height, width = first.event_shape
        size = 2 ** len(later)
        shape = torch.Size([channels, height * size, width * size])
        super().__init__(first.batch_shape, shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-probability of images ``[..., B, C, H, W]``, nats, ``[..., B]``."""
        images = value.reshape(-1, *self.batch_shape, *self.event_shape)
        return torch.stack([self._log_prob(x) for x in images]).view(value.shape[:-3])

    def _log_prob(self, x: Tensor) -> Tensor:
        log_prob, channels = x.new_zeros(()), self.event_shape[0]
        for later in reversed(self.later):
            parts = to_depth(x)
            x, rest = parts.split([channels, AFTER_FIRST * channels], 1)
            log_prob = log_prob + later(parts).log_prob(one_by_one(rest)).view(-1, AFTER_FIRST).sum(1)
        return log_prob + self.first.log_prob(x)

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Exact samples on the grid k/255, ``[*sample_shape, B, C, H, W]``; a pass per sub-image each."""
        shape = torch.Size(sample_shape)
        images = [self._in_turn(DiscretizedLogisticMixture.sample) for _ in range(shape.numel())]
        return torch.stack(images).view(*shape, *images[0].shape)

    @property
    def mean(self) -> Tensor:
        """``[B, C, H, W]`` in [0, 1]."""
        return self._in_turn(lambda mixture: mixture.mean)

    def _in_turn(self, choose: Callable[[DiscretizedLogisticMixture], Tensor]) -> Tensor:
        x = choose(self.first)
        for later in self.later:
            parts = [x, *(torch.zeros_like(x) for _ in range(AFTER_FIRST))]
            for i in range(AFTER_FIRST):
                parts[1 + i] = choose(later(torch.cat(parts, 1), i))
            x = to_space(torch.cat(parts, 1))
        return x


def one_by_one(later: Tensor) -> Tensor:
    """Sub-images 1 to 3 of each image, side by side ``[B, 3 D, h, w]``, in turn: ``[3 B, D, h, w]``."""
    return later.unflatten(1, (AFTER_FIRST, -1)).flatten(0, 1)


def mean_of_nearest() -> Tensor:
    """``[3, 3, 3, 3]``: sub-images 1 to 3 as means of the nearest pixels of those before, as weights of a 3x3."""
    weight = torch.zeros(AFTER_FIRST, AFTER_FIRST, 3, 3)
    for group, (row, column) in enumerate(ORDER[1:]):
        distance = torch.full_like(weight[group], torch.inf)
        for before, (y, x) in enumerate(ORDER[: group + 1]):
            offset = 2 * torch.arange(-1, 2)
            distance[before] = (offset + y - row)[:, None].abs() + (offset + x - column).abs()
        nearest = distance == distance.min()
        weight[group] = nearest / nearest.sum()
    return weight


# Both copy once, pixel by pixel with all its channels: fast where these are neighbours in memory, as they are in what
# convolutions make. Slices with steps would have gradients that fill the whole image with zeros, four times.


def to_depth(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, 4 C, H/2, W/2]``: the four sub-images one after another, in their order."""
    squares = x.movedim(1, -1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # B h 2 w 2 C
    rows = [row.unbind(3) for row in squares.unbind(2)]
    return torch.stack([rows[row][column] for row, column in ORDER], 3).flatten(3).movedim(-1, 1)


def to_space(x: Tensor) -> Tensor:
    """The inverse of ``to_depth``."""
    parts = dict(zip(ORDER, x.movedim(1, -1).unflatten(3, (4, -1)).unbind(3), strict=True))  # each B h w C
    rows = [torch.stack([parts[row, column] for column in (0, 1)], 3).flatten(2, 3) for row in (0, 1)]
    return torch.stack(rows, 2).flatten(1, 2).movedim(-1, 1)


LIKELIHOODS["subpixel_mixture"] = SubPixelMixture
