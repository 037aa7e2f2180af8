"""What the page computes, without a page."""

import os
import socket
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers_runs import perturbed, refused
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from resvae import HierarchicalVAE, load
from resvae.demo.actions import between, blocks, draw, lesioned, levels, nats, read, seen
from resvae.errors import ResvaeError
from resvae.models import Encoded, ImageVAE, OneLatentVAE
from resvae.probability import make_likelihood
from resvae.verbs.images import images_for


def hierarchical() -> HierarchicalVAE:
    torch.manual_seed(0)
    return perturbed(HierarchicalVAE((1, 1), (1, 2), 2, (3, 8, 8), (8, 8), (1, 2)))


MODELS = {"hierarchical": hierarchical, "one latent": lambda: load("digits")}


@pytest.fixture(params=MODELS)
def vae(request) -> ImageVAE:
    return MODELS[request.param]()


def differ(a: Tensor, b: Tensor) -> bool:
    return (a - b).abs().max().item() > 1e-4


def test_drawing_is_sampling_from_a_seed_with_a_temperature_per_level(vae):
    state, num = torch.get_rng_state(), len(levels(vae))
    images = draw(vae, 3, [0.5] * num, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    torch.testing.assert_close(images, vae.sample(3, 0.5))
    assert differ(images, draw(vae, 3, [0.5] * num, 5))
    torch.testing.assert_close(draw(vae, 3, seed=1), draw(vae, 3, [1.0] * num, 1))
    for level in range(num):
        only = draw(vae, 2, [float(i == level) for i in range(num)])
        assert differ(only[0], only[1]), level


def test_levels_without_latents_have_no_temperature():
    vae = hierarchical()
    assert levels(vae) == {"level 0, 4x4": 0, "level 1, 8x8": 1, "level 2, 8x8": 2}
    vae.stochastic_depth = 2
    assert list(levels(vae).values()) == [0, 1]
    torch.testing.assert_close(draw(vae, 2, [0.0, 0.0])[:1], vae.sample(1, 0.0))
    x = draw(vae, 1)
    assert (len(seen(vae, x)), len(nats(vae, x))) == (3, 2)


def test_from_no_level_to_all_of_them_see_the_picture(vae):
    x = draw(vae, 1, seed=3)
    found = seen(vae, x)
    assert len(found) == 1 + len(levels(vae))
    torch.testing.assert_close(found[:1], vae.sample(1, 0.0))
    torch.testing.assert_close(found[-1:], vae.reconstruct(x))
    for num in range(len(found) if isinstance(vae, HierarchicalVAE) else 0):
        torch.testing.assert_close(found[num : num + 1], vae.reconstruct(x, num))
    assert all(differ(a, b) for a, b in pairwise(found))


def test_the_nats_are_the_kl_of_the_elbo(vae):
    x = draw(vae, 1, seed=3)
    torch.manual_seed(0)
    kl = vae.elbo(x.repeat(500, 1, 1, 1)).kl.mean(0)
    assert nats(vae, x) == pytest.approx(kl.tolist(), rel=0.1)
    assert nats(vae, x) == nats(vae, x)


def test_the_way_from_one_picture_to_another(vae):
    a, b = draw(vae, 2, seed=3).split(1)
    row = vae.interpolate(a, b, 5)[0]
    for i in range(5):
        torch.testing.assert_close(between(vae, a, b, i / 4)[0], row[i])


def test_a_lesion_of_levels_is_a_picture_that_they_do_not_see():
    vae = hierarchical()
    x, (first, *others) = draw(vae, 1, seed=3), levels(vae)
    torch.testing.assert_close(lesioned(vae, x), vae.reconstruct(x))
    torch.testing.assert_close(lesioned(vae, x, others), vae.reconstruct(x, 1))
    torch.testing.assert_close(lesioned(vae, x, [first, *others]), vae.sample(1, 0.0))
    assert differ(lesioned(vae, x, [first]), vae.reconstruct(x))


def test_a_lesion_of_blocks_leaves_them_out_and_leaves_no_trace(vae):
    x, found = draw(vae, 1, seed=3), blocks(vae)
    assert len(found) == (5 if isinstance(vae, HierarchicalVAE) else 2)  # one after each level, too
    whole = vae.reconstruct(x)
    removed = {name: lesioned(vae, x, (), [name]) for name in found}
    assert all(differ(image, whole) for image in removed.values())
    torch.testing.assert_close(vae.reconstruct(x), whole, rtol=0, atol=0)
    for name, unit in found.items():
        kept = unit.block.branch
        unit.block.branch = nn.Sequential(*kept, _Nothing())
        torch.testing.assert_close(removed[name], vae.reconstruct(x))
        unit.block.branch = kept
    assert sum("changes the shape" in name for name in found) == 1


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


class Linear(OneLatentVAE):
    """A model of one's own, without residual blocks."""

    def __init__(self):
        super().__init__()
        self.image_shape, self.latent_dim, self.likelihood = (1, 8, 8), 4, make_likelihood("bernoulli", 1)
        self.down, self.decoder = nn.Linear(64, 4), nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))

    def encoder_features(self, x: Tensor) -> Tensor:
        return self.down(x.flatten(1))

    def posterior(self, x: Tensor | Encoded) -> Distribution:
        return Independent(Normal(self.encoded(x).features, 0.5), 1)


