"""The command line: which verb, and what becomes of its errors."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from resvae.verbs import evaluate, export, interpolate, reconstruct, sample

HELP = """\
resvae: residual variational autoencoders of any depth

usage: resvae VERB [options]        resvae VERB --help tells the options of a verb

train and test (YAML in configs/; every field can be overridden)
  fit          train                 resvae fit --config configs/quickstart.yaml --model.vae.depth 40
  validate     validation figures    resvae validate runs/quickstart
  test         test figures          resvae test runs/quickstart
  sweep        a run a value, seed   resvae sweep --config configs/quickstart.yaml --depths 16,22,28 --seeds 0,1

use (MODEL: a run's folder, a .ckpt, a saved folder or the name of shipped weights)
  sample       draw new images       resvae sample runs/quickstart --num 64 --out samples.png
  reconstruct  originals beside      resvae reconstruct runs/quickstart --num 32 --out reconstructions.png
  interpolate  between test images   resvae interpolate runs/quickstart --steps 8 --out interpolations.png
  evaluate     ELBO, IW-k, FID, ...  resvae evaluate runs/quickstart --num_samples 100 --out report.json
  export       to give away          resvae export runs/quickstart my-digits

An option is read from the environment where the command line does not give it:
  RESVAE_FIT__MODEL__VAE__INIT_ARGS__DEPTH=40 resvae fit --config configs/quickstart.yaml
"""

VERBS: dict[str, Callable[..., None]] = {
    "sample": sample,
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "evaluate": evaluate,
    "export": export,
}
TRAINING = ("fit", "validate", "test")


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code. Bad input is one line on stderr and code 2; RESVAE_DEBUG=1 shows the trace."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(arguments[0], arguments[1:])


def _run(verb: str, rest: list[str]) -> int:
    try:
        if verb in ("--version", "version"):
            from resvae import __version__

            print(f"resvae {__version__}")
        elif verb in TRAINING:
            from resvae.training.run import run

            run([verb, *rest])
        elif verb == "sweep":
            from resvae.studies.sweep import main as sweep

            sweep(rest)
        elif verb in VERBS:
            from jsonargparse import auto_cli

            auto_cli(
                VERBS[verb],
                args=rest,
                prog=f"resvae {verb}",
                exit_on_error=False,
                default_env=True,
                env_prefix=f"RESVAE_{verb.upper()}_",  # and one more underscore before the option,
            )
        else:
            raise ValueError(f"verb: {verb} is not known; one of {', '.join([*TRAINING, 'sweep', *VERBS])}")
    except Exception as error:
        if os.environ.get("RESVAE_DEBUG") or not _is_users(error):
            raise
        print(f"resvae: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _is_users(error: Exception) -> bool:
    """Whether the input is at fault and not the code."""
    from jsonargparse import ArgumentError
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from resvae.errors import ResvaeError

    plain = type(error) is ValueError and str(error).startswith("verb: ")
    return plain or isinstance(error, ResvaeError | ArgumentError | MisconfigurationException | OSError)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the line of code that gave it."""
    print(f"resvae: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(message: Warning | Exception | str) -> str:
    return " ".join(str(message).split()) or type(message).__name__
