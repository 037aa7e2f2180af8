"""Arguments of a wrong kind are refused in one line that names them; numbers of numpy are numbers."""

import numpy as np
import pytest
import torch

from resvae import (
    VAE,
    HierarchicalVAE,
    ImageDataModule,
    LitClassifier,
    LitVAE,
    ReferenceVAE,
    ResNetClassifier,
    ResNetEncoder,
    load,
    save,
)
from resvae.errors import ResvaeError

SMALL = {"depth": (1, 1), "widths": (8, 8), "strides": (1, 2), "image_shape": (3, 8, 8)}


def small(**arguments):
    return VAE(**{**SMALL, "latent_dim": 4, **arguments})


@pytest.mark.parametrize(
    ("said", "make"),
    [
        ("widths: 64 ", lambda: small(widths=64)),
        ("widths: ", lambda: small(widths=(8, 2.5))),
        ("strides: .* widths .* one number per stage", lambda: small(strides=(1, 2, 2))),
        ("block: .* BlockConfig", lambda: small(block={"norm": "batch"})),
        ("block: 'basic'", lambda: HierarchicalVAE(block="basic")),
        ("block: 'basic'", lambda: ResNetClassifier(block="basic")),
        ("block: None", lambda: ResNetEncoder(config=None)),
        ("latent_dim: 'a' .* whole number", lambda: small(latent_dim="a")),
        ("latent_dim: 1.5 .* whole number", lambda: small(latent_dim=1.5)),
        ("latent_channels: 1.5 ", lambda: HierarchicalVAE(latent_channels=1.5)),
        ("intermediate_dim: 'a' .* whole number", lambda: ReferenceVAE(intermediate_dim="a")),
        ("image_shape: 32 ", lambda: small(image_shape=32)),
        ("image_shape: .*3.0", lambda: small(image_shape=(3.0, 8, 8))),
        ("patch: '2' ", lambda: small(patch="2")),
        ("num_classes: '10' ", lambda: ResNetClassifier(num_classes="10")),
        ("data.batch_size: 2.5 ", lambda: ImageDataModule("digits", batch_size=2.5)),
        ("data.memory_share: 'a' .* a number", lambda: ImageDataModule("digits", memory_share="a")),
        ("num: 'a' ", lambda: small().sample("a")),
        ("num: 2.5 ", lambda: small().sample(2.5)),
        ("temperature: 'x' ", lambda: small().sample(1, temperature="x")),
        ("temperature: None ", lambda: small().sample(1, temperature=None)),
        ("images: list ", lambda: small().elbo([1, 2])),
        ("images: ndarray ", lambda: ResNetClassifier(depth=8)(np.zeros((1, 3, 32, 32)))),
        ("vae: int ", lambda: LitVAE(3)),
        ("vae: ResNetClassifier ", lambda: LitVAE(ResNetClassifier(depth=8))),
        ("classifier: VAE ", lambda: LitClassifier(small())),
        ("path: None ", lambda: load(None)),
        ("path: 3 ", lambda: save(small(), 3)),
    ],
)
def test_a_wrong_kind_is_refused_by_name(said, make):
    with pytest.raises(ResvaeError, match=f"^{said}") as refused:
        make()
    assert "\n" not in str(refused.value)


def test_numbers_of_numpy_are_numbers(tmp_path):
    for depth in np.arange(28, 41, 6):
        assert VAE(depth, 4).arguments == VAE(int(depth), 4).arguments
    vae = HierarchicalVAE((np.int64(1), 1), np.int32(2), np.int64(2), (3, 8, 8), (np.int64(8), 8), (1, np.int64(2)))
    again = load(save(vae.eval(), tmp_path / "model"))
    torch.manual_seed(0)
    x = vae.sample(np.int64(2), np.float32(0.5))
    torch.manual_seed(0)
    assert x.equal(again.sample(2, 0.5))
