"""``resvae bench`` from the command line."""

import json

import pytest
from helpers_runs import refused

from resvae.cli import main

QUICK = ["bench", "--config", "configs/quickstart.yaml", "--data.batch_size", "8", "--seconds", "0.01", "--num", "2"]


def test_tables_are_printed_and_written(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert main([*QUICK, "--depths", "16,22", "--batch_sizes", "4,8", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["configuration"] == "quickstart"
    by_depth = found["sections"]["The training step by depth"]
    assert [row["depth"] for row in by_depth] == [16, 22]
    assert by_depth[1]["memory, MiB"] > by_depth[0]["memory, MiB"]
    assert all(row["ms per layer"] > 0 for row in by_depth)
    sizes = found["sections"]["The training step by batch size"]
    assert sizes[1]["memory, MiB"] > sizes[0]["memory, MiB"]
    for row in (*by_depth, *sizes):
        assert row["images/s"] > 0
        assert row["fraction of the ceiling"] > 0
    whole = found["sections"]["The whole"]
    assert [row["what"] for row in whole] == ["training step", "sampling, 2 at once"]
    markdown = out.with_suffix(".md").read_text()
    assert markdown in text
    assert all(f"### {title}\n" in markdown for title in found["sections"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--seconds", "0"], "seconds: 0.0 is not allowed; more than 0"),
        (["--num", "0"], "num: 0 is not allowed"),
        (["--depths", "16;22"], "depths: '16;22' is not allowed; give numbers with commas between"),
        (["--out", "nowhere/bench.json"], "out: nowhere/bench.json cannot be written"),
        (["--out", "bench.txt"], "out: bench.txt is not allowed; end it with .json"),
        (["--depths", "17"], "depth: 17"),
        (["--memory_budgets", "1GiB,much"], "memory_budget: much is not allowed"),
        (["--memory_budgets", "1KiB"], "memory_budget: 0.0 MiB is not enough"),
        (["--peers", "true"], "peers: images (1, 8, 8) are not allowed"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_measured(options, line, capsys, monkeypatch):
    monkeypatch.setattr("resvae.verbs.bench.take_turns", None)
    assert main([*QUICK, *options]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_memory_budget_is_kept_to(tmp_path):
    out = tmp_path / "bench.json"
    deep = [
        "--model.vae.init_args.depth",
        "64",
        "--data.batch_size",
        "32",
        "--model.precision",
        "fp32",
        "--memory_budgets",
        "12MiB",
    ]
    assert main([*QUICK, *deep, "--out", str(out)]) == 0
    without, within = json.loads(out.read_text())["sections"]["The training step by memory budget"]
    assert [without["memory budget"], within["memory budget"]] == ["none", "12MiB"]
    assert within["memory, MiB"] < without["memory, MiB"]


def test_a_classifier_is_refused(capsys):
    refused(capsys, ["bench", "--config", "configs/digits_classifier.yaml", "--depths", "28"], "trains a classifier")
