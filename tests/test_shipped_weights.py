"""The models inside the package: small, described, and as good as their cards say."""

import json

import pytest
import torch

from resvae import load
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.evaluation import distances, evaluate, feature_network, generate
from resvae.models import ImageVAE
from resvae.runs.data import data_of
from resvae.runs.folder import SHIPPED
from resvae.storage import build, describe, shipped

VAES = ["digits", "cifar10-single-latent", "cifar10-factorised", "cifar10-hierarchical", "cifar10-map"]


def test_there_is_one_of_each_kind():
    assert {*VAES, "cifar10-classifier"} == set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_it_is_small_and_described(name):
    files = list((SHIPPED / name).iterdir())
    assert {file.name for file in files} == {
        "README.md",
        "config.json",
        "config.yaml",
        "model.safetensors",
        "report.json",
    }
    assert sum(file.stat().st_size for file in files) < 10e6
    report = json.loads((SHIPPED / name / "report.json").read_text())
    card = (SHIPPED / name / "README.md").read_text()
    assert report["source"] == name
    figure = f"{report['bits_per_dim']:.4f}" if name in VAES else f"{100 * report['error']:.2f}"
    assert f"| {figure} |" in card


@pytest.mark.parametrize("name", VAES)
def test_it_samples(name, tmp_path, capsys):
    out = tmp_path / "samples.png"
    assert main(["sample", name, "--num", "4", "--out", str(out)]) == 0
    assert out.is_file()
    assert torch.isfinite(load(name).sample(2)).all()


def test_another_name_is_refused_with_the_names_there_are():
    with pytest.raises(ResvaeError, match="cifar10-hierarchical"):
        load("cifar100-hierarchical")


def read(name):
    """The data that a shipped model was trained on, or a skipped test where they are not available."""
    try:
        data = data_of(name)
        data.images("test")
        return data
    except (ResvaeError, OSError) as error:
        pytest.skip(f"no data: {error}")


@pytest.mark.slow
def test_the_classifier_is_wrong_as_often_as_its_card_says():
    report = json.loads((SHIPPED / "cifar10-classifier/report.json").read_text())
    assert evaluate(load("cifar10-classifier"), read("cifar10-classifier")).error == pytest.approx(
        report["error"], abs=0.001
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", VAES)
def test_its_scores_are_those_of_its_card(name):
    report = json.loads((SHIPPED / name / "report.json").read_text())
    again = evaluate(load(name), read(name), seed=report["seed"], split=report["split"], num=report["images"])
    # another machine's convolutions round otherwise, and its noise is another's; the mean over the images is not
    assert again.bits_per_dim == pytest.approx(report["bits_per_dim"], abs=0.005)
    assert again.psnr == pytest.approx(report["psnr"], abs=0.05)


@pytest.mark.slow
def test_fid_puts_new_weights_behind_one_latent_vector_and_that_behind_levels():
    real = read("cifar10-factorised").images("test")[:1000].split(250)
    network = feature_network("cifar10-classifier", (3, 32, 32), load)
    levels = load("cifar10-factorised")
    torch.manual_seed(0)
    new = build(describe(levels))
    assert isinstance(new, ImageVAE)
    made = [generate(vae, 1000) for vae in (new, load("cifar10-single-latent"), levels)]
    fids = [distances(network, real, images, "cifar10-classifier").fid for images in (*made, real)]
    print(f"FID of new weights, one latent vector, levels, the test images themselves: {fids}")
    assert fids == sorted(fids, reverse=True)
    assert fids[-1] == pytest.approx(0, abs=1e-3)
