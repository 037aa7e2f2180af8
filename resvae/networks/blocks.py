"""Residual blocks: basic and bottleneck, in every order, down-sampling and up-sampling."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resvae.errors import ResvaeError, whole_from
from resvae.networks.residual import Merge, check_merge, make_merge

Order = Literal["original", "norm_after_add", "relu_before_add", "relu_only_pre", "full_pre"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
FEW = 16  # channels, see ``StridedPointwise``
SECOND_MOMENT = {"relu": 0.5, "silu": 0.3558, "gelu": 0.4252}  # E[f(u)^2] for standard normal u


@dataclass(frozen=True)
class BlockConfig:
    """The choices that define a residual block.

    Args:
        kind: ``bottleneck`` (1x1, 3x3, 1x1) or ``basic`` (3x3, 3x3) (He 2015, figure 5).
        order: the order of normalisation and activation (He 2016, figure 4): a ``original``, b ``norm_after_add``,
            c ``relu_before_add``, d ``relu_only_pre``, e ``full_pre``.
        norm: ``none``, ``batch`` or ``group`` (8 channels per group; one group where 8 does not divide them).
        activation: ``relu``, ``silu`` or ``gelu``.
        shortcut: He's A ``zero_pad``, B ``projection`` where the shape changes, C ``projection_everywhere``.
        merge: how shortcut and branch are merged: ``sum``, ``product``, ``none`` (a plain network), He's ``half``,
            ``highway`` and ``shortcut_gate`` (He 2016, table 1), or a callable.
        gate_bias: the initial b of ``highway`` and ``shortcut_gate``; see ``networks.gate_bias``.
        ratio: the inner width of a bottleneck divided by its outer width.
        min_inner: the least inner width of a bottleneck.
        residual_scale: factor on the initial weights of the last layer of each branch; None: 1/sqrt(number of blocks),
            so that the variance of the output does not grow with depth (Child 2021, section 3).
        upsample: ``transposed`` convolutions or ``nearest`` neighbours.
        stride_on: the strided convolution: the ``spatial`` 3x3, or the ``first`` 1x1 as in the article.
        conv_bias: whether convolutions have a bias; None: only where there is no normalisation.
        norm_eps: the eps of batch and group normalisation.
        norm_momentum: the momentum of batch normalisation.

    Raises:
        ResvaeError: an unknown name, a ratio that is not positive, a least width below 1.
    """

    kind: Literal["bottleneck", "basic"] = "bottleneck"
    order: Order = "full_pre"
    norm: Literal["none", "batch", "group"] = "none"
    activation: Literal["relu", "silu", "gelu"] = "silu"
    shortcut: Literal["zero_pad", "projection", "projection_everywhere"] = "projection"
    merge: Merge = "sum"
    gate_bias: float = -1.0
    ratio: float = 0.25
    residual_scale: float | None = None
    upsample: Literal["transposed", "nearest"] = "transposed"
    stride_on: Literal["spatial", "first"] = "spatial"
    conv_bias: bool | None = None
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    min_inner: int = 1

    def __post_init__(self) -> None:
        for field, hint in get_type_hints(type(self)).items():
            value = getattr(self, field)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ResvaeError(f"block: {field} {value!r} is not allowed; one of {', '.join(get_args(hint))}")
        check_merge(self.merge)
        if not self.ratio > 0:
            raise ResvaeError(f"block: ratio {self.ratio} is not allowed; it must be above 0")
        whole_from(1, **{"block.min_inner": self.min_inner})

    def make_norm(self, channels: int) -> nn.Module:
        """A new normalisation of ``channels`` channels, or the identity for ``none``."""
        if self.norm == "batch":
            return nn.BatchNorm2d(channels, self.norm_eps, self.norm_momentum)
        if self.norm == "group":
            return nn.GroupNorm(1 if channels % 8 else channels // 8, channels, self.norm_eps)
        return nn.Identity()

    def make_activation(self) -> nn.Module:
        """A new activation."""
        return ACTIVATIONS[self.activation]()

    def scale(self, num_blocks: int) -> float:
        """The factor on the initial weights of each branch in a network of ``num_blocks`` blocks."""
        return num_blocks**-0.5 if self.residual_scale is None else self.residual_scale

    @property
    def pre_activation(self) -> bool:
        """Whether blocks begin with an activation. Such a network must end with one."""
        return self.order in ("relu_only_pre", "full_pre")

    @property
    def bias(self) -> bool:
        """Whether convolutions have a bias."""
        return self.norm == "none" if self.conv_bias is None else self.conv_bias


def check_block(block: BlockConfig) -> None:
    """Raise ``ResvaeError`` for what is no ``BlockConfig``."""
    if not isinstance(block, BlockConfig):
        raise ResvaeError(f"block: {block!r} is not allowed; a BlockConfig, such as BlockConfig(kind='basic')")


class ResidualBlock(nn.Module):
    """y = after(merge(shortcut(b), branch(b))), b = before(x): ``[B, Cin, H, W]`` to ``[B, C, H/stride, W/stride]``.

    ::

        x -> before -+-> branch (convolutions) -> merge -> after -> y
                     +-> shortcut ------------------^

    With ``up`` the result is ``[B, C, H*stride, W*stride]``. In pre-activation orders, ``before`` holds the first
    normalisation and activation in blocks with a projection and in the ``first`` block, which follows the stem (He
    2016, appendix). In all other blocks it is empty. A ``plain`` block (``merge="none"``) has no shortcut. The initial
    weights of the branch's last layer are multiplied by ``residual_scale``.
    """

    hidden_layers = ("branch", "shortcut")  # whose convolutions lie between a stem and the heads

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        up: bool = False,
        config: BlockConfig = BlockConfig(),
        residual_scale: float = 1.0,
        first: bool = False,
    ):
        super().__init__()
        self.in_channels, self.channels, self.stride, self.up = in_channels, channels, stride, up
        self.plain = plain = config.merge == "none"
        changes = not plain and (in_channels != channels or stride != 1)
        projects = config.shortcut == "projection" and changes
        projects = projects or (config.shortcut == "projection_everywhere" and not plain)
        layers = _branch(in_channels, channels, stride, up, config)
        # the number of layers before the first convolution: normalisation and activation, or the activation alone
        leading = {"full_pre": 2, "relu_only_pre": 1}.get(config.order, 0)
        shared = leading if projects or (first and not plain) else 0
        self.before = nn.Sequential(*layers[:shared])
        self.branch = nn.Sequential(*layers[shared:])
        self.shortcut = ZeroPad(in_channels, channels, stride, up) if changes else nn.Identity()
        if projects:
            norm = nn.Identity() if config.pre_activation else config.make_norm(channels)
            self.shortcut = nn.Sequential(_convolution(in_channels, channels, 1, stride, up, config), norm)
        self.merge = make_merge(config.merge, channels, config.gate_bias)
        self.after = nn.Identity()
        if config.order == "original":
            self.after = config.make_activation()
        elif config.order == "norm_after_add":
            self.after = nn.Sequential(config.make_norm(channels), config.make_activation())
        gain = 1 / SECOND_MOMENT[config.activation]  # a convolution keeps the size of an activation's output
        _initialise(self.branch, gain, 1.0 if plain else residual_scale)
        _initialise(self.shortcut, gain)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, in_channels, H, W]`` to ``[B, channels, h, w]``."""
        x = self.before(x)
        return self.after(self.merge(self.shortcut(x), self.branch(x)))


