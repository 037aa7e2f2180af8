"""Every configuration builds its model and its data module, without reading data."""

import pytest
import torch
import yaml
from helpers_runs import CONFIGS

from resvae.data import ImageDataModule
from resvae.training.configuration import KINDS, parse

PATHS = sorted(CONFIGS.glob("*.yaml"))


def test_there_are_some():
    names = {"quickstart", "cifar10_depth", "folder", "cifar10_classifier", "he_resnet20"}
    assert {path.stem for path in PATHS} >= names


@pytest.mark.parametrize("config", PATHS, ids=lambda path: path.stem)
def test_it_builds_model_and_data(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()  # configs/folder.yaml's own
    configuration, _ = parse(["--config", str(config)])
    with torch.device("meta"):  # no weights are needed
        parts = configuration.instantiate()
    assert configuration.field in yaml.safe_load(config.read_text())["model"]
    assert isinstance(parts.model, KINDS[configuration.field])
    assert isinstance(parts.data, ImageDataModule)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]  # nothing was read or written


@pytest.mark.parametrize("config", PATHS, ids=lambda path: path.stem)
def test_it_is_a_page_that_begins_with_the_command_and_its_cost(config):
    lines = config.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"--config configs/{config.name}" in lines[0]
    assert lines[1].startswith("# ")
    assert len(lines) <= 60
