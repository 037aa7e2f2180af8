"""What the project says of itself, in one voice: the name, the version, the licence and the authors."""

import re
import tomllib
from pathlib import Path

import yaml

import resvae

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
# Of the Citation File Format 1.2.0: the fields that it requires, and those that a file may have besides.
REQUIRED = {"authors", "cff-version", "message", "title"}
ALLOWED = REQUIRED | {
    *("abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url"),
    *(
        "preferred-citation",
        "references",
        "repository",
        "repository-artifact",
        "repository-code",
        "type",
        "url",
        "version",
    ),
}


def test_the_citation_has_the_fields_of_its_format():
    assert CITATION["cff-version"] == "1.2.0"
    assert REQUIRED <= {*CITATION} <= ALLOWED
    assert CITATION["type"] == "software"
    assert all(
        isinstance(CITATION[field], str) and CITATION[field] for field in ("message", "title", "abstract", "version")
    )
    assert all(
        {*author} <= {"name", "family-names", "given-names", "orcid", "email", "alias"}
        for author in CITATION["authors"]
    )


def test_the_citation_says_what_the_package_says():
    assert CITATION["title"] == PROJECT["name"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["keywords"] == PROJECT["keywords"]
    assert CITATION["abstract"].startswith(PROJECT["description"])
    assert [author["name"] for author in CITATION["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_there_is_one_version():
    assert resvae.__version__ == PROJECT["version"] == CITATION["version"]
    released = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert released[0] == PROJECT["version"]


def test_the_licence_is_the_authors():
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith(f"{PROJECT['license']} License")
    assert licence.splitlines()[2].endswith(PROJECT["authors"][0]["name"])


def test_the_public_checks_are_those_of_the_project():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (python,) = [step["with"] for step in job["steps"] if "python-version" in step.get("with", {})]
    assert PROJECT["requires-python"] == f">={python['python-version']}"
