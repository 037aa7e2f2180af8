"""Notebooks are pages: they define nothing, show what they found, and run with nobody watching, with parameters."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("papermill")
nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[1]
RUN = ROOT / "notebooks" / "run.sh"
DIGITS = str(ROOT / "configs" / "quickstart.yaml")
# A line a notebook: how many pictures it has at least, and the parameters of a run that takes seconds.
TOY = {
    "depth_table": (2, {"config": DIGITS, "depths": 16, "levels": 1, "seeds": 0, "epochs": 1}),
    "quickstart": (4, {"depth": 16, "latent_dim": 2, "epochs": 1}),
    "reuse": (5, {"seeds": 0, "classifier_steps": 1, "gan_steps": 1, "diffusion_steps": 1, "limit": 50}),
}
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def pictures(path: Path) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code_cells(path) for output in cell.outputs)


def parameters(path: Path) -> str:
    (source,) = [cell.source for cell in code_cells(path) if "parameters" in cell.metadata.tags]
    return source


def run(*arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | {"PATH": path} | {name: str(value) for name, value in environment.items()}
    return subprocess.run([RUN, *arguments], env=variables, capture_output=True, text=True)


def test_every_notebook_is_tested():
    assert [path.stem for path in PATHS] == sorted(TOY)


@each
def test_it_is_committed_as_it_ran_and_defines_nothing(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert pictures(path) >= TOY[path.stem][0]
    assert path.stat().st_size < 300_000
    assert not any("injected-parameters" in cell.metadata.tags for cell in cells)  # at its defaults
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell.source))]
    assert not [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


@each
def test_the_environment_gives_each_parameter(path, monkeypatch):
    defaults: dict = {}
    exec(parameters(path), defaults)
    names = [node.targets[0].id for node in ast.parse(parameters(path)).body if isinstance(node, ast.Assign)]
    assert {*TOY[path.stem][1]} <= {*names}
    for name in names:
        monkeypatch.setenv(name.upper(), "7")
        given: dict = {}
        exec(parameters(path), given)
        assert given[name] == type(defaults[name])(7)
        assert all(given[other] == defaults[other] for other in names if other != name)
        monkeypatch.delenv(name.upper())


@each
def test_it_runs_with_parameters_and_environment(path, tmp_path):
    num, toy = TOY[path.stem]
    given = [part for name, value in toy.items() for part in ("-p", name, str(value))]
    result = run(path.stem, *given, "--cwd", str(tmp_path), OUTDIR=tmp_path / "kept", FOLDER=tmp_path / "made")
    assert result.returncode == 0, result.stderr
    (copy,) = (tmp_path / "kept").iterdir()
    assert copy.name.endswith(f"_{path.stem}.ipynb")
    assert result.stdout.splitlines()[-1] == f"wrote {copy}"
    cells = code_cells(copy)
    assert all(cell.execution_count for cell in cells)
    assert any("injected-parameters" in cell.metadata.tags for cell in cells)
    assert pictures(copy) >= num
    assert (tmp_path / "made").is_dir() == ("FOLDER" in parameters(path))
    assert {path.name for path in tmp_path.iterdir()} <= {"kept", "made"}


@pytest.mark.parametrize("name", ["", "nothing"])
def test_an_unknown_notebook_is_refused_with_those_there_are(name, tmp_path):
    result = run(name, OUTDIR=tmp_path / "kept")
    assert result.returncode == 2
    assert result.stderr == f"run.sh: notebook '{name}' is not known; one of {', '.join(path.stem for path in PATHS)}\n"
    assert not list(tmp_path.iterdir())
