"""Every study of a trained model takes one whose likelihood has layers of its own, at half the resolution."""

import pytest
import torch

from resvae import HierarchicalVAE, save
from resvae.studies.activations import activations
from resvae.studies.gradients import gradients
from resvae.studies.lesion import lesion
from resvae.studies.levels import levels
from resvae.studies.paths import paths
from resvae.studies.responses import responses

STUDIES = {
    "activations": activations,
    "gradients": lambda model, **rest: gradients(model, num=8, **rest),
    "lesion": lambda model, **rest: lesion(model, num=8, draws=1, **rest),
    "levels": lambda model, **rest: levels(model, num=8, shown=2, **rest),
    "paths": lambda model, **rest: paths(model, num=4, draws=2, **rest),
    "responses": lambda model, **rest: responses(model, num=8, **rest),
}


@pytest.mark.parametrize("study", STUDIES)
def test_it_is_studied_as_any_other(study, tmp_path):
    torch.manual_seed(0)
    likelihood = {"name": "subpixel_mixture", "num_mixtures": 2, "width": 4}
    vae = HierarchicalVAE((1, 1), (1, 1), 2, (1, 8, 8), (8, 8), (1, 2), likelihood=likelihood, patch=2)
    model = str(save(vae, tmp_path / "model"))
    STUDIES[study](model, data="digits", out=str(tmp_path / "study"))
    tables = list((tmp_path / "study").glob("*.csv"))
    assert tables
    for table in tables:
        assert len(table.read_text().splitlines()) > 2
        assert "nan" not in table.read_text()
