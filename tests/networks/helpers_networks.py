"""What the tests of networks share."""

import copy
import pickle

import torch

from resvae.networks import BlockConfig

HE = BlockConfig(
    kind="basic", order="original", norm="batch", activation="relu", shortcut="zero_pad", residual_scale=1.0
)
ARTICLE = BlockConfig(
    order="original", norm="batch", activation="relu", conv_bias=True, stride_on="first", residual_scale=1.0
)


def example(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_type(module, *types):
    return [part for part in module.modules() if isinstance(part, types)]


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def twins(module, fresh, x):
    """Copies, pickles, exports and compiled graphs of a module, and a new one with its weights."""
    fresh.load_state_dict(module.state_dict())
    exported = torch.export.export(module, (x,)).module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    return copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh, exported, compiled
