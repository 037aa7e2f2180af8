"""A study of variants: each trained and tested once, a table of the last epoch, published figures where they fit."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import CLASSIFIER, VAE, logged, printed, read, refused, rows
from matplotlib.figure import Figure
from PIL import Image

from resvae.cli import main
from resvae.studies import degradation, processes, variants
from resvae.studies.variants import Result, Study, Variant, curves, result


@pytest.fixture
def measured_runs(not_run, monkeypatch) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Runs that only say that they have ended, and test images on which the n-th of them errs n times in ten."""

    def measured(run: Path, variant: str, depth: int, seed: int) -> Result:
        error = read(run / "summary.json")["n"] / 10
        history = {name: [0.9, error] for name in ("train/error", "val/error", "train/loss", "val/loss")}
        test = {"test/error": error, "test/loss": 0.5}
        return Result(variant, depth, seed, 7, "0f", "cifar10", "Classifiers.", 2, history, test)

    monkeypatch.setattr(variants, "result", measured)
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: path.touch())  # drawing takes the most time
    return not_run


def arguments(folder: Path, depths: str, more: str = "", config: str = CLASSIFIER) -> list[str]:
    (folder / "config.yaml").write_text(config.replace("max_epochs: 1", "max_epochs: 2"))
    options = f"--data.limit 128 --model.ema_decay 0 --out {folder}/s --depths {depths} {more}"
    return f"study degradation --config {folder}/config.yaml {options}".split()


def table(folder: Path, name: str = "degradation") -> list[dict[str, str]]:
    return rows(folder / f"s/{name}.csv")


@pytest.fixture
def one(monkeypatch) -> None:
    """A study of one variant, in the place of another."""
    study = Study("few", "one", lambda _: [Variant("no shortcut", {"merge": "none"}, {"reported": "1"})], "", "16")
    monkeypatch.setattr(degradation, "main", study.main)


def test_a_run_is_tested_once_and_the_table_is_of_its_last_epoch(tmp_path, one, in_process, capsys):
    command = arguments(tmp_path, "8", "--data.batch_size 32")
    assert main(command) == 0
    run = tmp_path / "s/no_shortcut_depth_0008_seed_0"
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["model"]["classifier"]["init_args"]["block"]["merge"] == "none"
    (row,) = table(tmp_path, "few")
    assert (row["network"], row["depth"], row["epochs"]) == ("no shortcut", "8", "2")
    assert "reported" not in row  # these are digits
    for split, word in (("train", "training"), ("val", "validation")):
        assert float(row[f"{word} error, %"]) == pytest.approx(100 * logged(run, f"{split}/error")[1])
    assert row["parameters"] == str(read(run / "summary.json")["parameters"])
    text = (tmp_path / "s/few.md").read_text()
    assert "trained on 128 images of digits, validated on 60, tested on all 299 test images. Seeds: 0." in text

    capsys.readouterr()
    told = printed(capsys, "test", run, f"--ckpt_path {run}/checkpoints/last.ckpt")
    assert float(row["test error, %"]) == pytest.approx(100 * told["error"], abs=0.006)
    assert float(row["test loss, nats"]) == pytest.approx(told["loss"], abs=1e-4)

    shutil.rmtree(run / "checkpoints")
    assert main(command) == 0  # without the checkpoint, which could not be tested again
    assert len(in_process) == 1
    assert (tmp_path / "s/few.md").read_text() == text
    assert text in capsys.readouterr().out


def test_a_vae_is_measured_in_bits(tmp_path, one, in_process):
    assert main(arguments(tmp_path, "16", config=VAE)) == 0
    assert len(in_process) == 1
    (row,) = table(tmp_path, "few")
    run = tmp_path / "s/no_shortcut_depth_0016_seed_0"
    assert float(row["validation bits/dim"]) == pytest.approx(logged(run, "val/bits_per_dim")[-1])
    assert 3 < float(row["test bits/dim"]) < 9
    assert "reported" not in row
    (run / "checkpoints/best.ckpt").write_text("not this one")
    measured = result(run, "", 16, 0)
    assert measured.figures["test/bits_per_dim"] == pytest.approx(float(row["test bits/dim"]))


