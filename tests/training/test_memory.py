"""A budget of memory is kept, for the length of segments that it needs, or refused before anything is written."""

import pytest
import torch
from helpers_runs import command

from resvae.benchmark.timing import peak_memory
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.models import VAE, HierarchicalVAE, ResNetClassifier
from resvae.networks import segments
from resvae.networks.segments import Blocks, set_segment
from resvae.training.classifier import LitClassifier
from resvae.training.memory import Kept, in_bytes
from resvae.training.module import LitVAE

SMALL = {"image_shape": (1, 8, 8), "widths": (8, 16), "strides": (1, 2)}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"), [("4GiB", 2**32), ("500MB", 5 * 10**8), ("1.5 KiB", 1536), ("7", 7), ("2gib", 2**31)]
)
def test_bytes_are_read(text, expected):
    assert in_bytes("memory_budget", text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "4 giraffes", "4TiB", "GiB"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ResvaeError, match=r"memory_budget: .* is not allowed; bytes, such as 4GiB or 500MB"):
        LitVAE(VAE(16, **SMALL), memory_budget=text)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("segment", [None, 1, 4])
def test_what_is_kept_is_counted_as_it_is(segment, bf16):
    torch.manual_seed(0)
    vae, x = VAE(100, **SMALL), torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8)
    state = torch.get_rng_state()
    counted = Kept(vae, vae.elbo, x, bf16).with_segments(segment)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and not p.is_meta for p in vae.parameters())

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = -vae.elbo(x).elbo.mean()
        loss.backward()

    set_segment(vae, segment)
    step()
    vae.zero_grad()
    weights = sum(p.numel() for p in vae.parameters()) * 4
    # Beside it gradients, and what is soon forgotten: by the likelihood some numbers for each component of a pixel.
    # Where a segment runs again, the likelihood's part is gone.
    forgotten = 8 * 4 * x.numel() * 10
    assert 0.75 * counted < peak_memory(step, CPU) < 1.35 * counted + weights + forgotten


def test_a_chain_in_segments_keeps_their_inputs_and_the_inside_of_one():
    class Block(torch.nn.Module):
        """Keeps its input's square and, for that, its input: 8 bytes a number."""

        def forward(self, x):
            return x.square().exp()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.blocks = torch.nn.Parameter(torch.ones(1000)), Blocks(*(Block() for _ in range(6)))

        def forward(self, x):
            return self.blocks(x[:1, 0, 0] * self.weight)

    model, x = Model(), torch.zeros(1, 1, 1, 1000, dtype=torch.uint8)
    kept = Kept(model, model, x, False)
    inside = sum(size for chain in kept.chains for size, _ in chain)
    assert all(size == 4000 for chain in kept.chains for _, size in chain)
    outside = kept.total - inside
    for segment, num in ((1, 6), (2, 3), (3, 2), (4, 2), (6, 1)):
        inner = max(sum(size for size, _ in kept.chains[0][i : i + segment]) for i in range(0, 6, segment))
        assert kept.with_segments(segment) == outside + num * 4000 + inner
    assert inside >= 6 * 4000
    sizes = [size for size, _ in kept.chains[0]]
    assert kept.with_segments(2, 0.5) == outside + 2 * 4000 + sum(sizes[:2]) + sum(sizes[3:])


@pytest.mark.parametrize(
    "module",
    [
        LitVAE(VAE(100, **SMALL), precision="bf16", memory_budget="5MiB"),
        LitVAE(HierarchicalVAE((8, 8), levels=(1, 1), **SMALL), precision="bf16", memory_budget="8MiB"),
        LitClassifier(ResNetClassifier(depth=110, image_shape=(1, 8, 8)), precision="bf16", memory_budget="5MiB"),
    ],
)
def test_as_little_is_computed_again_as_the_budget_allows(module):
    assert module.fit_memory(1, "cpu").startswith("memory: about")
    assert {part.segment for part in module.modules() if isinstance(part, Blocks)} == {None}
    kept = Kept(module.model, module.objective, torch.empty(64, 1, 8, 8, dtype=torch.uint8), True)
    least, shares = kept.best()[1], []
    for budget in (least, (least + kept.total) // 2, kept.total - 1):
        module.memory_budget = budget
        told = module.fit_memory(64, "cpu")
        assert "instead of" in told
        assert module.fit_memory(64, "cpu") == told  # where training begins it is asked again
        ((segment, spared),) = {(part.segment, part.spared) for part in module.modules() if isinstance(part, Blocks)}
        assert kept.with_segments(segment, spared) <= budget
        shares.append(spared)
    assert shares == sorted(set(shares))  # with more memory less is computed again
    with pytest.raises(ResvaeError, match=r"memory_budget: .* MiB is not enough for the activations of 100000 images"):
        module.fit_memory(100000, "cpu")


def test_a_run_computes_again_what_its_budget_does_not_hold(tmp_path, monkeypatch, capsys):
    again, checkpoint = [], segments.checkpoint

    def counted(function, part, x, **options):
        if type(x) is torch.Tensor:  # in training itself, not where the budget is looked at without computing
            again.append(len(part))
        return checkpoint(function, part, x, **options)

    monkeypatch.setattr(segments, "checkpoint", counted)
    options = "--model.vae.init_args.depth [4,4] --model.precision fp32 --model.memory_budget"
    assert main(command(tmp_path / "much", f"{options} 1GiB")) == 0
    assert not again
    assert main(command(tmp_path / "little", f"{options} 4MiB")) == 0
    assert again
    assert "instead of" in capsys.readouterr().out
