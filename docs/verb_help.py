"""The directive ``verb-help``: what ``resvae VERB --help`` prints, asked for while the site is built."""

import io
import os
from contextlib import redirect_stdout
from unittest.mock import patch

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from resvae.cli import main


class VerbHelp(SphinxDirective):
    """``{verb-help} study lesion``: a verb, and whatever else stands before or after ``--help``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The printed text as a literal block; an error where the verb does not print its help."""
        verb, *rest = self.arguments[0].split()
        words = [verb, *rest] if "--help" in rest else [verb, *rest, "--help"]
        with redirect_stdout(io.StringIO()) as printed, patch.dict(os.environ, COLUMNS="100"):
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code
        if code:
            raise self.error(f"resvae {' '.join(words)} ended with code {code}")
        text = printed.getvalue().rstrip()
        return [nodes.literal_block(text, text, language="text", classes=["help"])]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("verb-help", VerbHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
