"""`resvae export --format onnx` and `pt2`: other programs compute what the model computes, for any number of images."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers_runs import files, refused
from sklearn.datasets import load_digits
from torch.distributions import Distribution, Independent, Normal

import resvae
from resvae import VAE, HierarchicalVAE, ReferenceVAE, ResNetClassifier, load
from resvae.cli import main
from resvae.models import reference
from resvae.probability import Likelihood
from resvae.probability.likelihoods import LIKELIHOODS
from resvae.storage import save, shipped
from resvae.verbs.graphs import write_graphs

EXTRA = "the extra onnx is not installed: pip install '.[onnx]'"
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason=EXTRA)
onnx, pt2 = pytest.param("onnx", marks=needs_onnx), "pt2"
SIZES = {"image_shape": (1, 8, 8), "widths": (8, 8), "strides": (1, 2)}
SUBPIXEL = {"name": "subpixel_mixture", "num_mixtures": 3, "width": 8}


def digits(shape, num=17):
    """Real images of this shape: digits, a little shifted from channel to channel, scaled by nearest neighbours."""
    x = torch.tensor(load_digits().images[:num] / 16).float()[:, None]
    x = torch.cat([x.roll(channel, -1) * (1 - channel / 4) for channel in range(shape[0])], 1)
    return torch.nn.functional.interpolate(x, size=shape[1:])


def trained(model):
    """The model with statistics and weights that are not those of the start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.train().figures(digits(model.image_shape), torch.zeros(17, dtype=torch.long))
    return model.eval()


