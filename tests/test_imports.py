"""What each door imports: a verb costs only what it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import resvae

HEAVY = {
    "torch",
    "torchvision",
    "pytorch_lightning",
    "torchmetrics",
    "sklearn",
    "matplotlib",
    "jsonargparse",
    "ray",
    "gradio",
}
VERB = "from resvae.cli import main; main({!r})"
DOORS = {
    VERB.format(["--help"]): set(),
    VERB.format(["--version"]): set(),
    VERB.format(["smaple"]): set(),
    VERB.format(["study", "--help"]): set(),
    VERB.format(["fit", "--help"]): set(),
    "import resvae; dir(resvae)": set(),
    "from resvae import VAE, Residual, load, register, save": {"torch"},
    "from resvae import ImageDataModule": HEAVY - {"sklearn", "ray", "gradio"},
    "import resvae.demo.actions": {"torch", "torchvision"},
    VERB.format(["sample", "digits", "--num", "2"]): {"torch", "torchvision", "jsonargparse"},
    VERB.format(["reconstruct", "digits", "--num", "2"]): {"torch", "torchvision", "jsonargparse"},
    VERB.format(["interpolate", "digits", "--num", "1"]): {"torch", "torchvision", "jsonargparse"},
}


@pytest.mark.parametrize(("code", "allowed"), DOORS.items())
def test_it_imports_nothing_of_weight_that_it_does_not_need(tmp_path, code, allowed):
    environment = os.environ | {"PYTHONPATH": str(Path(resvae.__file__).parent.parent)}
    asked = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.splitlines()[-1].split()) <= allowed


def test_every_public_name_is_there():
    assert all(getattr(resvae, name) is not None for name in resvae.__all__)
    assert set(resvae.__all__) <= set(dir(resvae))
    with pytest.raises(AttributeError, match="no attribute Nope"):
        _ = resvae.Nope
