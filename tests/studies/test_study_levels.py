"""What the levels of a hierarchical model say and decide."""

import math

import pytest
import torch
from PIL import Image

from resvae import VAE, HierarchicalVAE, save
from resvae.errors import ResvaeError
from resvae.studies.levels import levels, redrawn, row


def trained_like(**more) -> HierarchicalVAE:
    """With weights that let every level matter."""
    torch.manual_seed(0)
    vae = HierarchicalVAE((1, 1), (1, 2), 2, (1, 8, 8), (8, 8), (1, 2), **more).eval()
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return vae


def images(num: int) -> torch.Tensor:
    return torch.randint(0, 256, (num, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_all_levels_give_the_elbo_and_none_gives_the_prior_alone():
    vae, x = trained_like(), images(3).repeat(300, 1, 1, 1)
    whole, none = row(vae, x, 3), row(vae, x, 0)
    torch.manual_seed(1)
    assert whole["bits/dim"] == pytest.approx(vae.elbo(x).bits_per_dim.mean().item(), rel=0.01)
    assert (none["KL, nats"], none["the last one at"]) == (0, "")
    torch.manual_seed(0)
    p = vae.prior_images(3)  # the same draws, image by image
    alone = -p.log_prob(x[:3] / 255).mean().item() / (64 * math.log(2))
    assert row(vae, x[:3], 0)["bits/dim"] == pytest.approx(alone, rel=1e-5)
    assert none["PSNR, dB"] == pytest.approx(row(vae, x[:3], 0)["PSNR, dB"], rel=1e-4)


def test_each_level_s_nats_are_those_of_the_elbo_and_a_silent_one_has_none():
    vae, x = trained_like(), images(2).repeat(400, 1, 1, 1)
    kl = vae.elbo(x).kl.mean(0)
    for level in range(3):
        assert row(vae, x, level + 1)["KL, nats"] == pytest.approx(kl[level].item(), rel=0.05)
    vae.stochastic_depth = 1
    assert [row(vae, x, k)["KL, nats"] > 0 for k in (1, 2, 3)] == [True, False, False]


def test_a_level_redrawn_keeps_the_first_image_and_the_noise_of_the_other_levels(monkeypatch):
    vae, visited = trained_like(), []
    descend = vae.descend

    def kept(*args, **kwargs):
        visited.append(descend(*args, **kwargs))
        return visited[-1]

    monkeypatch.setattr(vae, "descend", kept)
    first = [redrawn(vae, level, 4) for level in range(3)]
    for level, (_, visits) in enumerate(visited):
        noise = [(visit.z - visit.prior.mean) / visit.prior.stddev for visit in visits]
        same = [torch.allclose(each, each[:1].expand_as(each), atol=1e-4) for each in noise]
        assert same == [here != level for here in range(3)]
    for made in first:
        torch.testing.assert_close(made[0], first[0][0])
        assert (made[1:] - made[:1]).abs().flatten(1).amax(1).min() > 1e-4
    torch.testing.assert_close(redrawn(vae, 1, 3, temperature=0.0)[0], vae.sample(1, 0.0)[0])


def test_the_study_writes_a_table_and_three_pictures(tmp_path, capsys):
    save(trained_like(), tmp_path / "model")
    levels(str(tmp_path / "model"), num=20, shown=4, data="digits", out=str(tmp_path / "study"))
    told = capsys.readouterr().out
    assert "| levels | the last one at | bits/dim | KL, nats | PSNR, dB |" in told
    assert len((tmp_path / "study/levels.csv").read_text().splitlines()) == 1 + 4
    rows_of = {"levels_see": 1 + 4, "levels_decide": 3}
    for name, num in rows_of.items():
        width, height = Image.open(tmp_path / f"study/{name}.png").size
        assert (width, height) == (4 * 50 + 2, num * 50 + 2)
    assert f"wrote {tmp_path / 'study/levels.png'}" in told


def test_without_bits_the_loss_is_told_and_other_models_are_refused(tmp_path):
    assert "loss" in row(trained_like(likelihood="gaussian"), images(2), 1)
    save(VAE((1, 1), 4, (1, 8, 8), (8, 8), (1, 2)), tmp_path / "flat")
    with pytest.raises(ResvaeError, match="is a VAE; only a HierarchicalVAE has levels"):
        levels(str(tmp_path / "flat"), data="digits", out=str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()