def reader(path):
    """What a program makes of the file that does not know this package: tensor to tensors."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda x: out if isinstance(out := program(x), tuple) else (out,)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape[0] == "N"
    return lambda x: [torch.from_numpy(each) for each in session.run(None, {given.name: x.numpy()})]


def agree(found, *wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-4 * max(1, b.abs().max().item()))


def check(model, folder, suffix):
    """All files of a folder against the model: on real and on random images, in batches of any size."""
    real = digits(model.image_shape)
    if isinstance(model, ResNetClassifier):
        classify = reader(folder / f"classifier.{suffix}")
        for x in (real, real[:1], torch.rand(5, *model.image_shape)):
            agree(classify(x), model(x))
        return
    encode, decode = (reader(folder / f"{part}.{suffix}") for part in ("encoder", "decoder"))
    for x in (real, real[:1], real[:2], torch.rand(5, *model.image_shape)):
        mean, stddev = encode(x)
        agree([mean, stddev], model.at_mean(x)[0], torch.cat([s.flatten(1) for _, s in model.latents(x)], 1))
        (pictures,) = decode(mean)
        agree([pictures], model.reconstruct(x))
        assert pictures.dtype == torch.float32
        assert ((pictures >= 0) & (pictures <= 1)).all()
    z = model.sample_prior(7).detach()
    agree(decode(z), model.decode(z).mean.clamp(0, 1))
    assert not torch.equal(*decode(z[:1]), *decode(z[1:2]))


@pytest.mark.parametrize("suffix", [onnx, pt2])
def test_the_command_writes_what_other_programs_run(suffix, tmp_path, capsys):
    assert main(["export", "digits", str(tmp_path / "graphs"), "--format", suffix]) == 0
    names = [f"{part}.{suffix}" for part in ("encoder", "decoder")]
    assert files(tmp_path) == {f"graphs/{name}" for name in (*names, "config.json")}
    out, error = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [*names, f"wrote {tmp_path / 'graphs'}"]
    assert error == ""
    check(load("digits"), tmp_path / "graphs", suffix)
    told = json.loads((tmp_path / "graphs/config.json").read_text())
    latent = told["arguments"]["latent_dim"]
    assert told["format"] == suffix
    assert told["files"][names[0]] == {"x": ["N", 1, 8, 8], "mean": ["N", latent], "stddev": ["N", latent]}
    assert told["files"][names[1]] == {"z": ["N", latent], "mean": ["N", 1, 8, 8]}
    assert told["latents"] == [[latent]]


def test_a_file_has_the_weights_of_its_own_part_alone(tmp_path):
    write_graphs(VAE((1, 1), 4, **SIZES, likelihood="gaussian").eval(), tmp_path / "graphs", pt2)
    for part, others in (("encoder", "decoder"), ("decoder", "encoder")):
        names = torch.export.load(tmp_path / f"graphs/{part}.pt2").state_dict
        assert any(f"{part}." in name for name in names)
        assert not any(f"{others}." in name for name in names)


MODELS = {
    "subpixel": lambda: HierarchicalVAE((1, 1), (1, 1), 2, **SIZES, patch=2, level_block=False, likelihood=SUBPIXEL),
    "some_levels": lambda: HierarchicalVAE((1, 1), (1, 1), 2, **SIZES, likelihood="gaussian", stochastic_depth=1),
    "colour": lambda: VAE((1, 1), 4, (3, 8, 8), (8, 8), (1, 2)),
    "reference": lambda: ReferenceVAE(28, 4, 16),
    "classifier": lambda: ResNetClassifier(depth=8, image_shape=(1, 8, 8)),
}


def written(model, folder, suffix):
    """The new folder, whose files were checked; they name no place on this machine."""
    out = folder / "graphs"
    write_graphs(model, out, suffix)
    check(model, out, suffix)
    assert all(str(Path(resvae.__file__).parent).encode() not in path.read_bytes() for path in out.iterdir())
    return out


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        pytest.param("subpixel", "onnx", marks=needs_onnx),
        ("some_levels", "pt2"),
        ("colour", "pt2"),
    ],
)
def test_models(name, suffix, tmp_path):
    model = trained(MODELS[name]())
    told = json.loads((written(model, tmp_path, suffix) / "config.json").read_text())
    assert told["model"] == type(model).__name__
    if name == "some_levels":
        assert told["latents"] == [[2, 4, 4]]  # of two levels


def test_random_numbers_go_on_as_if_nothing_had_been_exported(tmp_path):
    model = trained(MODELS["classifier"]())
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    write_graphs(model, tmp_path / "graphs", pt2)
    assert torch.equal(torch.rand(3), wanted)
    check(model, tmp_path / "graphs", pt2)


class Own(Likelihood):
    """A Gaussian as one would write it oneself; torch checks its parameters."""

    def __init__(self, channels):
        super().__init__(channels)
        self.num_features = channels

    def forward(self, features, x=None):
        return Independent(Normal(self.mean(features), 1.0), 3)

    def mean(self, features):
        return features.sigmoid()


def test_a_likelihood_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setitem(LIKELIHOODS, "Own", Own)
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch's own default
    written(trained(VAE((1, 1), 4, **SIZES, likelihood="Own")), tmp_path, pt2)
    with pytest.raises(ValueError, match="scale"):  # torch checks values again
        Normal(0.0, -1.0)


# What is refused


class Undecided(Own):
    def mean(self, features):
        return features if features.sum() > 0 else -features


class Unfaithful(Own):
    def mean(self, features):
        return features.sigmoid() + (0.01 if torch.compiler.is_compiling() else 0)


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [(Undecided, "the decoder of this VAE cannot be pt2: "), (Unfaithful, "its mean differs from torch's by 0.01")],
)
def test_a_likelihood_without_a_graph_or_with_a_wrong_one_leaves_nothing(
    likelihood, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(LIKELIHOODS, likelihood.__name__, likelihood)
    save(VAE((1, 1), 4, **SIZES, likelihood=likelihood.__name__), tmp_path / "model")
    before = files(tmp_path)
    arguments = ["export", str(tmp_path / "model"), str(tmp_path / "graphs"), "--format", pt2]
    refused(capsys, arguments, "resvae: error: format: ", words)
    assert files(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "new", "--format", "zip"], "format: zip is not allowed; one of folder, onnx, pt2"),
        (["digits", "old", "--format", "pt2"], "out: old is there already"),
        (["digits", "no/new", "--format", "pt2"], "out: no/new cannot be written"),
        (["nothing", "new", "--format", "pt2"], "model: nothing is neither"),
        (["digits", "new", "--format", "pt2", "--half", "true"], "half: True is not allowed with --format pt2"),
        (["digits", "new", "--format", "pt2", "--num_samples", "2"], "num_samples: 2 is not allowed"),
        (["digits", "new", "--format", "pt2", "--data", "digits"], "data: digits is not allowed"),
        (["digits", "new"], "model: digits is not the folder of a run"),
    ],
)
def test_refuses_in_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    refused(capsys, ["export", *arguments], words)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra(package, tmp_path, capsys, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):  # whichever are installed
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    wanted = f"format: onnx needs the package {package}: pip install '.[onnx]'"
    refused(capsys, ["export", "digits", str(tmp_path / "new"), "--format", "onnx"], wanted)
    assert not list(tmp_path.iterdir())


# Everything


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_all_likelihoods(likelihood, tmp_path):
    models = {
        "colour": VAE((1, 1), 4, (3, 8, 8), (8, 8), (1, 2), likelihood=likelihood),
        "grey": HierarchicalVAE((1, 1), (2, 1), 2, **SIZES, likelihood=likelihood),
    }
    for name, model in models.items():
        (tmp_path / name).mkdir()
        written(trained(model), tmp_path / name, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [onnx, pt2])
@pytest.mark.parametrize("name", [*shipped(), *MODELS])
def test_all_models(name, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "WIDTHS", (8, 8, 8, 8))
    written(load(name) if name in shipped() else trained(MODELS[name]()), tmp_path, suffix)
