"""Muon: orthogonal updates where they belong, AdamW elsewhere, and a state that resumes."""

import copy

import pytest
import torch
from torch import distributed, nn

from resvae import VAE, HierarchicalVAE, LitVAE, ResNetClassifier
from resvae.errors import ResvaeError
from resvae.networks import BlockConfig
from resvae.training.muon import Hidden, Muon, mark_hidden, orthogonalised

SMALL = {"image_shape": (1, 8, 8), "widths": (8, 16), "strides": (1, 2)}


def model(seed: int = 0) -> HierarchicalVAE:
    torch.manual_seed(seed)
    vae = HierarchicalVAE(16, levels=2, latent_channels=4, **SMALL)  # pyright: ignore[reportArgumentType]
    mark_hidden(vae)
    return vae


def train(vae: HierarchicalVAE, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        loss = -vae.elbo(torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 30), (2, 30, 4)])
def test_singular_values_become_about_1_and_directions_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    others = [torch.ones(1, 8, 2), torch.randn(2, 4, 4)]
    (made, *rest) = orthogonalised([1e-3 * matrices, *others])
    assert [other.shape for other in rest] == [other.shape for other in others]
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ vh
    assert (made * exact).sum((1, 2)).div(made.norm(dim=(1, 2)) * exact.norm(dim=(1, 2))).min() > 0.9
    torch.testing.assert_close(orthogonalised([matrices.mT])[0], orthogonalised([matrices])[0].mT)
    torch.testing.assert_close(made, newton_schulz(matrices), rtol=1e-3, atol=1e-4)
    flat = matrices[:, :, :1] * matrices[:, :1]  # of rank 1
    torch.testing.assert_close(orthogonalised([flat])[0], newton_schulz(flat), rtol=1e-2, atol=1e-2)


def newton_schulz(matrices):
    """The iteration as it is published, in float64."""
    x = matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.float()


@pytest.mark.parametrize(
    ("make", "inside", "outside"),
    [
        (lambda: VAE(16, 4, **SMALL), {"encoder.stages.0.0.branch", "decoder.stages"}, {"stem", "head", "dense"}),
        (model, {"prior_net.1", "posterior_net.1", "project", "branch"}, {"encoder.stem", "out.weight", "start"}),
        (
            lambda: VAE(16, 4, **SMALL, likelihood="subpixel_mixture"),
            {"head.hidden.0.weight", "first.hidden.0.weight", "context", "decoder.out"},
            {"head.out", "first.out", "stem"},
        ),
        (
            lambda: HierarchicalVAE(16, 2, 4, **SMALL, likelihood="subpixel_mixture"),
            {"out.weight", "context"},
            {"head.out", "first.out", "stem"},
        ),
        (lambda: ResNetClassifier(depth=8, image_shape=(1, 8, 8)), {"encoder.stages"}, {"classifier", "stem"}),
    ],
)
def test_hidden_are_the_convolutions_of_blocks_and_latents_alone(make, inside, outside):
    made = make()
    mark_hidden(made)
    hidden = {name: p for name, p in made.named_parameters() if hasattr(p, "hidden")}
    assert all(p.ndim == 4 for p in hidden.values())
    for part in inside:
        assert any(part in name for name in hidden), part
    for part in outside:
        assert not any(part in name for name in hidden), part
    told = Muon(made.parameters()).text()
    assert told.startswith(f"Muon on {len(hidden)} hidden convolutions ({sum(p.numel() for p in hidden.values()):,}")


