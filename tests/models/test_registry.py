"""Models and likelihoods of one's own: known by name as the package's are."""

import json
import subprocess
import sys

import pytest
import torch
from torch.distributions import Independent, Laplace

import resvae
from resvae.cli import main
from resvae.errors import ResvaeError
from resvae.models import MODELS, ImageModel, register
from resvae.models.registry import registered
from resvae.probability import Likelihood
from resvae.probability.likelihoods import LIKELIHOODS
from resvae.storage import describe, load, load_as, save

MODULE = """\
import resvae
from torch.distributions import Independent, Laplace
from resvae.models import register
from resvae.probability import Likelihood

@register
class Sharp(Likelihood):
    def __init__(self, channels: int, scale: float = 0.1):
        super().__init__()
        self.num_features, self.scale = channels, scale

    def forward(self, features, x=None):
        return Independent(Laplace(features.float(), self.scale, validate_args=False), 3)

@register
class MyVAE(resvae.VAE):
    def __init__(self, latent_dim: int = 3):
        super().__init__((1, 1), latent_dim, (1, 8, 8), (4, 4), (1, 2), likelihood=Sharp)
        self.arguments = {"latent_dim": latent_dim}
"""
CONFIG = """\
name: mine
data: {name: digits, limit: 64, validation: 50}
model: {vae: {class_path: my_parts.MyVAE, init_args: {latent_dim: 2}}}
trainer: {max_epochs: 1, enable_progress_bar: false}
"""


@pytest.fixture(autouse=True)
def names():
    """What a test registers is forgotten after it."""
    kept = dict(MODELS), dict(LIKELIHOODS)
    yield
    for known, before in zip((MODELS, LIKELIHOODS), kept, strict=True):
        known.clear()
        known.update(before)


class Wide(Likelihood):
    def __init__(self, channels: int, scale: float = 1.0):
        super().__init__()
        self.num_features, self.scale = channels, scale

    def forward(self, features, x=None):
        return Independent(Laplace(features.float(), self.scale, validate_args=False), 3)


def vae(likelihood):
    return resvae.VAE((1, 1), 2, (1, 8, 8), (4, 4), (1, 2), likelihood=likelihood)


def test_a_module_s_own_classes_train_from_a_file_and_are_loaded_by_name(tmp_path):
    (tmp_path / "my_parts.py").write_text(MODULE)
    (tmp_path / "config.yaml").write_text(CONFIG)

    def python(code):
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    fit = "from resvae.cli import main; exit(main(['fit', '--config', 'config.yaml', '--tracker', 'none']))"
    assert (done := python(fit)).returncode == 0, done.stderr
    done = python("import my_parts, resvae; m = resvae.load('runs/mine'); print(m.arguments, m.sample(2).shape)")
    assert done.stdout.startswith("{'latent_dim': 2} torch.Size([2, 1, 8, 8])"), done.stderr
    with pytest.raises(ResvaeError, match=r"MyVAE' is not known; .*import the module .*RESVAE_IMPORT=my_module"):
        load(tmp_path / "runs/mine")


def test_a_class_is_saved_once_it_is_registered(tmp_path):
    class Mine(resvae.VAE):
        def __init__(self, latent_dim: int):
            super().__init__((1, 1), latent_dim, (1, 8, 8), (4, 4), (1, 2))

    model = Mine(5)
    with pytest.raises(ResvaeError, match=r"Mine cannot be saved; one of .*VAE.* can \(see resvae.models.register\)"):
        save(model, tmp_path)
    assert register(Mine) is Mine
    assert registered(model)
    with pytest.raises(ResvaeError, match="Mine cannot be saved: its `arguments` are not its constructor's"):
        describe(model)
    model.arguments = {"latent_dim": 5}
    twin = load(save(model, tmp_path))
    assert type(twin) is Mine
    assert torch.equal(twin.head.weight, model.head.weight)
    with pytest.raises(ResvaeError, match=r"features: .* is a Mine, not a ResNetClassifier"):
        load_as(tmp_path, resvae.ResNetClassifier, "features")
    assert load_as(tmp_path, ImageModel).latent_dim == 5