class ZeroPad(nn.Module):
    """He's shortcut A, without weights: every ``stride``-th pixel (with ``up`` nearest neighbours), new channels 0."""

    def __init__(self, in_channels: int, channels: int, stride: int, up: bool):
        super().__init__()
        self.more, self.stride, self.up = channels - in_channels, stride, up

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]`` strided or repeated, with channels of zeros appended."""
        if self.stride > 1:
            x = F.interpolate(x, scale_factor=self.stride) if self.up else x[..., :: self.stride, :: self.stride]
        if self.more < 0:  # a narrowing decoder keeps the first channels
            return x[:, : self.more]
        return F.pad(x, (0, 0, 0, 0, 0, self.more))


def _branch(in_channels: int, channels: int, stride: int, up: bool, config: BlockConfig) -> list[nn.Module]:
    """The convolutions of a branch, with normalisation and activation in the order of ``config``."""
    shapes, strided = [(in_channels, channels, 3), (channels, channels, 3)], 0
    if config.kind == "bottleneck":
        inner = max(config.min_inner, round(channels * config.ratio))
        shapes = [(in_channels, inner, 1), (inner, inner, 3), (inner, channels, 1)]
        strided = 1 if config.stride_on == "spatial" else 0
    layers: list[nn.Module] = []
    for i, (a, b, kernel) in enumerate(shapes):
        conv = _convolution(a, b, kernel, stride if i == strided else 1, up, config)
        last = i == len(shapes) - 1
        if config.order == "full_pre":
            layers += [config.make_norm(a), config.make_activation(), conv]
        elif config.order == "relu_only_pre":
            layers += [config.make_activation(), conv, config.make_norm(b)]
        else:  # the last layers of two orders come after the merge
            after = {"original": 1, "norm_after_add": 2}.get(config.order, 0) if last else 0
            layers += [conv, config.make_norm(b), config.make_activation()][: 3 - after]
    return layers


def _convolution(a: int, b: int, kernel: int, stride: int, up: bool, config: BlockConfig) -> nn.Module:
    """A convolution that keeps the size, divides it by ``stride``, or multiplies it by ``stride`` with ``up``."""
    bias = config.bias
    if stride == 1:
        # at stride 1 the article transposes 1x1 convolutions too, which is the same function
        return nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=bias)
    if not up:
        if 1 < kernel <= stride:  # so that it sees every pixel
            return nn.Conv2d(a, b, stride, stride, bias=bias)
        if kernel == 1 and a < FEW:
            return StridedPointwise(a, b, 1, stride, bias=bias)
        return nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, bias=bias)
    if config.upsample == "nearest":
        return nn.Sequential(nn.Upsample(scale_factor=stride), nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=bias))
    if config.stride_on == "first" and kernel == 1 and b < FEW:
        return TransposedPointwise(a, b, 1, stride, output_padding=stride - 1, bias=bias)
    if config.stride_on == "first":  # a transposed 1x1 as in Keras: values at every stride-th pixel, the bias elsewhere
        return nn.ConvTranspose2d(a, b, kernel, stride, padding=kernel // 2, output_padding=stride - 1, bias=bias)
    # The stride divides the kernel size, so every output pixel gets equally many contributions: no checkerboard.
    if kernel == 1:
        return nn.ConvTranspose2d(a, b, stride, stride, bias=bias)
    padding, odd = (stride + 1) // 2, stride % 2
    return nn.ConvTranspose2d(a, b, 2 * stride, stride, padding=padding, output_padding=odd, bias=bias)


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride, of fewer than ``FEW`` channels: every ``stride``-th pixel, then stride 1.

    The same function. On CPUs the gradient of the other's weights is written past its memory, which ends the process
    or corrupts other tensors (torch 2.14, oneDNN's issue 6035).
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, out_channels, ceil(H/stride), ceil(W/stride)]``."""
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


