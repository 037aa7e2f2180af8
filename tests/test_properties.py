"""Any combination of a model's arguments makes a model that keeps its promises, or is refused in one line."""

import re
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resvae import VAE, HierarchicalVAE, load, save
from resvae.errors import ResvaeError
from resvae.models import ImageVAE
from resvae.networks import BlockConfig
from resvae.networks.segments import set_segment
from resvae.probability.likelihoods import LIKELIHOODS

QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


def mostly(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    """Now and then one of the bad."""
    return st.integers(0, 24).flatmap(lambda number: st.sampled_from(bad if number == 24 else good))


NUM_BLOCKS = mostly([1, 2, 3], [0])


@st.composite
def blocks(draw: Any) -> dict[str, Any]:
    """Arguments of ``BlockConfig``, mostly good ones."""
    options = {
        "kind": ["bottleneck", "basic"],
        "order": ["original", "norm_after_add", "relu_before_add", "relu_only_pre", "full_pre"],
        "norm": ["none", "group"],  # in training, batches of one place cannot be normalised
        "activation": ["relu", "silu", "gelu"],
        "shortcut": ["zero_pad", "projection", "projection_everywhere"],
        "merge": ["sum", "product", "none", "half", "highway", "shortcut_gate"],
        "upsample": ["transposed", "nearest"],
        "stride_on": ["spatial", "first"],
        "ratio": [0.25, 1.0, 1.0, 0.0],
        "min_inner": [1, 5],
    }
    chosen = draw(st.lists(st.sampled_from(sorted(options)), max_size=4, unique=True))
    return {name: draw(st.sampled_from(options[name])) for name in chosen}


@st.composite
def models(draw: Any) -> tuple[type, dict[str, Any], dict[str, Any]]:
    """A class, its arguments, and those of its blocks; stages mostly fit together."""
    kind = draw(st.sampled_from([VAE, HierarchicalVAE]))
    num = draw(st.integers(1, 3))

    def per_stage(values: Any) -> Any:
        return tuple(draw(values) for _ in range(num + draw(mostly([0], [1]))))

    likelihood = draw(mostly(list(LIKELIHOODS), ["nonsense"]))
    channels, side = draw(st.integers(1, 3)), draw(mostly([8, 16], [4, 6]))
    arguments: dict[str, Any] = {
        "depth": draw(st.one_of(mostly([10, 16, 22, 28, 34], [3, 17]), st.just(per_stage(NUM_BLOCKS)))),
        "image_shape": (channels, side, draw(mostly([side, 8], [5]))),
        "widths": per_stage(st.sampled_from([4, 6, 8])),
        "strides": per_stage(st.sampled_from([1, 1, 2])),
        "patch": draw(mostly([1, 2], [3])),
        "likelihood": {"name": likelihood, "width": 4} if likelihood == "subpixel_mixture" else likelihood,
    }
    if kind is HierarchicalVAE:
        arguments |= {
            "levels": draw(st.one_of(mostly([1, 2, 3, 4], [0]), st.just(per_stage(NUM_BLOCKS)))),
            "latent_channels": draw(mostly([1, 2, 3], [0])),
            "posterior": draw(st.sampled_from(["concat_1x1", "concat_3x3", "sum_3x3"])),
            "level_block": draw(st.booleans()),
            "stochastic_depth": draw(mostly([None, None, 1], [9])),
        }
    else:
        arguments["latent_dim"] = draw(mostly([1, 2, 4], [0]))
    return kind, arguments, draw(blocks())


def made(drawn: tuple[type, dict[str, Any], dict[str, Any]]) -> ImageVAE | str:
    """The model, or why it is refused."""
    kind, arguments, of_block = drawn
    torch.manual_seed(0)
    try:
        return kind(block=BlockConfig(**of_block), **arguments)
    except ResvaeError as error:
        return str(error)


def check_promises(vae: ImageVAE) -> None:
    """Assert all that a model promises."""
    x = torch.randint(256, (2, *vae.image_shape), dtype=torch.uint8)
    terms = vae.elbo(x)
    assert terms.elbo.shape == (2,)
    assert terms.elbo.isfinite().all()
    assert (terms.kl >= -1e-4).all()
    (-terms.elbo.mean()).backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters() if p.grad is not None)
    gradients = []
    for segment in (None, 2):
        set_segment(vae, segment)
        vae.zero_grad()
        torch.manual_seed(1)
        (-vae.elbo(x).elbo.mean()).backward()
        gradients.append([p.grad for p in vae.parameters() if p.grad is not None])
    set_segment(vae, None)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    vae.eval()
    with torch.no_grad():
        assert vae.sample(3).shape == (3, *vae.image_shape)
        pictures = vae.reconstruct(x)
        assert 0 <= pictures.min() <= pictures.max() <= 1
        torch.testing.assert_close(vae.reconstruct(x[:1]), pictures[:1], rtol=1e-3, atol=1e-4)
        assert vae.log_likelihood(x, 2).isfinite().all()
        with tempfile.TemporaryDirectory() as folder:
            torch.testing.assert_close(load(save(vae, folder)).reconstruct(x), pictures)


@QUICK
@given(models())
def test_any_model_keeps_its_promises_or_is_refused(drawn):
    found = made(drawn)
    if isinstance(found, ImageVAE):
        check_promises(found)
    else:
        assert re.fullmatch(r"[^\n]*: [^\n]*", found)


@pytest.mark.slow
def test_many_models_keep_their_promises():
    num_made = num_refused = 0

    @LONG
    @given(models())
    def try_one(drawn: Any) -> None:
        nonlocal num_made, num_refused
        found = made(drawn)
        if isinstance(found, ImageVAE):
            check_promises(found)
            num_made += 1
        else:
            num_refused += 1

    try_one()
    assert num_made > num_refused / 3
