"""Muon: orthogonal updates for hidden convolutions, AdamW for all other parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from resvae.errors import ResvaeError
from resvae.networks.units import hidden_convolutions

STEPS = 5  # of the Newton-Schulz iteration
A, B, C = 3.4445, -4.7750, 2.0315  # its coefficients (Jordan 2024)


def mark_hidden(model: nn.Module) -> None:
    """Note on the weights of the hidden convolutions what they are; ``Muon`` reads it."""
    for layer in hidden_convolutions(model):
        layer.weight.hidden = "transposed" if isinstance(layer, nn.ConvTranspose2d) else "convolution"  # pyright: ignore


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices ``[N, R, C]`` with their singular values moved to about 1, by Newton and Schulz's iteration, float32."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(STEPS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Steps of equal size in all directions for hidden convolutions (Jordan 2024; Liu 2025), AdamW elsewhere.

    The momentum of a convolution's weight, as a matrix of its outputs by all else, is replaced by the nearest
    orthogonal matrix times 0.2 sqrt(its longer side): the size of an update of AdamW. ``LitVAE`` and
    ``LitClassifier`` mark which weights are hidden: those inside residual blocks, and between latents and the
    decoder; not stem, heads, biases and normalisations.

    Args:
        params: the parameters of a model.
        lr: the rate of hidden convolutions.
        adamw_lr: the rate of all other parameters.
        momentum: of hidden convolutions, as Nesterov has it.
        betas, eps: of AdamW.
        weight_decay: of both, decoupled.

    Raises:
        ResvaeError: a rate or a decay under 0, a momentum outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        adamw_lr: float = 0.003,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        for name, value in (("lr", lr), ("adamw_lr", adamw_lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ResvaeError(f"optimizer.{name}: {value} is not allowed; at least 0")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ResvaeError(f"optimizer.{name}: {value} is not allowed; 0 up to less than 1")
        every = list(params)
        hidden = [p for p in every if hasattr(p, "hidden")]
        rest = [p for p in every if not hasattr(p, "hidden")]
        groups = [{"params": hidden, "lr": lr, "muon": True}, {"params": rest, "lr": adamw_lr, "muon": False}]
        common = {"momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], common)

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

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            update = _outputs_first(p, p.grad.lerp(state["momentum"], group["momentum"])).flatten(1)
            alike.setdefault(tuple(update.shape), []).append((p, update.float()))
        for shape, pairs in alike.items():  # matrices of one shape in one product
            updates = orthogonalised(torch.stack([update for _, update in pairs])) * (0.2 * max(shape) ** 0.5)
            for (p, _), update in zip(pairs, updates, strict=True):
                whole = _outputs_first(p, p)
                whole.mul_(1 - group["lr"] * group["weight_decay"])
                whole.add_(update.view(whole.shape).to(p.dtype), alpha=-group["lr"])

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _outputs_first(p: Any, value: Tensor) -> Tensor:
    """A view with the outputs in the first dimension; a transposed convolution has its inputs there."""
    return value.transpose(0, 1) if p.hidden == "transposed" else value
