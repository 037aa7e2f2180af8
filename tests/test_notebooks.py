"""Every notebook runs headless, with parameters."""

from pathlib import Path

import pytest

papermill = pytest.importorskip("papermill")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TOY = {"quickstart": {"depth": 16, "latent_dim": 2, "epochs": 1, "folder": "model"}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_with_parameters(path: Path, tmp_path: Path) -> None:
    executed = papermill.execute_notebook(
        path, tmp_path / "out.ipynb", TOY[path.stem], cwd=tmp_path, progress_bar=False, log_output=False
    )
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert "injected-parameters" in str([cell.metadata.get("tags") for cell in cells])
    pictures = [o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert (tmp_path / "model" / "model.safetensors").is_file()
