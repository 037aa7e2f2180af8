"""Exact distributions over the 256 values k/255 of a pixel (Salimans et al. 2017, PixelCNN++, section 2.1).

Locations and scales are those of the continuous logistic on [-1, 1]; values are in [0, 1], as everywhere.
"""

import math
from collections.abc import Sequence
from typing import Any

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
        return _LogMass.apply(*torch.broadcast_tensors(_level(value), self.loc, self.log_scale))[0]

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
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        *more, batch, _, height, width = value.shape
        num, k = batch * height * width, self.loc.shape[1]
        level = _level(value).movedim(-3, -1).reshape(*more, num, -1)  # [..., N, C]
        logits = self.logits.expand(batch, -1, -1, -1).permute(0, 2, 3, 1).reshape(num, k)
        others = [p.expand(batch, *p.shape[1:]) for p in (self.loc, self.log_scale, self.coefficients)]
        # [N, C or C (C - 1) / 2, K]
        others = [p.permute(0, 3, 4, 2, 1).reshape(num, p.shape[2], k) for p in others]
        parameters = [p.expand(*more, *p.shape) for p in (logits, *others)]
        if torch.is_grad_enabled():
            log_prob = _MixtureLogProb.apply(level, *parameters)[0]
        else:
            log_prob = _mixture_log_prob(level, *parameters, derivatives=False)[0]
        return log_prob.unflatten(-1, (batch, -1)).sum(-1)

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
        centre = torch.addcmul(centre, coefficients[..., _pair(c, j), :, :], x[j])
    return centre


def _level(value: Tensor) -> Tensor:
    return (value * 255).round().clamp(0, 255)


def _log_mass(level: Tensor, loc: Tensor, log_scale: Tensor, derivatives: bool = True) -> tuple[Tensor, ...]:
    """log of sigmoid(b) - sigmoid(a), a and b the standardised edges of the bin ``level``; no approximation.

    log(sigmoid(b) - sigmoid(a)) = logsigmoid(b) + logsigmoid(-a) + log(1 - e^-(b - a)). Edges are level -+ 1/2, exact
    in float32 and the same number for neighbouring bins, so that the 256 masses telescope to 1. With it come, if asked
    for, its ``derivatives`` by ``loc`` and ``log_scale``, which need no further exponentials.
    """
    centre = loc * HALF + HALF
    inverse = torch.exp(-math.log(HALF) - log_scale)  # 1 / scale in levels, and b - a
    # The outermost bins reach to infinity; a finite number keeps 0 * infinity out of the gradient.
    above = (torch.where(level < 255, level + 0.5, 1e30) - centre) * inverse  # b, and -a
    below = (centre - torch.where(level > 0, level - 0.5, -1e30)) * inverse
    inner = ((level > 0) & (level < 255)).to(loc.dtype)
    width = -torch.expm1(-inverse)
    # logsigmoid(t) = min(t, 0) + log(sigmoid(|t|)), and sigmoid(|t|) >= 1/2: one logarithm of the product is exact.
    p_above, p_below = above.sigmoid(), below.sigmoid()
    q_above, q_below = 1 - p_above, 1 - p_below
    product = torch.maximum(p_above, q_above) * torch.maximum(p_below, q_below) * (width * inner + (1 - inner))
    log_mass = product.log() + above.clamp(max=0) + below.clamp(max=0)
    if not derivatives:
        return (log_mass,)
    by_loc = (q_below - q_above) * inverse * HALF
    by_log_scale = -(above * q_above + below * q_below + inner * inverse * (1 - width) / width)
    return log_mass, by_loc, by_log_scale


class _LogMass(torch.autograd.Function):
    """``_log_mass`` of ``level``, ``loc`` and ``log_scale``, all of one shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(level: Tensor, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
        return _log_mass(level, loc, log_scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        _keep(ctx, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *(gradient * by for by in ctx.saved_tensors)


def _mixture_log_prob(
    level: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, coefficients: Tensor, derivatives: bool = True
) -> tuple[Tensor, ...]:
    """Of pixels ``[..., N, C]`` given mixtures: ``logits [..., N, K]``, others ``[..., N, C or C (C - 1) / 2, K]``.

    With it come, if asked for, its ``derivatives`` by the four parameters. Components lie side by side in memory: then
    compiled loops run over them with vectors, and sum in registers.
    """
    levels = level.unsqueeze(-1).unbind(-2)  # of each channel, [..., N, 1]
    x = [each / HALF - 1 for each in levels]
    locs, log_scales, factors = loc.unbind(-2), log_scale.unbind(-2), coefficients.unbind(-2)
    joint, by = logits, []
    for c in range(len(x)):
        centre = locs[c]
        for j in range(c):
            centre = torch.addcmul(centre, factors[_pair(c, j)], x[j])
        mass, *rest = _log_mass(levels[c], centre, log_scales[c], derivatives)
        joint = joint + mass
        by.append(rest)
    top, most = joint.amax(-1, keepdim=True), logits.amax(-1, keepdim=True)
    posterior, prior = (joint - top).exp(), (logits - most).exp()
    total, whole = posterior.sum(-1, keepdim=True), prior.sum(-1, keepdim=True)
    log_prob = (top + total.log() - most - whole.log()).squeeze(-1)
    if not derivatives:
        return (log_prob,)
    posterior = posterior / total
    by_loc, by_log_scale = ([posterior * each for each in several] for several in zip(*by, strict=True))
    by_coefficients = [by_loc[c] * x[j] for c in range(len(x)) for j in range(c)]
    return (
        log_prob,
        posterior - prior / whole,
        torch.stack(by_loc, -2),
        torch.stack(by_log_scale, -2),
        torch.stack(by_coefficients, -2) if by_coefficients else torch.zeros_like(coefficients),
    )


class _MixtureLogProb(torch.autograd.Function):
    """``_mixture_log_prob``, whose gradient is computed at once, with what the value needs anyway."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        level: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, ...]:
        return _mixture_log_prob(level, logits, loc, log_scale, coefficients)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        _keep(ctx, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        by_logits, *others = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1)
        return None, gradient * by_logits, *(gradient.unsqueeze(-1) * by for by in others)


def _keep(ctx: Any, output: tuple[Tensor, ...]) -> None:
    """Keep the derivatives, all but the first of the outputs, for the backward pass."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _pair(c: int, j: int) -> int:
    """The place of (c, j) in (1, 0), (2, 0), (2, 1), ..."""
    return c * (c - 1) // 2 + j


def _draw(loc: Tensor, log_scale: Tensor) -> Tensor:
    noise = torch.rand_like(loc).logit(eps=2**-24)
    return torch.addcmul(loc, noise, log_scale.exp()).mul(HALF).add(HALF).round().clamp(0, 255)


def _mean_level(loc: Tensor, log_scale: Tensor) -> Tensor:
    # The integral of P(level > t) over 0..255; rounding differs from it as the midpoint rule does.
    scale = log_scale.exp() * HALF
    centre = loc * HALF + HALF
    return (scale * (F.softplus(centre / scale) - F.softplus((centre - 255) / scale))).clamp(0, 255)
