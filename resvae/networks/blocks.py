"""Residual units: basic and bottleneck, in every order, down and up."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resvae.errors import ResvaeError
from resvae.networks.residual import Merge, make_merge

Order = Literal["original", "norm_after_add", "relu_before_add", "relu_only_pre", "full_pre"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class BlockConfig:
    """What a residual block is made of.

    Args:
        kind: ``bottleneck`` (1x1, 3x3, 1x1) or ``basic`` (3x3, 3x3) (He 2015, figure 5).
        order: of normalisation and activation (He 2016, figure 4): a ``original``, b ``norm_after_add``,
            c ``relu_before_add``, d ``relu_only_pre``, e ``full_pre``.
        norm: ``none``, ``batch`` or ``group`` (8 channels a group).
        activation: ``relu``, ``silu`` or ``gelu``.
        shortcut: He's A ``zero_pad``, B ``projection`` where the shape changes, C ``projection_everywhere``.
        merge: of shortcut and branch: ``sum``, ``none`` (a plain network), ``highway``, or a callable.
        ratio: a bottleneck's inner width over its outer.
        residual_scale: factor on the initial weights of each branch's last layer; None: 1/sqrt(number of blocks), so
            that the output's variance does not grow with depth (Child 2021, section 3).
        upsample: ``transposed`` convolutions or ``nearest`` neighbours.
        stride_on: the ``spatial`` 3x3 convolution, or the ``first`` 1x1 (the article).
        conv_bias: None: where there is no normalisation.
        norm_eps, norm_momentum: of batch normalisation.
    """

    kind: Literal["bottleneck", "basic"] = "bottleneck"
    order: Order = "full_pre"
    norm: Literal["none", "batch", "group"] = "none"
    activation: Literal["relu", "silu", "gelu"] = "silu"
    shortcut: Literal["zero_pad", "projection", "projection_everywhere"] = "projection"
    merge: Merge = "sum"
    ratio: float = 0.25
    residual_scale: float | None = None
    upsample: Literal["transposed", "nearest"] = "transposed"
    stride_on: Literal["spatial", "first"] = "spatial"
    conv_bias: bool | None = None
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def make_norm(self, channels: int) -> nn.Module:
        """The normalisation of ``channels``; nothing where there is none."""
        if self.norm == "batch":
            return nn.BatchNorm2d(channels, self.norm_eps, self.norm_momentum)
        if self.norm == "group":
            return nn.GroupNorm(max(1, channels // 8), channels, self.norm_eps)
        return nn.Identity()

    def make_activation(self) -> nn.Module:
        """A new activation."""
        return ACTIVATIONS[self.activation]()

    def scale(self, num_blocks: int) -> float:
        """The initial scale of each branch in a network of ``num_blocks``."""
        return num_blocks**-0.5 if self.residual_scale is None else self.residual_scale

    @property
    def pre_activation(self) -> bool:
        """Whether blocks begin with their activation, so that the network must end with one."""
        return self.order in ("relu_only_pre", "full_pre")

    @property
    def bias(self) -> bool:
        """Whether convolutions have a bias."""
        return self.norm == "none" if self.conv_bias is None else self.conv_bias


class ResidualBlock(nn.Module):
    """y = after(merge(shortcut(x), branch(x))): ``[B, Cin, H, W]`` to ``[B, C, H/stride, W/stride]``, or up.

    ::

        x -> before -+-> branch (convolutions) -> merge -> after -> y
                     +-> shortcut ------------------^

    In pre-activation orders ``before`` is the shared normalisation and activation of blocks whose shortcut projects
    or that come right after the stem (He 2016, section 4.1 and appendix); elsewhere it is part of the branch.

    Args:
        in_channels, channels: in and out.
        stride: resolution divided by it, or multiplied when ``up``.
        up: whether the block up-samples.
        config: see there.
        residual_scale: factor on the initial weights of the branch's last layer.
        first: whether it comes right after the stem.
    """

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
        changes = in_channels != channels or stride != 1
        projects = config.shortcut == "projection_everywhere" or (config.shortcut == "projection" and changes)
        layers = _branch(in_channels, channels, stride, up, config)
        shared = config.order == "full_pre" and (first or projects)
        # normalisation and activation: the first two layers of a fully pre-activated branch
        self.before = nn.Sequential(*layers[:2]) if shared else nn.Identity()
        self.branch = nn.Sequential(*layers[2:] if shared else layers)
        self.shortcut = _shortcut(in_channels, channels, stride, up, config, projects)
        self.merge = make_merge(config.merge, channels)
        self.after = _after(channels, config)
        _initialise(self.branch, 1.0 if config.merge == "none" else residual_scale)
        _initialise(self.shortcut, 1.0, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.merge(self.shortcut(x), self.branch(x)))


class ZeroPad(nn.Module):
    """He's shortcut A: every ``stride``-th place (nearest neighbours when up), new channels zero, no weights."""

    def __init__(self, in_channels: int, channels: int, stride: int, up: bool):
        super().__init__()
        self.more, self.stride, self.up = channels - in_channels, stride, up

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.interpolate(x, scale_factor=self.stride) if self.up else x[..., :: self.stride, :: self.stride]
        if self.more < 0:  # a narrowing decoder keeps the first channels
            return x[:, : self.more]
        return F.pad(x, (0, 0, 0, 0, 0, self.more))


