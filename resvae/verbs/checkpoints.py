"""``resvae validate`` and ``resvae test``: the figures of a run's checkpoint."""

from typing import Literal

from jsonargparse import ArgumentParser

from resvae.errors import ResvaeError
from resvae.files import place
from resvae.runs.folder import CONFIG, best_checkpoint
from resvae.training.configuration import parse
from resvae.training.fit import evaluate

HELP = """\
usage: resvae {verb} RUN [options]
       resvae {verb} --config FILE --ckpt_path FILE [options]

Print the {split} figures of a run's best checkpoint, or of another one.

  --ckpt_path last                  the run's last checkpoint, or a file; default: best
  --data.root FOLDER                another place of the downloaded sets
  --data.eval_batch_size N          images per batch
  --verbose false                   leave Lightning's table of the figures out

Every option of `resvae fit` is allowed too.
"""
SPLITS: dict[str, Literal["val", "test"]] = {"validate": "val", "test": "test"}


def main(verb: str, arguments: list[str]) -> None:
    """Validate or test; a run's folder alone means its configuration and its best checkpoint."""
    if {"-h", "--help"} & set(arguments):
        print(HELP.format(verb=verb, split="validation" if verb == "validate" else verb), end="")
        return
    if arguments and not arguments[0].startswith("-"):
        folder = place(arguments[0])
        if not (folder / CONFIG).is_file():
            raise ResvaeError(f"{verb}: {folder} is not a run's folder: it holds no {CONFIG}")
        arguments = ["--config", str(folder / CONFIG), "--ckpt_path", str(best_checkpoint(folder)), *arguments[1:]]

    def add(parser: ArgumentParser) -> None:
        parser.add_argument("--verbose", type=bool, default=True, help="print Lightning's table of the figures, too")

    configuration, own = parse(arguments, verb, add)
    evaluate(configuration, SPLITS[verb], own.verbose)
