"""`resvae export`: what is given away is what was scored."""

import pytest
import torch
from helpers_runs import CLASSIFIER, command, read, refused

from resvae import load
from resvae.cli import main
from resvae.evaluation import evaluate
from resvae.runs.data import data_of
from resvae.storage import WEIGHTS

HIERARCHICAL = """
    --name tiny --model.vae resvae.HierarchicalVAE --model.vae.depth 16 --model.vae.levels 2
    --model.vae.image_shape [1,8,8] --model.vae.widths [8,8] --model.vae.strides [1,2]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    assert main(command(folder, HIERARCHICAL)) == 0
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def exported(run):
    out = run.parent / "given-away"
    assert main(["export", str(run), str(out), "--half", "true", "--num_samples", "2"]) == 0
    return out


def test_the_scores_are_those_of_the_weights_on_disk(exported):
    report = read(exported / "report.json")
    vae = load(exported)
    images = data_of(str(exported), image_shape=vae.image_shape).images("test")
    again = evaluate(vae, images.split(250), num_samples=2)
    assert again.elbo == pytest.approx(report["elbo"], rel=1e-6)
    assert report["images"] == len(images)
    assert report["source"] == "given-away"


def test_half_is_half_as_large_and_loads_as_float32(run, exported):
    assert all(p.dtype == torch.float32 for p in load(exported).parameters())
    whole = run.parent / "whole"
    assert main(["export", str(run), str(whole)]) == 0
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (exported, whole)]
    assert sizes[0] < 0.7 * sizes[1]
    for half, full in zip(load(exported).parameters(), load(whole).parameters(), strict=True):
        torch.testing.assert_close(half, full, rtol=1e-3, atol=1e-6)


def test_the_card_says_what_it_is_and_how_it_came_about(run, exported):
    card = (exported / "README.md").read_text()
    summary = read(run / "summary.json")
    report = read(exported / "report.json")
    for part in ("given-away", "HierarchicalVAE", "digits", summary["hardware"], f"{report['bits_per_dim']:.4f}"):
        assert part in card


def test_an_exported_model_knows_its_data(exported, capsys):
    out = exported.parent / "r.png"
    assert main(["reconstruct", str(exported), "--num", "4", "--out", str(out)]) == 0
    assert out.is_file()


def test_a_classifier_is_given_away_as_the_feature_network_that_it_can_be(tmp_path, run):
    assert main(command(tmp_path, "--data.limit null --model.ema_decay 0 --trainer.max_epochs 2", CLASSIFIER)) == 0
    out = tmp_path / "my judge"
    assert main(["export", str(tmp_path / "runs/run"), str(out)]) == 0
    report = read(out / "report.json")
    data = data_of(str(out))
    assert report["error"] == evaluate(load(out), data).error
    assert report["error"] < 0.8
    assert "resvae evaluate MODEL --features 'my judge'" in (out / "README.md").read_text()
    assert main(["evaluate", str(run), "--num=20", f"--features={out}", f"--out={tmp_path / 'report.json'}"]) == 0
    assert read(tmp_path / "report.json")["distances"]["fid"] > 0


@pytest.mark.parametrize(
    ("run_name", "arguments", "words"),
    [
        ("tiny", ["given-away"], ["out: ", "is there already"]),
        ("missing", ["new"], ["model: ", "missing"]),
        ("tiny", ["new", "--num_samples=0"], ["num_samples: 0"]),
    ],
)
def test_refuses_in_one_line_and_leaves_nothing(exported, capsys, run_name, arguments, words):
    out, *options = arguments
    folder = exported.parent
    refused(capsys, ["export", str(folder / run_name), str(folder / out), *options], *words)
    assert not list(folder.glob("*new*")) + list(folder.glob(".*"))
