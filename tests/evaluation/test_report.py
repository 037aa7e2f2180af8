import json
import math
import subprocess
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from resvae.data import ImageSets
from resvae.errors import ResvaeError
from resvae.evaluation import Found, Measure, evaluate, generate
from resvae.models import VAE, HierarchicalVAE
from resvae.models.levels import Level
from resvae.provenance import commit


def small(likelihood="discretized_logistic", shape=(3, 16, 16)):
    torch.manual_seed(0)
    vae = VAE((1, 1), 5, shape, (8, 16), (1, 2), likelihood=likelihood)
    with torch.no_grad():  # two latents that the encoder hardly uses
        vae.head.weight[:2] *= 0.001
    return vae


def images(num=7, shape=(3, 16, 16), seed=0):
    coarse = torch.rand(num, shape[0], 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, size=shape[1:], mode="bilinear")).round().to(torch.uint8)


def close(a, b, rel=1e-5):
    assert a == pytest.approx(b, rel=rel)


def test_figures_are_averages_over_all_images():
    vae, x = small().eval(), images()
    report = evaluate(vae, x.split(4), num_samples=3, seed=11)
    torch.manual_seed(11)
    measured = [(vae.elbo(batch), vae.log_likelihood(batch, 3)) for batch in x.split(4)]
    terms, bounds = zip(*measured, strict=True)
    elbos, likelihoods, kls = ([getattr(t, name) for t in terms] for name in ("elbo", "log_likelihood", "kl"))
    assert all(abs(elbo.mean() - report.elbo) > 1e-3 for elbo in elbos)  # of 4 and 3: an average of averages differs
    close(report.elbo, torch.cat(elbos).mean().item())
    close(report.log_likelihood, torch.cat(likelihoods).mean().item())
    close(report.kl, torch.cat(kls).sum(1).mean().item())
    close(report.importance_weighted, torch.cat(bounds).mean().item())
    close(report.kl_levels, torch.cat(kls).mean(0).tolist())
    close(report.elbo, report.log_likelihood - report.kl)
    assert report.bits_per_dim is not None
    close(report.bits_per_dim, -report.elbo / (768 * math.log(2)))
    close(report.bits_per_dim_importance_weighted, -report.importance_weighted / (768 * math.log(2)))
    assert report.loss_over_floor is None
    assert (report.model, report.images, report.seed, report.num_samples, report.latents) == ("VAE", 7, 11, 3, 5)
    assert report.parameters == sum(p.numel() for p in vae.parameters())
    assert report.seconds > 0
    assert report.torch == torch.__version__


def test_psnr_and_ssim():
    vae, x = small().eval(), images()
    report = evaluate(vae, x.split(4))
    y, unit = vae.reconstruct(x), x / 255
    mse = (y - unit).square().mean((1, 2, 3))
    close(report.psnr, (-10 * mse.log10()).mean().item())  # an image, then averaged
    assert abs(report.psnr + 10 * mse.mean().log10().item()) > 1e-4
    close(report.ssim, structural_similarity_index_measure(y, unit, data_range=1.0).item(), rel=1e-4)


def test_active_units():
    vae, x = small().eval(), images(20)
    report = evaluate(vae, x.split(6))
    variance = vae.posterior(x).mean.detach().numpy().var(0, ddof=1)
    assert report.active_units == (variance > 0.01).sum() == 3
    assert "3 of 5" in report.table()
    assert "active units" not in evaluate(vae, [x[:1]]).table()


