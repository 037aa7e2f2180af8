"""``resvae evaluate`` from one end to the other, on a tiny model of 8x8 digits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from resvae import VAE, ResNetClassifier, __version__, save
from resvae.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save(VAE((1, 1), 4, (1, 8, 8), (8, 8), (1, 2)), folder / "vae")
    save(ResNetClassifier(depth=8, image_shape=(1, 8, 8)), folder / "classifier")
    save(ResNetClassifier(depth=8), folder / "of_32")
    generator = np.random.default_rng(0)
    np.savez(folder / "unlabelled.npz", images=generator.integers(0, 256, (60, 8, 8), np.uint8))
    return folder


@pytest.fixture
def there(models, monkeypatch):
    monkeypatch.chdir(models)
    return models


DIGITS = ["evaluate", "vae", "--data", "digits"]


def test_everything_at_once(there, tmp_path, capsys):
    out = tmp_path / "report.json"
    asked = ["--num", "40", "--num_samples", "12", "--iw_images", "20", "--features", "classifier", "--seed", "3"]
    asked += ["--num_generated", "30", "--probe", "true", "--probe_images", "100", "--neighbours", "true"]
    assert main([*DIGITS, *asked, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert (report["source"], report["data"], report["split"]) == ("vae", "digits", "test")
    assert (report["images"], report["iw_images"], report["seed"]) == (40, 20, 3)
    assert (report["arguments"]["latent_dim"], report["resvae"]) == (4, __version__)
    assert [bound["k"] for bound in report["importance_curve"]] == [1, 10, 12]
    assert (report["distances"]["features"], report["distances"]["generated"]) == ("classifier", 30)
    assert [report["probe"][name] for name in ("train_images", "test_images", "classes")] == [100, 40, 10]
    assert {score["representation"]: score["accuracy"] for score in report["probe"]["scores"]}["raw pixels"] > 0.5
    assert [found["space"] for found in report["neighbours"]] == ["pixels", "classifier"]
    table = out.with_suffix(".md").read_text()
    assert "FID (features: classifier)" in table
    assert text.startswith(table[: table.index("\n\n")])
    assert "weights: vae" in table
    for ending in ("json", "md", "png"):
        assert f"wrote {out.with_suffix('.' + ending)}" in text
    with Image.open(out.with_suffix(".png")) as page:
        assert page.width == 1500
        assert page.height > 1500  # three rows


def test_without_features_nothing_is_called_a_distance(there, tmp_path, capsys):
    before = set(there.iterdir())
    assert main([*DIGITS, "--num", "5"]) == 0
    text = capsys.readouterr().out
    assert "FID" not in text
    assert "probe" not in text
    assert "wrote" not in text
    assert set(there.iterdir()) == before


BAD = {
    "no json": (["--out", "report.png"], "out: report.png is not allowed; end it with .json"),
    "iw_images": (["--iw_images", "0"], "iw_images: 0"),
    "num_generated": (["--features", "classifier", "--num_generated", "0"], "num_generated: 0"),
    "probe_images": (["--probe", "true", "--probe_images", "0"], "probe_images: 0"),
    "features that are no classifier": (["--features", "vae"], "features: vae is a VAE"),
    "features of other images": (["--features", "of_32"], "(3, 32, 32); these are (1, 8, 8)"),
    "features that are not there": (["--features", "nowhere"], "nowhere"),
    "a probe of its own training images": (["--probe", "true", "--split", "train"], "split: train"),
    "labels that are not there": (
        ["--probe", "true", "--data", "npz", "--path", "unlabelled.npz"],
        "one label; a data set with labels",
    ),
}


@pytest.mark.parametrize(("asked", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(there, capsys, asked, told):
    assert main([*DIGITS, "--num", "6", *asked]) == 2
    error = capsys.readouterr().err
    assert error.startswith("resvae: error: ")
    assert error.count("\n") == 1
    assert told in error
