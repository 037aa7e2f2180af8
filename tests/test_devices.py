"""Where a verb computes: the option, the variable, the machine's own."""

import os

import pytest
import torch
from helpers_runs import command, refused

from resvae.cli import main
from resvae.devices import chosen, double
from resvae.environment import DEVICE
from resvae.errors import ResvaeError


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.setenv(DEVICE, "")  # so that it is put back


def test_the_machine_s_own_is_chosen_unless_another_is_named(monkeypatch):
    assert chosen() == (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    monkeypatch.setenv(DEVICE, "meta")
    assert chosen() == torch.device("meta")
    for name in ("nowhere", "cuda:99"):
        monkeypatch.setenv(DEVICE, name)
        with pytest.raises(ResvaeError, match=f"device: {name} is not here; this machine has cpu"):
            chosen()


@pytest.mark.parametrize("option", ["--device cpu", "--device=cpu"])
def test_every_verb_takes_it(tmp_path, option, capsys):
    out = tmp_path / "x.png"
    assert main([*["sample", "digits", "--num", "2"], *option.split(), "--out", str(out)]) == 0
    assert os.environ[DEVICE] == ""  # the next command in this process has its own
    assert out.is_file()
    assert main(command(tmp_path, f"--trainer.max_steps 1 {option}")) == 0
    assert "accelerator: cpu" in (tmp_path / "runs/run/config.yaml").read_text()


@pytest.mark.parametrize("verb", ["sample digits", "fit --config configs/quickstart.yaml", "evaluate digits"])
def test_a_device_that_is_not_here_is_one_line(verb, capsys, tmp_path):
    where = ["--runs", str(tmp_path)] if verb.startswith("fit") else []
    refused(capsys, [*verb.split(), *where, "--device", "nowhere"], "device: nowhere is not here")
    refused(capsys, [*verb.split(), "--device"], "device: a name is missing")
    assert list(tmp_path.iterdir()) == []


def test_float64_is_where_it_can_be():
    x = torch.ones(3)
    assert double(x).dtype == torch.float64
    assert double(x.to("meta")).device.type == "meta"

    class Apple(torch.Tensor):
        """What a tensor on Apple's GPU is like: it has no float64."""

        device = torch.device("mps")

        def double(self):
            raise TypeError("MPS has no float64")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    assert torch.equal(double(x.as_subclass(Apple)), x.double())
