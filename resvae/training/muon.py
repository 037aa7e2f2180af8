"""Muon: orthogonal updates for hidden convolutions, AdamW for all other parameters."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from resvae.errors import ResvaeError
from resvae.networks.units import hidden_convolutions
from resvae.training.sharding import gathered, is_part, local, part_of

STEPS = 5  # of the Newton-Schulz iteration
A, B, C = 3.4445, -4.7750, 2.0315  # its coefficients (Jordan 2024)
FUSED = ("cpu", "cuda")  # where torch has AdamW in one kernel


class Hidden(NamedTuple):
    """What the weight of a hidden convolution is: a matrix of its outputs by all else, one per group."""

    groups: int
    transposed: bool

    def view(self, weight: Tensor, like: Tensor) -> Tensor:
        """A view ``[groups, outputs, ...]`` of 5 dimensions; of a transposed convolution ``[groups, ..., outputs]``.

        The order of the other three does not matter to Muon. It is that in which ``like`` lies in memory, and of a
        transposed convolution that of channels-last weights, so that ``matrices`` need not copy.
        """
        parts = weight.unflatten(0, (self.groups, -1))
        if self.transposed:  # a transposed convolution has its inputs in front
            return parts.permute(0, 1, 3, 4, 2)
        strides = like.stride()
        return parts.permute(0, 1, *(dim + 1 for dim in sorted((1, 2, 3), key=lambda dim: -strides[dim])))

    def matrices(self, view: Tensor) -> Tensor:
        """``[groups, outputs, all else]`` of a ``view``; of a transposed convolution its transpose."""
        return view.flatten(1, 3) if self.transposed else view.flatten(2)


def mark_hidden(model: nn.Module) -> None:
    """Note on the weights of the hidden convolutions that they are; ``Muon`` reads it."""
    for layer in hidden_convolutions(model):
        layer.weight.hidden = Hidden(layer.groups, isinstance(layer, nn.ConvTranspose2d))  # pyright: ignore


def orthogonalised(matrices: Sequence[Tensor], scale: Callable[[int, int], Any] = lambda *_: 1.0) -> list[Tensor]:
    """Matrices, each ``[N, R, C]`` in float32, with their singular values moved to about ``scale(R, C)``.

    Newton and Schulz's iteration X <- (A + B S + C S^2) X, S = X X^T, is a polynomial in the first S times the first
    X. So it runs on the small matrices S, and on all of one size together, whatever their other side is. Only they are
    divided by the norm of X, whose square is the trace of S.
    """
    squares = [torch.bmm(x.mT, x) if x.shape[1] > x.shape[2] else torch.bmm(x, x.mT) for x in matrices]
    norms = [square.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7 for square in squares]
    made = list(matrices)
    for size in {square.shape[1] for square in squares}:
        places = [i for i, square in enumerate(squares) if square.shape[1] == size]
        lengths = [len(squares[i]) for i in places]
        norm = torch.cat([norms[i] for i in places])
        factors = _factors(torch.cat([squares[i] for i in places]) / norm.square()) / norm
        for i, factor in zip(places, factors.split(lengths), strict=True):
            x = matrices[i]
            factor = factor * scale(*x.shape[1:])
            made[i] = torch.bmm(x, factor) if x.shape[1] > x.shape[2] else torch.bmm(factor, x)
    return made


def _factors(square: Tensor) -> Tensor:
    """By what the iteration multiplies X, given S ``[N, R, R]``."""
    whole = None
    for step in range(STEPS):
        factor = torch.baddbmm(square, square, square, beta=B, alpha=C)
        factor.diagonal(dim1=1, dim2=2).add_(A)
        if step < STEPS - 1:
            square = torch.bmm(torch.bmm(factor, square), factor)  # they commute
        whole = factor if whole is None else torch.bmm(factor, whole)
    assert whole is not None
    return whole


class Muon(Optimizer):
    """Steps of equal size in all directions for hidden convolutions (Jordan 2024; Liu 2025), AdamW elsewhere.

    The momentum of a convolution's weight, as a matrix of its outputs by all else, is replaced by the nearest
    orthogonal matrix times 0.2 sqrt(its longer side): the size of an update of AdamW. ``LitVAE`` and
    ``LitClassifier`` mark which weights are hidden: those inside residual blocks, between the decoder and its latents,
    and inside a likelihood; not stem, heads, biases and normalisations.

    Args:
        params: the parameters of a model.
        lr: the rate of hidden convolutions.
        adamw_lr: the rate of all other parameters.
        momentum: of hidden convolutions, as Nesterov has it.
        betas, eps: of AdamW.
        weight_decay: of hidden convolutions, decoupled. Without it their norms grow with every update, until one batch
            is amplified through the whole network.
        adamw_weight_decay: of all other parameters, decoupled.

    Raises:
        ResvaeError: a rate or a decay under 0, a momentum outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.003,
        adamw_lr: float = 0.0005,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.3,
        adamw_weight_decay: float = 0.01,
    ):
        rates = {"lr": lr, "adamw_lr": adamw_lr, "weight_decay": weight_decay, "adamw_weight_decay": adamw_weight_decay}
        for name, value in rates.items():
            if not value >= 0:
                raise ResvaeError(f"optimizer.{name}: {value} is not allowed; at least 0")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ResvaeError(f"optimizer.{name}: {value} is not allowed; 0 up to less than 1")
        every = list(params)
        hidden = [p for p in every if hasattr(p, "hidden")]
        rest = [p for p in every if not hasattr(p, "hidden")]
        groups = [
            {"params": hidden, "lr": lr, "weight_decay": weight_decay, "muon": True},
            {"params": rest, "lr": adamw_lr, "weight_decay": adamw_weight_decay, "muon": False},
        ]
        common = {"momentum": momentum, "betas": betas, "eps": eps}
        super().__init__([group for group in groups if group["params"]], common)
        self.found_inf: Tensor | None = None  # a scalar; where it is 1, the update is left out

    @property
    def skips_by_itself(self) -> bool:
        """Whether ``found_inf`` counts on the device of the parameters."""
        return all(p.device.type in FUSED for group in self.param_groups for p in group["params"])

    def text(self) -> str:
        """Which weights each of the two has, in one line."""
        parts = []
        for group in self.param_groups:
            name = "Muon on {} hidden convolutions" if group["muon"] else "AdamW on {} other parameters"
            sizes = [p.numel() for p in group["params"]]
            parts.append(f"{name.format(len(sizes))} ({sum(sizes):,} numbers)")
        return ", ".join(parts)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; parameters without a gradient stay as they are."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["muon"] else self._adamw)(parameters, group)
        return loss

    def _muon(self, parameters: list[Any], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [local(p.grad) for p in parameters]
        momenta = [local(self.state[p]["momentum"]) for p in parameters]
        taken: Any = 1.0
        if self.found_inf is None:
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        else:
            taken = 1 - self.found_inf
            gradients = [torch.where(self.found_inf == 1, 0.0, gradient) for gradient in gradients]  # perhaps NaN
            torch._foreach_mul_(momenta, 1 - (1 - group["momentum"]) * taken)
            torch._foreach_add_(momenta, gradients, alpha=1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = [gathered(update, p) for update, p in zip(updates, parameters, strict=True)]
        # Weights that are shared out take their parts of the update later; it takes the place of the gathered one.
        targets = [u if is_part(p) else p for u, p in zip(updates, parameters, strict=True)]
        views = [p.hidden.view(target, like=target) for p, target in zip(parameters, targets, strict=True)]
        matrices = [
            p.hidden.matrices(p.hidden.view(update, like=target)).float()
            for p, update, target in zip(parameters, updates, targets, strict=True)
        ]
        steps = orthogonalised(matrices, lambda *sides: taken * (-group["lr"] * 0.2 * max(sides) ** 0.5))
        torch._foreach_mul_([local(p) for p in parameters], 1 - group["lr"] * group["weight_decay"] * taken)
        gone = [target for p, target in zip(parameters, targets, strict=True) if target is not p]
        if gone:
            torch._foreach_zero_(gone)
        torch._foreach_add_(views, [step.view(view.shape) for step, view in zip(steps, views, strict=True)])
        for p, target in zip(parameters, targets, strict=True):
            if target is not p:
                local(p).add_(local(part_of(target, p)))

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                step = torch.zeros((), device=p.device)
                self.state[p] |= {"step": step, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        states = [self.state[p] for p in parameters]
        adamw(
            [local(p) for p in parameters],
            [local(p.grad) for p in parameters],
            [local(state["mean"]) for state in states],
            [local(state["square"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=self.skips_by_itself,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