class TransposedPointwise(nn.ConvTranspose2d):
    """A transposed 1x1 convolution with a stride, to fewer than ``FEW`` channels; see ``StridedPointwise``."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``[B, C, H, W]`` to ``[B, out_channels, H*stride, W*stride]``: zeros and the bias between the values."""
        rows, columns = self.stride
        values = F.conv_transpose2d(input, self.weight)[..., None, :, None]  # [B, C, H, 1, W, 1]
        spread = F.pad(values, (0, columns - 1, 0, 0, 0, rows - 1)).flatten(4).flatten(2, 3)
        return spread if self.bias is None else spread + self.bias[:, None, None]


def _initialise(module: nn.Module, gain: float, last_scale: float = 1.0) -> None:
    """He-normal convolutions (variance ``gain`` / fan-in), zero biases, the last layer multiplied by ``last_scale``."""
    last: nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.GroupNorm | None = None
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            spreads = isinstance(layer, nn.ConvTranspose2d) and kernel >= stride
            inner = kernel - stride + 1 if spreads else kernel
            weight = torch.randn(*layer.weight.shape[:2], inner, inner) * (gain / (inner**2 * layer.in_channels)) ** 0.5
            if spreads:
                # The start equals nearest neighbours followed by a convolution of size ``inner``. Independent weights
                # would start as a checkerboard, which training would have to remove first.
                box = torch.ones(1, 1, stride, stride)
                weight = F.conv2d(weight.flatten(0, 1)[:, None], box, padding=stride - 1).view_as(layer.weight)
            layer.weight.data.copy_(weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            last = layer
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            last = layer
    if last is not None:
        last.weight.data.mul_(last_scale)
