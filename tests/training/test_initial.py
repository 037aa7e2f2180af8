"""Training that begins with the weights of another model: taken whole, in part when told to, or refused."""

import pytest
import torch
from helpers_runs import CLASSIFIER, VAE, checkpoint, command, files, refused

from resvae import load
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.models import VAE as Vae
from resvae.models import ResNetClassifier
from resvae.storage import save
from resvae.training.initial import start_from

SMALL = {"image_shape": (1, 8, 8), "widths": (8, 8), "strides": (1, 2)}
NOTHING = "--trainer.max_steps 1 --model.optimizer torch.optim.SGD --model.optimizer.init_args.lr 0"


@pytest.fixture
def first(tmp_path):
    """A model like that of the configuration, with weights of its own."""
    torch.manual_seed(7)
    return save(Vae((1, 1), 4, **SMALL), tmp_path / "first")


def test_a_run_begins_with_the_weights_of_a_model(tmp_path, first, capsys):
    assert main(command(tmp_path, f"{NOTHING} --init_from {first}")) == 0
    assert f"weights: 36 of 36 tensors are from {first}" in capsys.readouterr().out
    trained, given = load(tmp_path / "runs/run").state_dict(), load(first).state_dict()
    assert all(torch.equal(trained[name], value) for name, value in given.items())


def test_a_resume_goes_on_with_its_own_weights(tmp_path, first, capsys):
    assert main(command(tmp_path, f"--init_from {first}")) == 0
    assert main(command(tmp_path, f"--init_from {first} --ckpt_path last --trainer.max_epochs 2")) == 0
    assert capsys.readouterr().out.count("tensors are from") == 1
    assert checkpoint(tmp_path / "runs/run")["epoch"] == 1


@pytest.mark.parametrize("config", [VAE.replace("latent_dim: 4", "latent_dim: 5"), CLASSIFIER], ids=["vae", "classes"])
def test_what_does_not_fit_is_refused_or_left_out(tmp_path, first, capsys, config):
    before = files(tmp_path)
    arguments = command(tmp_path, f"{NOTHING} --init_from {first}", config)
    if "classifier" in config:  # another network: only some names are the same
        said = ("tensors of", "encoder.stem.1.weight missing, here 16")
    else:
        said = ("3 tensors of", "head.weight 8x128, here 10x128", "init_partial true takes those that fit")
    refused(capsys, arguments, "init_from: ", *said)
    assert files(tmp_path) - {"config.yaml"} == before
    if "classifier" not in config:
        assert main([*arguments, "--init_partial", "true"]) == 0
        trained, given = load(tmp_path / "runs/run").state_dict(), load(first).state_dict()
        assert torch.equal(trained["encoder.stem.0.weight"], given["encoder.stem.0.weight"])


def test_a_classifier_takes_the_encoder_of_a_vae(first):
    torch.manual_seed(8)
    classifier = ResNetClassifier(Vae((1, 1), 4, **SMALL).encoder)
    given, before = load(first).encoder.state_dict(), classifier.classifier.weight.clone()
    with pytest.raises(ResvaeError, match=r"init_from: .* tensors of .* do not fit this model"):
        start_from(classifier, str(first), partial=False)
    said = start_from(classifier, str(first), partial=True)
    assert said.startswith(f"weights: {len(given)} of {len(given) + 2} tensors")
    for name, value in classifier.encoder.state_dict().items():
        assert torch.equal(value, given[name])
    assert torch.equal(classifier.classifier.weight, before)
