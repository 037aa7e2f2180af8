"""The sweep's table and plot, from what the runs have said of themselves."""

import json
from pathlib import Path

from helpers_runs import rows
from PIL import Image

from resvae.studies.sweep import table

SUMMARY = {"parameters": 1, "seconds": 3600.0, "epochs": 1, "steps": 1, "val_loss": 2.0, "ended": "all 1 epochs done"}


def write(folder: Path, name: str, **more) -> None:
    (folder / name).mkdir()
    arguments = {"widths": [8, 8], "levels": more.pop("levels", None)}
    summary = {**SUMMARY, "name": name, "model": "VAE", "arguments": arguments, **more}
    (folder / name / "summary.json").write_text(json.dumps(summary))


def test_the_reported_figures_stand_beside_the_references_own(tmp_path):
    for depth, model in ((28, "ReferenceVAE"), (40, "VAE")):
        write(tmp_path, f"depth_{depth:04d}", model=model)
    lines = table(tmp_path).splitlines()
    assert "reported validation loss" in lines[0]
    assert "1,794.7" in lines[2]
    assert "1,795.7" not in lines[3]


def test_seeds_are_one_row_with_a_spread_and_a_row_each_beside_it(tmp_path):
    for seed, loss, epochs in ((0, 2.0, 3), (1, 4.0, 3)):
        write(tmp_path, f"levels_0004_seed_{seed}", val_loss=loss, kl=loss / 2, epochs=epochs, levels=4)
    write(tmp_path, "levels_0002_seed_0", val_loss=5.0, levels=2, epochs=9)
    (tmp_path / "levels_0002_seed_1").mkdir()
    (tmp_path / "levels_0002_seed_1/summary.json").write_text("half of")  # it writes just now
    table(tmp_path, "levels")
    two, four = rows(tmp_path / "levels.csv")
    assert (two["levels"], two["seeds"], two["validation loss"], two["validation loss ±"]) == ("2", "1", "5.0", "")
    assert (four["seeds"], four["validation loss"], four["validation loss ±"]) == ("2", "3.0", str(2**0.5))
    assert (four["KL"], four["epochs"], four["parameters"]) == ("1.5", "3", "1")
    runs = [(row["levels"], row["seed"]) for row in rows(tmp_path / "levels_runs.csv")]
    assert runs == [("2", "0"), ("4", "0"), ("4", "1")]


def test_only_runs_that_have_ended_are_averaged_and_each_seed_counts_once(tmp_path):
    write(tmp_path, "depth_0022_seed_0", val_loss=9.0, ended="running")
    assert "running" in table(tmp_path)  # nothing to average yet
    assert not (tmp_path / "depths.csv").exists()
    write(tmp_path, "depth_0016", val_loss=9.0)  # of a sweep without seeds, in the same folder
    write(tmp_path, "depth_0016_seed_0", val_loss=2.0, train_loss=1.0)
    write(tmp_path, "depth_0016_seed_1", val_loss=4.0)  # its training loss was never finite
    write(tmp_path, "depth_0016_seed_2", val_loss=99.0, ended="running")
    table(tmp_path)
    (row,) = rows(tmp_path / "depths.csv")
    assert (row["seeds"], row["validation loss"], row["train loss"]) == ("2", "3.0", "")
    assert row["ended"] == "all 1 epochs done"
    assert len(rows(tmp_path / "depths_runs.csv")) == 5


def test_levels_and_widths_are_told_where_they_differ(tmp_path):
    write(tmp_path, "stochastic_depth_0001", levels=[1, 2])
    write(tmp_path, "stochastic_depth_0002", levels=[1, 2])
    assert "| 1 | 1-2 |" in (text := table(tmp_path, "stochastic_depth"))
    assert "widths" not in text
    write(tmp_path, "stochastic_depth_0003", arguments={"widths": [12, 8]})
    assert "| 12-8 |" in table(tmp_path, "stochastic_depth")


def test_the_plot_is_of_bits_where_all_runs_have_them(tmp_path):
    pictures = []
    for value, bits in (("1-1", 3.0), ("0002", 2.5), ("0003", None)):
        write(tmp_path, f"levels_{value}", train_loss=1.0, **({"bits_per_dim": bits} if bits else {}))
        table(tmp_path, "levels")
        with Image.open(tmp_path / "levels.png") as picture:
            assert picture.width > 500
            pictures.append(picture.tobytes())
    assert len(set(pictures)) == 3
