"""A module that is shared out between processes: here there is one; two are in test_two_processes.py."""

import copy

import pytest
import torch
from test_module import tiny
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import AdamW

from resvae.models import VAE
from resvae.training.muon import Muon, mark_hidden
from resvae.training.sharding import (
    gathered,
    is_part,
    is_shared_out,
    local,
    part_of,
    share_out,
    shared_out,
    whole,
    whole_norm,
)


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def pair(mesh: DeviceMesh) -> list:
    """The same module twice; the second is shared out."""
    alone = tiny()
    alone.to(memory_format=torch.contiguous_format)
    shared = copy.deepcopy(alone)
    share_out(shared, mesh)
    return [alone, shared]


def images() -> torch.Tensor:
    return torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [Muon, AdamW])
def test_updates_are_those_of_a_whole_module(mesh, kind):
    modules = pair(mesh)
    assert [is_shared_out(module) for module in modules] == [False, True]
    for module in modules:
        mark_hidden(module.model)
        optimizer, losses = kind(module.parameters()), []
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = module.training_step((images(), torch.zeros(4)), step)
            loss.backward()
            losses.append(loss.item())
            module.norm = whole_norm([p.grad for p in module.parameters() if p.grad is not None]).item()
            optimizer.step()
        module.losses = losses
    alone, shared = modules
    assert shared.losses == pytest.approx(alone.losses)
    assert shared.norm == pytest.approx(alone.norm)
    weights = whole(shared.state_dict())
    assert not any(map(is_part, weights.values()))
    for name, value in alone.state_dict().items():
        assert torch.allclose(weights[name], value, atol=1e-6), name
    assert isinstance(shared.model, VAE)  # it keeps its class, by which it is saved


def test_weights_and_tensors_come_back_whole(mesh):
    alone, shared = pair(mesh)
    own = shared.state_dict()
    for p in alone.parameters():
        nn.init.normal_(p)
    shared.load_state_dict(shared_out(alone.state_dict(), own))
    for name, value in whole(shared.state_dict()).items():
        assert torch.equal(value, alone.state_dict()[name]), name
    for like, value in ((p, torch.randn(p.shape)) for p in shared.parameters()):
        part = part_of(value, like)
        assert is_part(part)
        assert part_of(part, like) is part
        assert torch.equal(gathered(local(part), like), value)
    plain = torch.ones(2)
    assert part_of(plain, plain) is local(plain) is gathered(plain, plain) is plain
