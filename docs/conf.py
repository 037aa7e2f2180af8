"""The documentation site: ``sphinx-build -W --keep-going docs build/site``. Nothing is fetched and no notebook runs."""

import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for verb_help

project = "resvae"
author = "the resvae authors"
project_copyright = f"2026, {author}"
release = metadata.version("resvae")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "verb_help",
]
exclude_patterns = ["notebooks/executed", "notebooks/runs", "**.ipynb_checkpoints"]

nb_execution_mode = "off"  # the notebooks are committed as they ran
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # their tables
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes; h' keeps its mark

highlight_language = "text"  # of diagrams in docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 140
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"resvae {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7ab8e0", "color-brand-content": "#7ab8e0"},
}

# Links of pages that are read in the repository, too, and what they lead to in the site.
ELSEWHERE = {
    "](../CONTRIBUTING.md": "](contributing.md",
    "](../CHANGELOG.md": "](changelog.md",
    "](../SECURITY.md": "](security.md",
}


def within_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to files above docs/ into links to the site's pages."""
    for link, here in ELSEWHERE.items():
        source[0] = source[0].replace(link, here)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", within_the_site)