def _branch(in_channels: int, channels: int, stride: int, up: bool, config: BlockConfig) -> list[nn.Module]:
    """The convolutions, with normalisation and activation in the config's order."""
    inner = max(1, round(channels * config.ratio)) if config.kind == "bottleneck" else channels
    if config.kind == "bottleneck":
        shapes = [(in_channels, inner, 1), (inner, inner, 3), (inner, channels, 1)]
        strided = 1 if config.stride_on == "spatial" else 0
    else:
        shapes = [(in_channels, channels, 3), (channels, channels, 3)]
        strided = 0
    layers: list[nn.Module] = []
    for i, (a, b, kernel) in enumerate(shapes):
        conv = _convolution(a, b, kernel, stride if i == strided else 1, up, config)
        last = i == len(shapes) - 1
        if config.order == "full_pre":
            layers += [config.make_norm(a), config.make_activation(), conv]
        elif config.order == "relu_only_pre":
            layers += [config.make_activation(), conv, config.make_norm(b)]
        elif last and config.order == "original":
            layers += [conv, config.make_norm(b)]
        elif last and config.order == "norm_after_add":
            layers += [conv]
        else:
            layers += [conv, config.make_norm(b), config.make_activation()]
    return layers


def _after(channels: int, config: BlockConfig) -> nn.Module:
    if config.order == "original":
        return config.make_activation()
    if config.order == "norm_after_add":
        return nn.Sequential(config.make_norm(channels), config.make_activation())
    return nn.Identity()


def _shortcut(in_channels: int, channels: int, stride: int, up: bool, config: BlockConfig, projects: bool) -> nn.Module:
    if projects:
        norm = nn.Identity() if config.pre_activation else config.make_norm(channels)
        return nn.Sequential(_convolution(in_channels, channels, 1, stride, up, config), norm)
    if in_channels != channels or stride != 1:
        return ZeroPad(in_channels, channels, stride, up)
    return nn.Identity()


def _convolution(a: int, b: int, kernel: int, stride: int, up: bool, config: BlockConfig) -> nn.Module:
    """A convolution that keeps the size, divides it by ``stride``, or multiplies it when ``up``."""
    bias = config.bias
    if stride == 1:
        # the article transposes the 1x1 convolutions of a unit that starts a stage at stride 1 too: the same function
        return nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=bias)
    if not up:
        return nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, bias=bias)
    if config.upsample == "nearest":
        return nn.Sequential(nn.Upsample(scale_factor=stride), nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=bias))
    if config.stride_on == "first":  # Keras' transposed 1x1: every stride-th place, zeros (and the bias) between
        return nn.ConvTranspose2d(a, b, kernel, stride, padding=kernel // 2, output_padding=stride - 1, bias=bias)
    # Kernels that the stride divides touch every output place equally often: no checkerboard from the start.
    size = stride if kernel == 1 else 2 * stride
    return nn.ConvTranspose2d(a, b, size, stride, padding=(size - stride) // 2, bias=bias)


def _initialise(module: nn.Module, last_scale: float, gain: float = 2.0) -> None:
    """He-normal convolutions (variance ``gain`` / fan-in), zero biases; the last layer times ``last_scale``."""
    last = None
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            size = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels
            if isinstance(layer, nn.ConvTranspose2d):  # each output place sees a stride-th of the kernel a dimension
                size = max(layer.in_channels, size // (layer.stride[0] * layer.stride[1]))
            nn.init.normal_(layer.weight, std=(gain / size) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            last = layer
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            last = layer
    if isinstance(last, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.GroupNorm):
        last.weight.data.mul_(last_scale)


def check_stages(name: str, image_shape: tuple[int, int, int], **lengths: tuple[int, ...]) -> None:
    """One positive number a stage in each tuple, or ``ResvaeError``."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ResvaeError(f"{name}: image_shape {tuple(image_shape)} is not allowed; give (channels, height, width)")
    if len({len(values) for values in lengths.values()}) != 1:
        said = ", ".join(f"{field} {tuple(values)}" for field, values in lengths.items())
        raise ResvaeError(f"{name}: {said} must have one number a stage each")
    for field, values in lengths.items():
        if not values or min(values) < 1:
            raise ResvaeError(f"{name}: {field} {tuple(values)} is not allowed; each at least 1")
