"""Every configuration builds its model and its data module, without reading data."""

from pathlib import Path

import pytest
import torch
import yaml
from resvae.training.run import RunCLI

from resvae.data import ImageDataModule
from resvae.models import ImageVAE, ResNetClassifier
from resvae.training import LitClassifier, LitVAE

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_there_are_some():
    assert {path.stem for path in CONFIGS} >= {
        "quickstart",
        "cifar10_depth",
        "folder",
        "cifar10_classifier",
        "he_resnet20",
    }


@pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter.*")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_builds_model_and_data(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()  # configs/folder.yaml's own
    arguments = ["--config", str(config)]
    classifies = "classifier" in yaml.safe_load(config.read_text())["model"]
    cli = RunCLI.__new__(RunCLI)
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, subcommand: None)
    with torch.device("meta"):  # no weights are needed
        cli.__init__(
            LitClassifier if classifies else LitVAE,
            ImageDataModule,
            args=["fit", *arguments, "--tracker", "none", "--trainer.accelerator", "cpu"],
            save_config_callback=None,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
        )
    assert isinstance(cli.model.model, ResNetClassifier if classifies else ImageVAE)
    assert isinstance(cli.datamodule, ImageDataModule)
    assert not cli.datamodule._sets  # nothing was read
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_is_a_page_that_begins_with_the_command_and_its_cost(config):
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"--config configs/{config.name}" in lines[0]
    assert lines[1].startswith("# ")
    assert len(lines) <= 60
