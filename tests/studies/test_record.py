from pathlib import Path

import numpy as np
import pytest
import torch

from resvae import VAE, ResNetClassifier, save
from resvae.errors import ResvaeError
from resvae.studies.record import Record, fingerprint, subject, subjects


def test_a_figure_is_measured_once_even_after_a_stop(tmp_path: Path):
    figures = iter(([1.5, 2], 3))
    for _ in range(2):  # a new process knows what the first has measured
        assert Record(tmp_path / "new", {"seed": 0}).measure("a", lambda: next(figures)) == [1.5, 2]
    assert Record(tmp_path / "new", {"seed": 0}).measure("b", lambda: next(figures)) == 3


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


def test_a_folder_that_is_damaged_is_told(tmp_path: Path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ResvaeError, match=r"out: .*study\.json is damaged"):
        Record(tmp_path, {})


def test_a_classifiers_images_need_labels_that_it_knows(tmp_path: Path):
    save(ResNetClassifier(depth=8, num_classes=4, image_shape=(1, 8, 8)), tmp_path / "four")
    with pytest.raises(ResvaeError, match="data: the labels of digits are not allowed; 0 to 3"):
        subject(str(tmp_path / "four"), 40, data="digits")
    np.savez(tmp_path / "none.npz", images=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(ResvaeError, match="data: the images of npz are not labelled"):
        subject(str(tmp_path / "four"), 2, data="npz", path=str(tmp_path / "none.npz"))


def test_models_are_listed_with_commas_and_spaces(tmp_path: Path):
    for name in ("a", "b"):
        save(VAE(16, 2, (1, 8, 8), (4, 4), (1, 2)), tmp_path / name)
    found = subjects(f"{tmp_path / 'a'}, {tmp_path / 'b'},", 2, data="digits")
    assert [Path(one.source).name for one in found] == ["a", "b"]
    with pytest.raises(ResvaeError, match="models: ' ,' is not allowed"):
        subjects(" ,", 2)


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