def test_a_transposed_convolution_is_updated_as_its_outputs_are():
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)  # outputs, inputs
    updated = []
    for transposed, view in ((False, lambda w: w), (True, lambda w: w.transpose(0, 1))):
        p = nn.Parameter(view(weight).clone())
        p.hidden, p.grad = Hidden(1, transposed), view(gradient).clone()  # pyright: ignore[reportAttributeAccessIssue]
        Muon([p], lr=0.1).step()
        updated.append(view(p.detach()))
    torch.testing.assert_close(*updated)
    change = (updated[0] - weight * (1 - 0.1 * 0.3)).flatten(1)
    assert change.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)  # as large as AdamW's


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("formats", [("channels_last", "channels_last"), ("channels_last", "contiguous_format")])
def test_an_update_does_not_depend_on_how_weight_and_gradient_lie_in_memory(kind, formats):
    torch.manual_seed(0)
    weight = kind(6, 4, 3, groups=2).weight.detach()
    updated = []
    for weights_format, gradients_format in (("contiguous_format", "contiguous_format"), formats):
        gradient = torch.linspace(-1, 1, weight.numel()).sin().view_as(weight)
        p = nn.Parameter(weight.clone(memory_format=getattr(torch, weights_format)))
        p.hidden = Hidden(2, kind is nn.ConvTranspose2d)  # pyright: ignore[reportAttributeAccessIssue]
        optimizer = Muon([p], lr=0.1)
        for step in range(3):
            p.grad = (gradient * (1 + step)).cos().contiguous(memory_format=getattr(torch, gradients_format))
            optimizer.step()
        updated.append(p.detach())
    torch.testing.assert_close(*updated)
    assert (updated[0] - weight).abs().mean() > 0.01


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_each_group_of_a_convolution_is_updated_as_a_convolution_of_its_own(kind):
    torch.manual_seed(0)
    whole, parts = kind(4, 6, 3, groups=2), [kind(2, 3, 3) for _ in range(2)]
    for layer in (whole, *parts):
        layer.weight.hidden = Hidden(layer.groups, kind is nn.ConvTranspose2d)
    gradient = torch.randn_like(whole.weight)
    for part, weight, its in zip(parts, whole.weight.chunk(2), gradient.chunk(2), strict=True):
        part.weight.data.copy_(weight)
        part.weight.grad = its.clone()
    whole.weight.grad = gradient
    Muon([whole.weight], lr=0.1).step()
    Muon([part.weight for part in parts], lr=0.1).step()
    torch.testing.assert_close(whole.weight, torch.cat([part.weight for part in parts]))


def test_other_parameters_are_updated_by_adamw():
    ours, torchs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    muon = Muon([ours], adamw_lr=0.01)
    adamw = torch.optim.AdamW([torchs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(5):
        for p, optimizer in ((ours, muon), (torchs, adamw)):
            p.grad = torch.sin(p.detach() * (step + 1))
            optimizer.step()
    torch.testing.assert_close(ours, torchs)


def test_it_resumes_bit_for_bit_and_learns():
    whole, broken = model(), model()
    optimizer = Muon(whole.parameters())
    losses = train(whole, optimizer, range(12))
    first = Muon(broken.parameters())
    train(broken, first, range(6))
    state = copy.deepcopy(first.state_dict())
    resumed = Muon(broken.parameters())
    resumed.load_state_dict(state)
    assert train(broken, resumed, range(6, 12)) == losses[6:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))
    assert losses[-1] < losses[0]


def test_an_update_that_the_guard_refuses_changes_nothing():
    vae = model()
    optimizer = Muon(vae.parameters())
    train(vae, optimizer, range(2))
    before = [p.detach().clone() for p in vae.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def halves(rank: int, folder: str) -> None:
    """One of two processes: trains on its half of each batch, and keeps its weights."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = classifier()
    parallel = nn.parallel.DistributedDataParallel(network)
    optimizer = Muon(network.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(x.chunk(2)[rank]), y.chunk(2)[rank]).backward()
        optimizer.step()
    torch.save(network.state_dict(), f"{folder}/{rank}")
    distributed.destroy_process_group()


def classifier() -> ResNetClassifier:
    torch.manual_seed(0)
    network = ResNetClassifier(depth=8, image_shape=(1, 8, 8), block=BlockConfig(kind="basic"))
    mark_hidden(network)
    return network


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)) for _ in range(4)
    ]


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(tmp_path):
    torch.multiprocessing.spawn(halves, (str(tmp_path),), nprocs=2)
    network = classifier()
    optimizer = Muon(network.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1))
    for name, value in network.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


def test_training_marks_the_weights_and_bad_values_are_refused():
    module = LitVAE(VAE(16, 4, **SMALL), optimizer=Muon)  # pyright: ignore[reportArgumentType]
    mark_hidden(module.vae)
    assert [group["muon"] for group in module.optimizer(module.vae.parameters()).param_groups] == [True, False]
    for bad, told in (({"lr": -1}, "lr: -1"), ({"momentum": 1.0}, "momentum: 1.0"), ({"betas": (0.9, 2)}, "betas: 2")):
        with pytest.raises(ResvaeError, match=rf"optimizer\.{told} is not allowed"):
            Muon(module.vae.parameters(), **bad)  # pyright: ignore[reportArgumentType]
