from pathlib import Path

import pytest
import torch

from resvae import VAE, save
from resvae.errors import ResvaeError
from resvae.studies.record import Record, fingerprint, subject


def refuse() -> float:
    raise AssertionError("measured again")


def test_a_figure_is_measured_once_even_after_a_stop(tmp_path: Path):
    assert Record(tmp_path / "new", {"seed": 0}).measure("a", lambda: [1.5, 2]) == [1.5, 2]
    again = Record(tmp_path / "new", {"seed": 0})
    assert again.measure("a", refuse) == [1.5, 2]
    with pytest.raises(AssertionError):
        again.measure("b", refuse)


def test_figures_of_other_settings_are_refused(tmp_path: Path):
    Record(tmp_path, {"seed": 0, "images": (1, 2)}).measure("a", lambda: 1)
    Record(tmp_path, {"seed": 0, "images": [1, 2]})
    with pytest.raises(ResvaeError, match=r"out: .* holds a study with seed 0, not 1; choose another folder"):
        Record(tmp_path, {"seed": 1, "images": [1, 2]})


def test_the_table_tells_what_was_measured(tmp_path: Path):
    text = Record(tmp_path, {}).write("lesion", [{"block": "a", "error": 0.25}], "Of 10 images.")
    assert "| a | 0.25 |" in text
    assert "Of 10 images." in text
    assert "threads" in text or torch.cuda.is_available()
    assert (tmp_path / "lesion.csv").read_text().splitlines() == ["block,error", "a,0.25"]


def test_a_fingerprint_is_of_every_weight():
    vae = VAE(16, 2, (1, 8, 8), (4, 4), (1, 2))
    before = fingerprint(vae)
    assert before == fingerprint(vae)
    with torch.no_grad():
        next(vae.parameters()).flatten()[0] += 1e-3
    assert fingerprint(vae) != before


def test_a_subject_tells_where_it_comes_from(tmp_path: Path):
    vae = VAE(16, 2, (1, 8, 8), (4, 4), (1, 2))
    save(vae, tmp_path / "model")
    found = subject(str(tmp_path / "model"), 10, data="digits")
    assert found.x.shape == (10, 1, 8, 8)
    assert found.y.shape == (10,)
    assert fingerprint(vae) in found.told
    assert "the first 10 test images of digits" in found.told
    with pytest.raises(ResvaeError, match="num: 0 is not allowed"):
        subject(str(tmp_path / "model"), 0, data="digits")
