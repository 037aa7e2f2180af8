"""Weights, gradients, optimiser states and averages shared out between the processes (FSDP2), and gathered again.

Each process keeps its part of every weight. A block's whole weights are there while it computes (Zhao et al. 2023,
"PyTorch FSDP"). What is saved is whole, so that any number of processes can go on with it.

Lightning's internals used here: ``ModelParallelStrategy._data_parallel_size`` and ``._tensor_parallel_size``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from resvae.networks.segments import chains

NAME = "fsdp2"
STEPS = ("training_step", "validation_step", "test_step")  # of a module: what gathers its weights


class FullyShardedStrategy(ModelParallelStrategy):
    """``trainer.strategy: fsdp2``: all devices train on images of their own, and share out the model between them."""

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Begin, with one group of all devices."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning restores the optimisers by ``load_optimizer_state_dict``."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, in each process."""
        return whole(Strategy.lightning_module_state_dict(self))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of an optimiser, in each process, with its own numbers of the parameters."""
        optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return whole(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The contents of a checkpoint, which any number of processes may have written."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the weights."""
        module = self.lightning_module
        assert module is not None
        module.load_state_dict(shared_out(checkpoint["state_dict"], module.state_dict()), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the optimisers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {
                    name: part_of(value, parameters[number]) if _like(value, parameters[number]) else value
                    for name, value in each.items()
                }
                for number, each in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


StrategyRegistry.register(NAME, FullyShardedStrategy, description="share out the model", override=True)


def share_out(module: LightningModule, mesh: DeviceMesh) -> None:
    """Keep this process's part of a module's weights alone; each residual block's are gathered where it computes.

    Args:
        module: on any device; its gradients are averaged over all processes from now on.
        mesh: of the processes, with one dimension.
    """
    module.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]  the only one it takes
    for chain in chains(module):
        for block in chain:
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for step in STEPS:
        register_fsdp_forward_method(module, step)


def is_shared_out(module: nn.Module) -> bool:
    """Whether each process has its own part of the weights."""
    return isinstance(module, FSDPModule)


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor that is shared out, on the same memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_part(tensor: Any) -> bool:
    """Whether it is shared out, so that this process has a part of it."""
    return isinstance(tensor, DTensor)


def part_of(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, shared out as ``like`` is; itself where that is not."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(part: Tensor, like: Any) -> Tensor:
    """The whole tensor, of which each process has a part as it has of ``like``; all processes must call it."""
    if not isinstance(like, DTensor):
        return part
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, shape=like.shape, stride=like.stride()).full_tensor()


def whole(state: Any) -> Any:
    """The same, with the whole of each tensor that is shared out, on the CPU: all processes must call it."""
    return tree_map_only(DTensor, lambda tensor: tensor.full_tensor().cpu(), state)


def whole_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar; all processes must call it."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def shared_out(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Whole tensors by their names, as parts where those of the same name in ``like`` are."""
    return {name: part_of(value, like.get(name)) for name, value in state.items()}


def _like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
