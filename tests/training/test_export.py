"""`resvae export`: what is given away is what was scored."""

import json

import pytest
import torch

from resvae import load
from resvae.cli import main
from resvae.evaluation import evaluate
from resvae.storage import WEIGHTS
from resvae.training.run import data_of

FIT = [
    "fit",
    "--data.name=digits",
    "--data.limit=100",
    "--model.vae=resvae.HierarchicalVAE",
    "--model.vae.depth=16",
    "--model.vae.levels=2",
    "--model.vae.image_shape=[1,8,8]",
    "--model.vae.widths=[8,8]",
    "--model.vae.strides=[1,2]",
    "--trainer.max_epochs=1",
    "--tracker=none",
    "--images.every_n_epochs=0",
    "--trainer.enable_progress_bar=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main([*FIT, f"--runs={runs}", "--name=tiny"]) == 0
    return runs / "tiny"


@pytest.fixture(scope="module")
def exported(run):
    out = run.parent / "given-away"
    assert main(["export", str(run), str(out), "--half", "true", "--num_samples", "2"]) == 0
    return out


def test_the_scores_are_those_of_the_weights_on_disk(exported):
    report = json.loads((exported / "report.json").read_text())
    vae = load(exported)
    images = data_of(str(exported), None, None, "data", vae.image_shape).images("test")
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
    summary = json.loads((run / "summary.json").read_text())
    report = json.loads((exported / "report.json").read_text())
    for part in ("given-away", "HierarchicalVAE", "digits", summary["hardware"], f"{report['bits_per_dim']:.4f}"):
        assert part in card


def test_an_exported_model_knows_its_data(exported, capsys):
    out = exported.parent / "r.png"
    assert main(["reconstruct", str(exported), "--num", "4", "--out", str(out)]) == 0
    assert out.is_file()


@pytest.mark.parametrize(
    ("run_name", "out", "words"),
    [("tiny", "given-away", ["out: ", "is there already"]), ("missing", "new", ["model: ", "missing"])],
)
def test_refuses_in_one_line(exported, capsys, run_name, out, words):
    assert main(["export", str(exported.parent / run_name), str(exported.parent / out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words)
    assert not (exported.parent / "new").exists()
