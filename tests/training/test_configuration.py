"""A configuration that a run wrote describes that run's model, also where arguments have been added since."""

from pathlib import Path

import numpy as np
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


SHAPELESS = {
    "vae": "model: {vae: {class_path: resvae.VAE, init_args: {depth: 16, widths: [4, 8], strides: [1, 2]}}}",
    "classifier": "model: {classifier: {depth: 8}}",
}


@pytest.mark.parametrize("kind", SHAPELESS)
def test_the_model_takes_the_images_of_the_data_unless_it_is_said_which(tmp_path, capsys, kind):
    config = f"data: {{name: digits, limit: 64, validation: 100}}\n{SHAPELESS[kind]}\ntrainer: {{max_steps: 1}}"
    assert main(command(tmp_path, config=config)) == 0
    written = read_configuration(tmp_path / "runs/run/config.yaml")
    assert written.shaped
    assert list(written.values.model[kind].init_args.image_shape) == [1, 8, 8]
    assert main(command(tmp_path, "--trainer.max_steps 2 --ckpt_path last", config=config)) == 0
    larger = command(tmp_path, "--name larger --data.image_size 16", config=config)
    assert main(larger) == 0
    written = read_configuration(tmp_path / "runs/larger/config.yaml")
    assert list(written.values.model[kind].init_args.image_shape) == [1, 16, 16]
    given = config.replace("depth:", "image_shape: [3, 8, 8], depth:")
    refused(capsys, command(tmp_path, "--name other", config=given), f"model.{kind}.image_shape: (3, 8, 8)")
    one = f"--model.{kind}.image_shape [3,8,8] --name other"
    refused(capsys, command(tmp_path, one, config=config), f"model.{kind}.image_shape: (3, 8, 8) is not allowed")


@pytest.mark.parametrize(("size", "shape"), [("", [3, 12, 12]), ("--data.image_size 8", [3, 8, 8])])
def test_so_it_does_where_these_must_be_read_to_tell(tmp_path, size, shape):
    np.savez(tmp_path / "some.npz", images=np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), np.uint8))
    options = f"--data.path {tmp_path}/some.npz --data.validation 10 {size}"
    config = f"data: {{name: npz}}\n{SHAPELESS['vae']}\ntrainer: {{max_steps: 1}}"
    assert main(command(tmp_path, options, config=config)) == 0
    written = read_configuration(tmp_path / "runs/run/config.yaml").values.model.vae.init_args
    assert list(written.image_shape) == shape


def test_each_run_of_a_sweep_takes_the_images_of_the_data(tmp_path):
    config = f"data: {{name: digits, limit: 64, validation: 100}}\n{SHAPELESS['vae']}\ntrainer: {{max_steps: 1}}"
    _, *rest = command(tmp_path, config=config)
    assert main(["sweep", *rest, "--depths", "16,28", "--match", "params"]) == 0
    for depth in (16, 28):
        (run,) = (tmp_path / "runs").glob(f"*/*{depth}*/config.yaml")
        assert list(read_configuration(run).values.model.vae.init_args.image_shape) == [1, 8, 8]


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
