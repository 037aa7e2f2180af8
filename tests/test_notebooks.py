"""Notebooks are pages: committed as they ran, and they run with nobody watching, from parameters or the environment."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("papermill")
nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
PICTURES = Path(tempfile.mkdtemp()) / "pictures.npz"
np.savez(PICTURES, images=np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8))
# A line a notebook: the parameters of a run that takes seconds.
TOY: dict[str, dict[str, object]] = {
    "depth_table": {"overrides": "--data.limit 64 --model.vae.init_args.widths [8,8]", "depths": 16, "levels": "1-0"}
    | {"seeds": 0, "epochs": 1, "jobs": 1},
    "ensembles_of_paths": {"depth": 8, "deep": 14, "epochs": 1, "draws": 2, "num": 8},
    "inside_a_network": {"depths": "8 14", "epochs": 1},
    "latent_diffusion": {"data": "npz", "npz": PICTURES, "minutes": 0.01, "width": 8, "num_blocks": 1}
    | {"num_images": 20},
    "plain_residual_highway": {"depths": 8, "kinds": "residual", "epochs": 1, "wrapper_epochs": 1}
    | {"gate_depth": 8, "gate_epochs": 1, "jobs": 1},
    "quickstart": {"depth": 16, "latent_dim": 2, "epochs": 1},
    "reuse": {"limit": 100, "labels": 50, "seeds": 0, "updates": 1, "judge_epochs": 1, "game_steps": 1},
}
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tagged(path: Path, tag: str) -> list[str]:
    return [cell.source for cell in code_cells(path) if tag in cell.metadata.get("tags", ())]


def pictures(path: Path) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code_cells(path) for output in cell.outputs)


def quiet(path: Path) -> bool:
    """Every cell ran, in order, without an error or a word on stderr."""
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell.outputs]
    complaints = [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    return not complaints and [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def run(script: Path, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    """``run.sh``, where no proxy answers: what needs the network fails."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | nowhere | {"PATH": path} | {name: str(value) for name, value in environment.items()}
    return subprocess.run([script, *arguments], env=variables, capture_output=True, text=True)


def test_every_notebook_is_tested():
    assert {path.stem for path in PATHS} == {*TOY}


@each
def test_it_is_committed_as_it_ran(path):
    assert quiet(path)
    assert pictures(path) >= 2
    assert path.stat().st_size < 300_000
    assert not tagged(path, "injected-parameters")  # at its defaults
    assert str(ROOT) not in path.read_text()


@each
def test_it_defines_no_more_than_a_few_lines(path):
    nodes = [node for cell in code_cells(path) for node in ast.walk(ast.parse(cell.source))]
    assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [node.name for node in functions if len(ast.unparse(node).splitlines()) > 4]


@each
def test_the_environment_gives_each_parameter(path, monkeypatch):
    (source,) = tagged(path, "parameters")
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    names = {node.targets[0].id for node in nodes if "os.environ" in ast.unparse(node.value)}
    used = {part.id for node in nodes for part in ast.walk(node.value) if isinstance(part, ast.Name)}
    assert names
    assert {node.targets[0].id for node in nodes} <= names | used  # or it is a default's own name
    assert {*TOY[path.stem]} <= names
    for name in names:
        monkeypatch.delenv(name.upper(), raising=False)
    defaults: dict = {}
    exec(source, defaults)
    for name in names:
        with monkeypatch.context() as patch:
            patch.setenv(name.upper(), "7")
            given: dict = {}
            exec(source, given)
        assert given[name] == type(defaults[name])(7), name
        assert all(given[other] == defaults[other] for other in names - {name})


@each
def test_it_runs_anywhere_and_writes_into_runs_only(path, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    toy = [part for name, value in TOY[path.stem].items() for part in ("-p", name, str(value))]
    result = run(NOTEBOOKS / "run.sh", path.stem, *toy, "--cwd", str(folder), OUTDIR=tmp_path / "kept")
    assert result.returncode == 0, result.stderr
    (copy,) = (tmp_path / "kept").iterdir()
    assert copy.name.endswith(f"_{path.stem}.ipynb")
    assert result.stdout.splitlines()[-1] == f"wrote {copy}"
    assert quiet(copy)
    assert pictures(copy) == pictures(path)
    assert len(tagged(copy, "injected-parameters")) == bool(toy)
    assert not list(folder.iterdir())
    assert {made.name for made in tmp_path.iterdir()} <= {"notebooks", "configs", "kept", "runs"}
    assert {made.name for made in tmp_path.glob("runs/*")} <= {path.stem}
    if path.stem == "quickstart":
        assert (tmp_path / "runs" / "quickstart" / "model" / "model.safetensors").is_file()


def test_run_takes_parameters_and_environment_and_keeps_a_copy(tmp_path):
    script = Path(shutil.copy(NOTEBOOKS / "run.sh", tmp_path))
    cell = nbformat.v4.new_code_cell
    read = [f'{name} = os.environ.get("{name.upper()}", "{name}")' for name in ("first", "second", "third")]
    parameters = cell("\n".join(["import os", "", *read]), metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    page = nbformat.v4.new_notebook(cells=[parameters, cell("print(first, second, third)")], metadata=kernel)
    nbformat.write(page, tmp_path / "page.ipynb")
    before = (tmp_path / "page.ipynb").read_bytes()
    result = run(script, "page", "-p", "first", "1 2", "-p", "third", "5", SECOND="3-4", THIRD="given twice", OUTDIR="")
    assert result.returncode == 0, result.stderr
    (copy,) = (tmp_path / "executed").iterdir()
    assert copy.name.endswith("_page.ipynb")
    assert code_cells(copy)[-1].outputs[0].text == "1 2 3-4 5\n"
    assert (tmp_path / "page.ipynb").read_bytes() == before


@pytest.mark.parametrize("name", ["", "nothing"])
def test_an_unknown_notebook_is_refused_with_those_there_are(name, tmp_path):
    result = run(NOTEBOOKS / "run.sh", name, OUTDIR=tmp_path / "kept")
    assert result.returncode == 2
    known = ", ".join(path.stem for path in PATHS)
    assert result.stderr == f"run.sh: notebook '{name}' is not known; one of {known}\n"
    assert not list(tmp_path.iterdir())
