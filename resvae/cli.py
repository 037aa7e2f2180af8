"""The command line: which verb, and what becomes of its errors."""

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from resvae.errors import ResvaeError, one_line

HELP = """\
resvae: residual variational autoencoders of any depth

usage: resvae VERB [options]        resvae VERB --help tells the options of a verb

train and test (YAML in configs/; every field can be overridden)
  fit          train                 resvae fit --config configs/quickstart.yaml --model.vae.depth 40
  validate     validation figures    resvae validate runs/quickstart
  test         test figures          resvae test runs/quickstart
  sweep        a run a value, seed   resvae sweep --config configs/quickstart.yaml --depths 16,22,28 --seeds 0,1
  study        what residuals do     resvae study --help tells the studies

use (MODEL: a run's folder, a .ckpt, a saved folder or the name of shipped weights)
  sample       draw new images       resvae sample runs/quickstart --num 64 --out samples.png
  reconstruct  originals beside      resvae reconstruct runs/quickstart --num 32 --out reconstructions.png
  interpolate  between test images   resvae interpolate runs/quickstart --steps 8 --out interpolations.png
  evaluate     ELBO, IW-k, FID, ...  resvae evaluate runs/quickstart --num_samples 100 --out report.json
  export       to give away          resvae export runs/quickstart my-digits

An option is read from the environment where the command line does not give it:
  RESVAE_FIT__MODEL__VAE__INIT_ARGS__DEPTH=40 resvae fit --config configs/quickstart.yaml
"""

VERBS = ("evaluate", "export", "interpolate", "reconstruct", "sample")
TRAINING = ("fit", "validate", "test")
# Each is a module of resvae.studies with a function of its name, whose signature is its options, or with a ``main``.
STUDIES = {
    "wrapper": "Residual around convolutions and recurrent layers, beside the same without",
    "degradation": "plain, residual and highway networks by depth",
    "orders": "the five orders of normalisation and activation",
    "shortcuts": "what goes around the branch",
    "responses": "how large each layer's output is",
    "gradients": "the gradient that reaches each block",
    "lesion": "blocks deleted and exchanged, levels of latents from their prior",
    "paths": "paths by length, and the gradient that they carry",
    "activations": "for one image, what each layer sees, adds and passes on",
}


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
        elif verb == "study":
            _study(rest)
        elif verb in VERBS:
            _call(getattr(import_module(f"resvae.verbs.{verb}"), verb), verb, rest)
        else:
            raise ResvaeError(f"verb: {verb} is not known; one of {', '.join([*TRAINING, 'sweep', 'study', *VERBS])}")
    except KeyboardInterrupt:
        print("resvae: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("RESVAE_DEBUG") or not _is_users(error):
            raise
        print(f"resvae: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _call(function: Callable[..., Any], verb: str, arguments: list[str]) -> None:
    from jsonargparse import auto_cli

    auto_cli(
        function,
        args=arguments,
        prog=f"resvae {verb}",
        exit_on_error=False,
        default_env=True,
        env_prefix=f"RESVAE_{verb.split()[-1].upper()}_",  # and one more underscore before the option
    )


def _study(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, STUDIES))
        print("usage: resvae study NAME [options]\n")
        print("\n".join(f"  {name:{width}}  {what}" for name, what in STUDIES.items()))
        return
    name, *rest = arguments
    if name not in STUDIES:
        raise ResvaeError(f"verb: study {name} is not known; one of {', '.join(STUDIES)}")
    module = import_module(f"resvae.studies.{name}")
    if hasattr(module, "main"):
        module.main(rest)
    else:
        _call(getattr(module, name), f"study {name}", rest)


def _is_users(error: Exception) -> bool:
    """Whether the input is at fault and not the code."""
    from jsonargparse import ArgumentError
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    return isinstance(error, ResvaeError | ArgumentError | MisconfigurationException | OSError)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the line of code that gave it."""
    print(f"resvae: warning: {one_line(message)}", file=sys.stderr)
