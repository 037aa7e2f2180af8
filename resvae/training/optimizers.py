"""What an optimiser goes on with when a run is resumed: a checkpoint's state, and this configuration's rates."""

from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from resvae.errors import ResvaeError
from resvae.training.muon import Muon

KERNELS = (Adam, AdamW, SGD)  # of torch's optimisers, those whose whole update can be one kernel


def refuse_optimizer(optimizer: Optimizer, checkpoint: dict[str, Any]) -> None:
    """Raise ``ResvaeError`` where an optimiser cannot go on with a checkpoint's state."""
    states = checkpoint.get("optimizer_states") or [{"param_groups": []}]
    here, there = optimizer.param_groups, states[0]["param_groups"]
    name, kind = checkpoint.get("optimizer", {}).get("name"), type(optimizer).__name__
    same = name in (None, kind) and [len(group["params"]) for group in here] == [
        len(group["params"]) for group in there
    ]
    for new, old in zip(here, there, strict=False):  # a newer torch may have more of them
        same &= set(new) <= set(old) or set(old) - {"initial_lr"} <= set(new)
    if not same:
        raise ResvaeError(
            f"model.optimizer: {kind} cannot go on with the state of {name or 'the optimiser'} in the checkpoint; "
            "it must be of the same class"
        )


def in_one_kernel(optimizer: Optimizer) -> Optimizer:
    """The same, with torch's kernel for whole updates on a CUDA device, unless it was made to use one or not to."""
    for group in optimizer.param_groups:
        unsaid = group.get("fused") is None and not any(group.get(name) for name in ("foreach", "differentiable"))
        if isinstance(optimizer, KERNELS) and unsaid and all(p.is_cuda for p in group["params"]):
            group["fused"] = True
    return optimizer


def skips_by_itself(optimizer: Optimizer) -> bool:
    """Whether it leaves an update out where its ``found_inf``, a scalar on its device, is 1.

    That is how torch's gradient scaler tells the optimisers whose kernels do whole updates; ``Muon`` does the same.
    """
    if isinstance(optimizer, Muon):
        return optimizer.skips_by_itself
    return isinstance(optimizer, KERNELS) and all(group["fused"] for group in optimizer.param_groups)


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What each group of an optimiser was made with, without its parameters and the way it computes."""
    without = {"params", "fused", "foreach"}  # a state goes on with the kernel that it was made for
    return [{name: value for name, value in group.items() if name not in without} for group in optimizer.param_groups]


def take_over(optimizer: Optimizer, scheduler: Any, given: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Give an optimiser with a checkpoint's state the hyperparameters of this configuration.

    Args:
        optimizer, scheduler: with the state of the checkpoint.
        given: what the optimiser was made with this time.
        before: what the run's optimiser was made with when the checkpoint was written.
    """
    if given == before:
        return
    for i, (group, new, old) in enumerate(zip(optimizer.param_groups, given, before, strict=True)):
        group.update({name: value for name, value in new.items() if name != "lr"})
        if new["lr"] == old["lr"]:
            continue
        if isinstance(scheduler, LambdaLR):
            scheduler.base_lrs[i] = group["initial_lr"] = new["lr"]
            group["lr"] = new["lr"] * scheduler.lr_lambdas[i](scheduler.last_epoch)
        else:  # a plateau has lowered it so far
            group["lr"] = new["lr"] * (group["lr"] / old["lr"] if old["lr"] else 1.0)
