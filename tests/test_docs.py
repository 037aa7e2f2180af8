"""The documentation's sources, read without Sphinx: links lead somewhere, nothing public is missing, examples run."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resvae.cli import STUDIES, VERBS
from resvae.models import MODELS
from resvae.probability.likelihoods import LIKELIHOODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
REFERENCE = "\n".join(page.read_text() for page in DOCS.glob("reference/*.rst"))
ROOMS = ("models", "networks", "probability", "data", "training", "evaluation")


def prose(page: Path) -> str:
    """The page without its blocks of code and directives."""
    return re.sub(r"^```[^\n]*\n.*?^```$", "", page.read_text(), flags=re.M | re.S)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def toctree(page: Path) -> list[str]:
    """The pages that a page's trees name."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$|^\.\. toctree::\n(.*)", page.read_text(), flags=re.M | re.S)
    lines = [line.strip() for tree in trees for part in tree for line in part.splitlines()]
    return [re.sub(r".*<(.*)>", r"\1", line) for line in lines if line and not line.startswith(":")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_files_and_headings(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    links += re.findall(r"^```\{image\} (\S+)", page.read_text(), flags=re.M)
    links += [f"{card}.md" for card in re.findall(r"^:link: (\S+)", page.read_text(), flags=re.M)]
    for link in links:
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_a_tree_and_every_tree_names_pages():
    named = set()
    for page in [*DOCS.glob("*.md"), DOCS / "reference/index.rst"]:
        for name in toctree(page):
            found = [path for end in (".md", ".rst", ".ipynb") if (path := page.parent / f"{name}{end}").is_file()]
            assert found, f"{page.name}: {name}"
            named.update(found)
    there = {*DOCS.glob("*.md"), *DOCS.glob("reference/*.rst"), *DOCS.glob("notebooks/*.ipynb")}
    assert there - named == {DOCS / "index.md"}


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_is_in_the_reference(room):
    module = importlib.import_module(f"resvae.{room}" if room else "resvae")
    documented = set(re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)", REFERENCE, flags=re.M))
    values = {name: getattr(module, name) for name in module.__all__}
    assert {name for name, value in values.items() if inspect.isroutine(value) or inspect.isclass(value)} <= documented


def test_every_verb_and_study_is_on_the_page_of_the_command_line():
    page = (DOCS / "command_line.md").read_text()
    shown = re.findall(r"^#+ ([a-z ]+)\n\n```\{verb-help\} \1\n```$", page, flags=re.M)
    assert sorted(shown) == sorted([*VERBS, *(f"study {name}" for name in STUDIES)])


def test_the_studies_page_has_every_study():
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "studies.md").read_text(), flags=re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*STUDIES}


def test_the_configurations_page_has_every_file():
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "configurations.md").read_text(), flags=re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {
        path.stem for path in ROOT.glob("configs/*.yaml")
    }


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["resvae", ""], [*VERBS]),
        (["resvae", "s"], ["sweep", "study", "sample"]),
        (["resvae", "study", ""], [*STUDIES]),
        (["resvae", "study", "le"], ["lesion", "levels"]),
        (["resvae", "sample", "s"], []),  # then the shell offers files
    ],
)
def test_the_shell_completes_verbs_and_studies(words, offered):
    (block,) = blocks(DOCS / "command_line.md", "bash")
    program = f'resvae() {{ "{sys.executable}" -m resvae "$@"; }}\n'
    asked = f'\n_resvae "{words[0]}" "{words[-1]}" "{words[-2]}"\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program + block + asked], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(offered)


@pytest.fixture
def forgotten():
    """What a page registers is forgotten after it."""
    kept = dict(MODELS), dict(LIKELIHOODS)
    yield
    for known, before in zip((MODELS, LIKELIHOODS), kept, strict=True):
        known.clear()
        known.update(before)


def test_the_page_of_one_s_own_models_runs(tmp_path, monkeypatch, forgotten):
    monkeypatch.chdir(tmp_path)  # where it saves
    page: dict = {"__name__": "my_module"}
    exec("\n".join(blocks(DOCS / "own_model.md", "python")), page)
    vae, copy, x = page["vae"], page["copy"], torch.rand(2, 1, 8, 8)
    assert type(copy) is page["DigitsVAE"]
    assert torch.equal(vae.eval().reconstruct(x), copy.reconstruct(x))
    vae.elbo(x).elbo.sum().backward()
    assert vae.likelihood.log_scale.grad != 0
    assert page["wide"].likelihood.log_scale.exp().item() == pytest.approx(0.5)