def test_latents_that_follow_those_above_are_not_active():
    torch.manual_seed(0)
    vae, x = HierarchicalVAE(16, (1, 1), 2, (3, 16, 16), (8, 8), (1, 2)).eval(), images(20)
    upper, lower = (module for module in vae.modules() if isinstance(module, Level))
    torch.nn.init.normal_(upper.posterior_net[-1].weight)
    torch.nn.init.normal_(
        lower.prior_net[-1].weight, std=4
    )  # the prior moves with the level above, the posterior with it
    torch.nn.init.zeros_(lower.posterior_net[-1].weight)
    report = evaluate(vae, [x])
    moved = vae.posterior(x).mean.var(0)[-report.latents * 4 // 5 :]
    assert (moved > 0.01).all()
    assert report.active_units == report.latents // 5


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian_fixed"])
def test_without_a_probability_of_the_256_values_there_are_no_bits(likelihood):
    vae, x = small(likelihood).eval(), images()
    report = evaluate(vae, x.split(4))
    assert report.bits_per_dim is report.bits_per_dim_importance_weighted is None
    assert "bits" not in report.table()
    assert (report.loss_over_floor is None) == (likelihood == "gaussian_fixed")
    if report.loss_over_floor is not None:
        close(report.loss_over_floor, -report.elbo - vae.likelihood.floor(x / 255).mean().item())


def test_one_seed_one_report():
    vae, batches = small(), images().split(4)
    torch.manual_seed(1)
    first = evaluate(vae, batches, 2, seed=5).figures
    torch.manual_seed(2)
    assert evaluate(vae, batches, 2, seed=5).figures == first
    other = evaluate(vae, batches, 2, seed=6).figures
    assert other["elbo"] != first["elbo"]
    assert other["psnr"] == first["psnr"]  # reconstructions hold no noise


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_stream_are_left_as_they_were(training):
    vae = small("gaussian").train(training)  # whose running variance moves in training
    vae.encoder.eval()  # submodules have modes of their own
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(vae, [images()], 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert (vae.training, vae.head.training, vae.encoder.training) == (training, training, False)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


def test_floats_and_uint8_give_one_report():
    x = images()
    assert evaluate(small(), [x]).figures == evaluate(small(), [x / 255]).figures


def test_json_and_table():
    report = evaluate(small(), [images()], num_samples=4)
    read = json.loads(report.json())
    assert read["seconds"] == report.seconds
    assert read["kl_levels"] == list(report.kl_levels)
    assert read["importance_curve"] == [asdict(bound) for bound in report.importance_curve]
    assert (read["distances"], read["probe"], read["neighbours"]) == (None, None, [])
    assert [bound["k"] for bound in read["importance_curve"]] == [1, 4]
    table = report.table().splitlines()
    assert all(row.count("|") == table[0].count("|") == 3 for row in table if not row.startswith("|-"))
    rows = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in table}
    assert rows["ELBO, nats"] == f"{report.elbo:.2f}"
    assert rows["KL, nats"] == f"{report.kl:.2f}"
    assert rows["IW-4 bound, nats"] == f"{report.importance_weighted:.2f}"
    assert rows["IW-1 bound, nats"] == f"{report.importance_curve[0].nats:.2f}"
    assert rows["bits/dim (ELBO)"] == f"{report.bits_per_dim:.4f}"
    assert rows["active units"] == f"{report.active_units} of 5"
    assert rows["PSNR, dB"] == f"{report.psnr:.2f}"
    assert "7 images" in table[0]
    named = evaluate(small(shape=(1, 8, 8)), ImageSets("digits"), split="val", num=7, source="runs/a")
    assert "7 digits val images" in named.table().splitlines()[0]
    assert "runs/a" in named.protocol()
    assert "latent_dim=5" in named.protocol()


def test_the_bound_of_the_first_images_only():
    vae, x = small().eval(), images(7)
    report = evaluate(vae, x.split(3), 2, 4, iw_images=4)
    torch.manual_seed(4)
    bounds = []
    for batch, kept in zip(x.split(3), (3, 1, 0), strict=True):
        vae.elbo(batch)
        if kept:
            bounds.append(vae.log_likelihood(batch[:kept], 2))
    close(report.importance_weighted, torch.cat(bounds).mean().item())
    assert (report.images, report.iw_images) == (7, 4)
    assert "IW-2 bound, nats, first 4 images" in report.table()


def test_the_commit_is_that_of_the_checkout_that_tracks_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "provenance.py"
    module.touch()
    monkeypatch.setattr("resvae.provenance.__file__", str(module))
    assert commit() is None  # no checkout
    git("init")
    git("commit", "--allow-empty", "-m", "one")
    assert commit() is None  # a checkout of something else
    git("add", "provenance.py")
    git("commit", "-m", "two")
    report = evaluate(small(), [images()])
    assert report.commit == git("rev-parse", "HEAD")
    assert f" at {report.commit}," in report.protocol()


@pytest.mark.parametrize(
    ("batches", "asked", "said"),
    [
        ([images()], {"iw_images": 0}, "iw_images: 0"),
        ([images()], {"num_samples": 0}, "num_samples: 0"),
        ([images()], {"probe_images": 9}, "images: batches are not allowed with .*a probe"),
        ([], {}, "none to evaluate"),
        ([torch.full((1, 3, 16, 16), torch.nan)], {}, "values"),
    ],
)
def test_refusals_leave_the_model_as_it_was(batches, asked, said):
    vae = small().train()
    with pytest.raises(ResvaeError, match=said):
        evaluate(vae, batches, **asked)
    assert vae.training


@pytest.mark.parametrize("size", [8, 4])
def test_images_smaller_than_the_window_have_no_ssim(size):
    report = evaluate(small(shape=(1, size, size)), [images(5, (1, size, size))])
    assert math.isfinite(report.psnr)
    assert (report.ssim is None) == ("SSIM" not in report.table()) == (size < 6)


class Brightness(Measure):
    """A measure of one's own."""

    def update(self, x, y):
        self.means = [*getattr(self, "means", []), x.x.mean()]

    def finish(self):
        brightness = torch.stack(self.means).mean().item()
        return Found({"brightness": brightness}, [("brightness", f"{brightness:.3f}")])


def test_a_measure_of_one_s_own():
    report = evaluate(small(), [images()], more=[Brightness])
    assert json.loads(report.json())["brightness"] == report.brightness == pytest.approx(images().double().mean() / 255)
    assert f"| brightness | {report.brightness:.3f} |" in report.table()


def test_samples_are_of_the_temperature_and_the_pixels_that_were_asked_for():
    vae = HierarchicalVAE((1, 1), 2, 2, image_shape=(1, 8, 8), widths=(8, 8), strides=(1, 2))
    judge = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    judge[0].register_forward_pre_hook(lambda _, x: (x[0].float() / 255,))
    asked = {"features": ("a judge", judge), "num": 50, "pictures": True}
    cold, same, noisy = (
        evaluate(vae, ImageSets("digits"), **asked, **how)
        for how in ({"temperature": 0.0}, {"temperature": [0.0, 0.0]}, {"temperature": 0.0, "pixel_noise": True})
    )
    assert cold.distances.fid == same.distances.fid
    assert noisy.distances.fid != cold.distances.fid
    assert cold.distances.pixels == "the mean of p(x|z) at temperature 0.0, rounded to uint8"
    assert noisy.distances.pixels == "drawn from p(x|z) at temperature 0.0, rounded to uint8"
    assert "samples, drawn from p(x|z) at temperature 0.0" in noisy.found[1].pictures
    made = list(generate(vae, 4, batch_size=2, temperature=0.0))
    assert torch.equal(made[0], made[1])  # nothing is left to chance
    with pytest.raises(ResvaeError, match="temperature: -1 is not allowed"):
        evaluate(vae, ImageSets("digits"), **asked, temperature=-1)


@pytest.mark.parametrize("kind", ["VAE", "HierarchicalVAE"])
def test_the_encoder_runs_once_per_batch_and_samples_are_drawn_once(kind, monkeypatch):
    torch.manual_seed(0)
    shape = {"image_shape": (1, 8, 8), "widths": (8, 8), "strides": (1, 2)}
    vae = VAE((1, 1), 4, **shape) if kind == "VAE" else HierarchicalVAE((1, 1), 2, 2, **shape)
    encoded, drawn, sample = [], [], vae.sample
    vae.encoder.stem.register_forward_hook(lambda *_: encoded.append(1))
    monkeypatch.setattr(vae, "sample", lambda num, *how: drawn.append(num) or sample(num, *how))
    judge = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    judge[0].register_forward_pre_hook(lambda _, x: (x[0].float() / 255,))
    asked = {"features": ("a judge", judge), "neighbours": True, "pictures": True, "num": 299, "iw_images": 255}
    report = evaluate(vae, ImageSets("digits"), 3, **asked)
    assert len(encoded) == 2  # of 250 and 49
    assert drawn == [250] * 4
    assert (report.iw_images, report.distances.generated, report.neighbours[0].samples) == (255, 299, 1000)
    titles = [title.split(",")[0].split(" (")[0] for found in report.found for title in found.pictures]
    assert titles[2:] == ["samples", "images", *["sample | its nearest training images"] * 2]