def test_two_classes_of_one_name_are_refused_but_a_class_may_be_defined_again():
    def define(place):
        return type("VAE" if place is None else place, (resvae.VAE,), {"__module__": "elsewhere"})

    with pytest.raises(
        ResvaeError, match=r"register: elsewhere.VAE is not allowed; resvae.models.vae.VAE has the name"
    ):
        register(define(None))
    first, again = define("Other"), define("Other")
    assert MODELS[register(first).__name__] is first
    assert MODELS[register(again).__name__] is again
    assert not registered(first())
    with pytest.raises(ResvaeError, match="register: int is not allowed; a subclass of ImageModel or of Likelihood"):
        register(int)


def test_a_likelihood_s_class_is_saved_once_it_is_registered(tmp_path):
    with pytest.raises(ResvaeError, match=r"cannot be saved as JSON: .*Wide.*register gives Wide a name"):
        save(vae(Wide), tmp_path)
    register(Wide)
    sharper = {"name": "Wide", "scale": 0.5}
    for likelihood, written, scale in ((Wide, "Wide", 1.0), ("Wide", "Wide", 1.0), (sharper, sharper, 0.5)):
        model = vae(likelihood)
        assert model.arguments["likelihood"] == written
        save(model, tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["arguments"]["likelihood"] == written
        assert load(tmp_path).likelihood.scale == scale
    assert model.elbo(torch.zeros(2, 1, 8, 8)).elbo.isfinite().all()
    assert (model.deciding, model.chance) == ("loss", None)


@pytest.mark.parametrize(
    ("likelihood", "said"),
    [
        ("mse", r"likelihood: 'mse' is not allowed; discretized_mixture, .*gaussian_fixed"),
        ({"num_mixtures": 5}, "likelihood: None is not allowed; discretized_mixture"),
        ({"name": ["a"]}, r"likelihood: \['a'\] is not allowed"),
        ({"name": "discretized_mixture", "k": 5}, "likelihood.k: 5 is not allowed; .* takes num_mixtures"),
        ({"name": "bernoulli", "k": 5}, "likelihood.k: 5 is not allowed; bernoulli takes no arguments"),
        ({"name": "discretized_mixture", "num_mixtures": 0}, "num_mixtures: 0"),
        ({"name": "discretized_mixture", "num_mixtures": "x"}, "num_mixtures: 'x' is not allowed"),
        (torch.nn.Linear, "likelihood: Linear is not allowed; a subclass of Likelihood"),
    ],
)
def test_likelihoods_that_there_are_not_are_refused_in_one_line(likelihood, said):
    with pytest.raises(ResvaeError, match=f"^{said}") as caught:
        vae(likelihood)
    assert "\n" not in str(caught.value)


MIXTURE, FIXED = {"name": "discretized_mixture", "num_mixtures": 5}, {"name": "gaussian", "variance": 0.5}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("=bernoulli", "bernoulli"),
        ("={name: discretized_mixture, num_mixtures: 5}", MIXTURE),
        (".name=gaussian --model.vae.likelihood.variance=0.5", FIXED),
        ("=resvae.probability.LogisticMixture", "discretized_mixture"),
    ],
)
def test_on_the_command_line_a_likelihood_is_a_name_a_dict_or_a_class(given, kept, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("my_parts.MyVAE", "resvae.VAE").replace("latent_dim", "depth"))
    sizes = ["--model.vae.depth=16", "--model.vae.image_shape=[1, 8, 8]", "--model.vae.widths=[4, 4]"]
    sizes += ["--model.vae.strides=[1, 2]", "--tracker=none", "--images.every_n_epochs=0", f"--runs={tmp_path}"]
    given = f"--model.vae.likelihood{given}".split(" ") if " --" in given else [f"--model.vae.likelihood{given}"]
    assert main(["fit", f"--config={tmp_path / 'config.yaml'}", *sizes, *given]) == 0
    assert load(tmp_path / "mine").arguments["likelihood"] == kept