def test_a_model_without_residual_blocks_can_do_all_the_rest():
    torch.manual_seed(0)
    vae = Linear()
    x, y = draw(vae, 2, [1.0]).split(1)
    assert blocks(vae) == {}
    torch.testing.assert_close(lesioned(vae, x), vae.reconstruct(x))
    assert seen(vae, x).shape == (2, 1, 8, 8)
    assert nats(vae, x)[0] > 0
    assert differ(between(vae, x, y, 0.2), between(vae, x, y, 0.8))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)


def test_a_picture_is_read_as_the_verbs_read_it(tmp_path, pixels, vae):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=turned)
    alpha = np.full((20, 40, 1), 40, np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / "b.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(tmp_path / "c.png")
    for name in ("a.jpg", "b.png", "c.png"):
        ((_, expected),) = images_for(vae, "", [str(tmp_path / name)], None)
        found = read(str(tmp_path / name), vae)
        assert found.dtype == torch.uint8
        assert torch.equal(found, expected)


def test_what_is_no_picture_is_a_sentence_without_the_file_s_place(tmp_path, pixels):
    vae = hierarchical()
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(pixels[:5, :9]).save(tmp_path / "small.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(tmp_path / "floats.tif")
    unreadable = "picture: this file is not an image that can be read, or it is damaged"
    for name, message in {
        "half.png": unreadable,
        "text.png": unreadable,
        "empty.png": unreadable,
        "small.png": "picture: 9x5 pixels are too few; at least 8x8 are needed",
        "floats.tif": "picture: it has floating-point pixels; whole numbers of 8 or 16 bits are allowed",
    }.items():
        with pytest.raises(ResvaeError) as caught:
            read(str(tmp_path / name), vae)
        assert str(caught.value) == message


def free() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_verb_refuses_in_one_line(capsys, monkeypatch):
    port = f"--port {free()}"
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setitem(sys.modules, "gradio", None)  # it is not there
    for arguments, message in {
        "digits --port 0": "port: 0 is not allowed; 1 to 65535",
        f"digits {port} --host 203.0.113.1": "of host 203.0.113.1 cannot be used",
        f"none {port}": "model: none is neither",
        f"cifar10-classifier {port}": "is a ResNetClassifier, not a VAE",
        f"digits {port}": "the page needs the package gradio: pip install '.[demo]'",
        port: "the page needs the package gradio",  # of the shipped model
    }.items():
        refused(capsys, ["demo", *arguments.split()], message)


def test_a_port_that_is_taken_is_refused_before_the_model_is_read(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(capsys, ["demo", "none", "--port", str(port)], f"port: {port} of host 127.0.0.1 cannot be used")