def test_seeds_are_one_row_and_published_figures_stand_beside_cifar10(tmp_path, measured_runs):
    assert main(arguments(tmp_path, "20,14", "--seeds 0,3")) == 0
    assert len(measured_runs) == 12
    last = measured_runs[-1][0]
    block = last["model"]["classifier"]["init_args"]["block"]
    assert (last["model"]["classifier"]["init_args"]["depth"], last["seed_everything"]) == (14, 3)
    assert (block["merge"], block["gate_bias"], block["residual_scale"]) == ("highway", -1.4, 1.0)
    found, kinds = table(tmp_path), ("plain", "residual", "highway")
    cells = [(row["network"], row["depth"], row["seeds"]) for row in found]
    assert cells == [(kind, depth, "2") for kind in kinds for depth in ("20", "14")]
    assert [row["reported test error, %"] for row in found] == ["8.7 to 9.6", "", "8.75", "", "", ""]
    assert float(found[0]["test error, %"]) == 15.0  # 10 and 20
    assert float(found[0]["test error, % ±"]) == pytest.approx(50**0.5)
    runs = table(tmp_path, "degradation_runs")
    assert [float(row["test error, %"]) for row in runs] == pytest.approx([10.0 * n for n in range(1, 13)])
    assert {row["weights"] for row in runs} == {"0f"}
    assert {path.name for path in tmp_path.glob("s/*.png")} == {"degradation.png", "degradation_curves.png"}


def test_a_run_that_was_trained_again_is_tested_again(tmp_path, measured_runs):
    command = arguments(tmp_path, "8")
    assert main(command) == 0
    again = tmp_path / "s/highway_depth_0008_seed_0"
    summary = read(again / "summary.json")
    (again / "summary.json").write_text(json.dumps(summary | {"seconds": 2.0, "n": 4}))
    assert main(command) == 0
    assert [float(row["test error, %"]) for row in table(tmp_path)] == [10.0, 20.0, 40.0]


def test_what_has_not_ended_is_not_in_the_table(tmp_path, measured_runs, instead, capsys):
    command = arguments(tmp_path, "8")
    (tmp_path / "s/residual_depth_0008_seed_0").mkdir(parents=True)
    ends = processes.subprocess.Popen

    def end(call, **options):
        return ends([sys.executable, "-m", "resvae", *call], **options).wait()

    instead(lambda call, **options: 1 if "residual_depth_0008_seed_0" in call else end(call, **options))
    assert main(command) == 2
    assert "failed: network residual, depth 8, seed 0; the same command resumes" in capsys.readouterr().err
    assert [row["network"] for row in table(tmp_path)] == ["plain", "highway"]
    instead(end)
    assert main(command) == 0
    assert [row["network"] for row in table(tmp_path)] == ["plain", "residual", "highway"]
    assert len(measured_runs) == 3


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("--data.limit 64", "was trained with data.limit 128, not 64"),
        ("--model.classifier.num_classes 11", "num_classes 10, not 11"),
        ("--depths 8-14", "depths: '8-14' is not allowed"),
        ("--config none.yaml", "none.yaml does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path, measured_runs, capsys, more, told):
    assert main(arguments(tmp_path, "8")) == 0
    before = (tmp_path / "s/degradation.md").read_text()
    refused(capsys, arguments(tmp_path, "8", more), told)
    assert len(measured_runs) == 3
    assert (tmp_path / "s/degradation.md").read_text() == before


def test_curves_are_panels_of_lines(tmp_path, drawn):
    history = {"train/error": [0.5, 0.25], "val/error": [0.6], "val/loss": [1.0]}  # validated after the second
    results = [Result(name, depth, 0, 1, "", "", "", 2, history, {}) for name in ("a", "b", "c") for depth in (8, 14)]
    curves(results, tmp_path / "x.png", lambda each, _: each.variant, lambda each: f"{each.depth} layers")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    lines = [(line.get_linestyle(), line.get_color(), line.get_xydata().tolist()) for line in figure.axes[1].lines]
    ways = (("--", [[1, 50], [2, 25]]), ("-", [[2, 60]]))
    assert lines == [(style, color, points) for color in ("C0", "C1") for style, points in ways]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["8 layers", "14 layers"]
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 1500
