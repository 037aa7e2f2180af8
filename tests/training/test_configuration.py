"""A configuration that a run wrote describes that run's model, also where arguments have been added since."""

from pathlib import Path

import pytest
import yaml
from helpers_runs import checkpoint, command, logged, refused

from resvae.cli import main
from resvae.training.configuration import parse, read_configuration

HIERARCHICAL = """
data: {name: digits, batch_size: 32, limit: 64, validation: 100}
model:
  vae:
    class_path: resvae.HierarchicalVAE
    init_args:
      {depth: [1, 1], levels: [1, 1], latent_channels: 2, image_shape: [1, 8, 8], widths: [4, 8], strides: [1, 2],
       level_block: false, posterior: concat_3x3}
trainer: {max_epochs: 1, accelerator: cpu}
tracker: none
"""


def of_its_time(path: Path) -> None:
    """The file as it was before the newest arguments of ``HierarchicalVAE``."""
    header, _, text = path.read_text().partition("\n")
    tree = yaml.safe_load(text)
    for name in ("patch", "level_block", "posterior"):
        del tree["model"]["vae"]["init_args"][name]
    del tree["model"]["vae"]["init_args"]["block"]["min_inner"]
    path.write_text(f"{header}\n{yaml.safe_dump(tree)}")


def test_an_older_run_is_validated_and_resumed_with_its_own_file(tmp_path, capsys):
    assert main(command(tmp_path, config=HIERARCHICAL)) == 0
    run = tmp_path / "runs/run"
    before = logged(run, "val/loss")[-1]
    of_its_time(run / "config.yaml")
    arguments = read_configuration(run / "config.yaml").values.model.vae.init_args
    assert (arguments.level_block, arguments.posterior, arguments.patch) == (False, "concat_3x3", 1)
    assert main(["validate", str(run)]) == 0
    assert f'"loss": {before:.4f}'.rstrip("0") in capsys.readouterr().out
    assert main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert checkpoint(run, "last")["epoch"] == 2 - 1


def test_a_file_of_ones_own_has_todays_defaults(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model:\n  vae:\n    class_path: resvae.HierarchicalVAE\n    init_args:\n      depth: 28\n")
    configuration, _ = parse(["--config", str(mine)])
    assert configuration.values.model.vae.init_args.level_block is True
    assert configuration.values.model.vae.init_args.posterior == "concat_1x1"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name: run\n".encode("utf-16"), "is not text in UTF-8"),
        (b"name: caf\xe9\n", "is not text in UTF-8"),
        (b"", "holds no fields"),
        (b"- 1\n- 2\n", "holds no fields"),
        (b"5\n", "holds no fields"),
        (b"data:\n\tname: digits\n", "line 2"),
        (b"name: \x00\n", "control characters"),
        (b"name: [1, 2\n", "parsing"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path, capsys, content, line):
    path = tmp_path / "odd.yaml"
    if content is not None:
        path.write_bytes(content)
    for verb in ("fit", "sweep"):
        refused(capsys, [verb, "--config", str(path), "--runs", str(tmp_path / "runs")], line)
    assert not (tmp_path / "runs").exists()


def test_a_mark_of_the_byte_order_is_no_matter(tmp_path):
    arguments = command(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert main(arguments) == 0
