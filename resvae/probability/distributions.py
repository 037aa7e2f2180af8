"""Exact distributions over the 256 values k/255 of a pixel (Salimans et al. 2017, PixelCNN++, section 2.1).

Locations and scales are those of the continuous logistic on [-1, 1]; values are in [0, 1], as everywhere.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.types import _size

from resvae.errors import ResvaeError

# Under e^-7 a bin is 9 scales wide; over e^7 the two edge bins hold all but 1/1000. Between them float32 is exact
# enough, and no bin's log-probability overflows.
LOG_SCALE_RANGE = (-7.0, 7.0)
HALF = 127.5  # levels in one unit of [-1, 1]


class DiscretizedLogistic(Distribution):
    """A logistic, rounded to the nearest k/255 and clamped to [0, 1]; elementwise, of the parameters' shape.

    Its centre ``loc`` and its scale are on [-1, 1]; ``log_scale`` is clamped to [-7, 7].
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012  # pyright: ignore
    support = constraints.unit_interval  # pyright: ignore

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None):
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale.clamp(*LOG_SCALE_RANGE))
        super().__init__(self.loc.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each value, nats; a value off the grid counts as its nearest k/255."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_mass(_level(value), self.loc, self.log_scale)

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Exact samples on the grid k/255, ``[*sample_shape, *batch_shape]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return _draw(self.loc.expand(shape), self.log_scale) / 255

    @property
    def mean(self) -> Tensor:
        """Mean in [0, 1], within half a grey level (where the scale is under a grey level; else much closer)."""
        return _mean_level(self.loc, self.log_scale) / 255


class DiscretizedLogisticMixture(Distribution):
    """A mixture of K discretised logistics per pixel, its channels autoregressive within each component.

    In component k channel c is centred at ``loc_c + sum_{j<c} coefficient_cj x_j``, x on [-1, 1] (ibid. eq. 3).
    Batch shape ``[B]``, event shape ``[C, H, W]``. The components' ``logits`` are ``[B, K, H, W]``; ``loc``, on
    [-1, 1], and ``log_scale``, clamped to [-7, 7], are ``[B, K, C, H, W]``; the ``coefficients``, in the order (1, 0),
    (2, 0), (2, 1), ..., are ``[B, K, C (C - 1) / 2, H, W]``. Other shapes raise ``ResvaeError``.
    """

    arg_constraints = dict.fromkeys(("logits", "loc", "log_scale", "coefficients"), constraints.real)  # pyright: ignore
    support = constraints.independent(constraints.unit_interval, 3)  # pyright: ignore

    def __init__(
        self, logits: Tensor, loc: Tensor, log_scale: Tensor, coefficients: Tensor, validate_args: bool | None = None
    ):
        batch, k, c, h, w = loc.shape
        expected = ((batch, k, h, w), (batch, k, c, h, w), (batch, k, c * (c - 1) // 2, h, w))
        actual = (tuple(logits.shape), tuple(log_scale.shape), tuple(coefficients.shape))
        if actual != expected:
            raise ResvaeError(f"logits, log_scale, coefficients: shapes {actual} do not fit loc; {expected} do")
        self.logits, self.loc, self.coefficients = logits, loc, coefficients
        self.log_scale = log_scale.clamp(*LOG_SCALE_RANGE)
        super().__init__(loc.shape[:1], loc.shape[2:], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of images ``[..., B, C, H, W]``, nats, ``[..., B]``."""
        if self._validate_args:
            self._validate_sample(value)
        level = _level(value).unsqueeze(-4)  # B 1 C H W
        x = (level / HALF - 1).unbind(-3)
        loc = [centre_given(self.loc, self.coefficients, c, x) for c in range(len(x))]
        loc = torch.stack(torch.broadcast_tensors(*loc), -3)  # B K C H W
        joint = self.logits.log_softmax(-3) + _log_mass(level, loc, self.log_scale).sum(-3)  # B K H W
        return joint.logsumexp(-3).sum((-2, -1))

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Exact samples on the grid k/255, ``[*sample_shape, B, C, H, W]``."""
        components = Categorical(logits=self.logits.movedim(-3, -1), validate_args=False)
        component = components.sample(torch.Size(sample_shape))

        def chosen(parameter: Tensor) -> Tensor:  # B K D H W -> ... B 1 D H W
            parameter = parameter.expand(*sample_shape, *parameter.shape)
            index = component[..., None, None, :, :].expand(*parameter.shape[:-4], 1, *parameter.shape[-3:])
            return parameter.gather(-4, index)

        loc, log_scale, coefficients = map(chosen, (self.loc, self.log_scale, self.coefficients))
        levels: list[Tensor] = []
        for c in range(self.event_shape[0]):
            x = [level / HALF - 1 for level in levels]
            levels.append(_draw(centre_given(loc, coefficients, c, x), log_scale[..., c, :, :]))
        return torch.stack(levels, -3).squeeze(-4) / 255

    @property
    def mean(self) -> Tensor:
        """Mean in [0, 1], ``[B, C, H, W]``; a channel's clamping is not passed on to the channels after it."""
        x: list[Tensor] = []
        for c in range(self.event_shape[0]):
            centre = centre_given(self.loc, self.coefficients, c, x)
            x.append(_mean_level(centre, self.log_scale[..., c, :, :]) / HALF - 1)
        weights = self.logits.softmax(-3)
        return (torch.stack([(weights * x_c).sum(-3) for x_c in x], -3) + 1) / 2


def centre_given(loc: Tensor, coefficients: Tensor, c: int, x: Sequence[Tensor]) -> Tensor:
    """Channel c's centre in each component, given the channels before it on [-1, 1]."""
    centre = loc[..., c, :, :]
    for j in range(c):
        centre = torch.addcmul(centre, coefficients[..., c * (c - 1) // 2 + j, :, :], x[j])
    return centre


def _level(value: Tensor) -> Tensor:
    return (value * 255).round().clamp(0, 255)


def _log_mass(level: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """log of sigmoid(b) - sigmoid(a), a and b the standardised edges of the bin ``level``; no approximation.

    log(sigmoid(b) - sigmoid(a)) = logsigmoid(b) + logsigmoid(-a) + log(1 - e^-(b - a)). Edges are level -+ 1/2, exact
    in float32 and the same number for neighbouring bins, so that the 256 masses telescope to 1.
    """
    centre = loc * HALF + HALF
    inverse = torch.exp(-math.log(HALF) - log_scale)  # 1 / scale in levels, and b - a
    # The outermost bins reach to infinity; a finite number keeps 0 * infinity out of the gradient.
    lower = torch.where(level > 0, level - 0.5, -1e30)
    upper = torch.where(level < 255, level + 0.5, 1e30)
    inner = ((level > 0) & (level < 255)).to(loc.dtype)
    log_width = torch.log(-torch.expm1(-inverse))
    return inner * log_width - F.softplus((lower - centre) * inverse) - F.softplus((centre - upper) * inverse)


def _draw(loc: Tensor, log_scale: Tensor) -> Tensor:
    noise = torch.rand_like(loc).logit(eps=2**-24)
    return torch.addcmul(loc, noise, log_scale.exp()).mul(HALF).add(HALF).round().clamp(0, 255)


def _mean_level(loc: Tensor, log_scale: Tensor) -> Tensor:
    # The integral of P(level > t) over 0..255; rounding differs from it as the midpoint rule does.
    scale = log_scale.exp() * HALF
    centre = loc * HALF + HALF
    return (scale * (F.softplus(centre / scale) - F.softplus((centre - 255) / scale))).clamp(0, 255)
