"""The command line: which verb, and what becomes of its errors. Nothing heavy is imported before a verb needs it."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import Any

from resvae.environment import DEVICE, after_files, keep_freed_memory, options, wait_briefly
from resvae.errors import LostProcessError, ResvaeError, one_line
from resvae.messages import plain

# Each verb by its group: its module under resvae, what it does, and an example. The module has either a function
# of the verb's name, whose signature is the verb's options, or a function ``main`` of the verb and its arguments.
TRAIN = "train and test (YAML in configs/; every field can be overridden)"
USE = "use (MODEL: a run's folder, a .ckpt, a saved folder or the name of shipped weights)"
VERBS: dict[str, tuple[str, str, str, str]] = {
    "fit": (TRAIN, "verbs.fit", "train", "--config configs/quickstart.yaml --model.vae.depth 40"),
    "validate": (TRAIN, "verbs.checkpoints", "validation figures", "runs/quickstart"),
    "test": (TRAIN, "verbs.checkpoints", "test figures", "runs/quickstart"),
    "sweep": (TRAIN, "studies.sweep", "compare depths", "--config configs/quickstart.yaml --depths 16,22 --seeds 0,1"),
    "bench": (TRAIN, "verbs.bench", "speed on this machine", "--config configs/cifar10.yaml --out bench.json"),
    "study": (TRAIN, "studies", "what residuals do", "--help lists the studies"),
    "sample": (USE, "verbs.sample", "draw new images", "runs/quickstart --num 64 --out samples.png"),
    "reconstruct": (USE, "verbs.reconstruct", "originals beside", "runs/quickstart a.jpg b.png --out pairs.png"),
    "interpolate": (USE, "verbs.interpolate", "from one to another", "runs/quickstart a.jpg b.png --out rows.png"),
    "encode": (USE, "verbs.encode", "images to latents", "runs/quickstart folder/ --out latents.npz"),
    "decode": (USE, "verbs.decode", "latents to images", "runs/quickstart latents.npz --out images/"),
    "evaluate": (USE, "verbs.evaluate", "ELBO, IW-k, FID, ...", "runs/quickstart --num_samples 100 --out report.json"),
    "demo": (USE, "demo.demo", "a page to play with", "runs/quickstart"),
    "export": (USE, "verbs.export", "a folder to share", "runs/quickstart my-digits"),
    "push": (USE, "verbs.push", "share on the Hub", "runs/quickstart user/my-digits"),
}
STUDIES = {
    "wrapper": "Residual around convolutions and recurrent layers, beside the same without",
    "degradation": "plain, residual and highway networks by depth",
    "orders": "the five orders of normalisation and activation",
    "shortcuts": "what goes around the branch",
    "responses": "how large each layer's output is",
    "gradients": "the gradient that reaches each block",
    "lesion": "blocks deleted and exchanged, levels of latents from their prior",
    "paths": "paths by length, and the gradient that they carry",
    "levels": "what each level of latents says about an image, and decides in a new one",
    "activations": "for one image, what each layer sees, adds and passes on",
}
END = """
An option that the command line does not give is read from the environment:
  RESVAE_FIT__MODEL__VAE__INIT_ARGS__DEPTH=40 resvae fit --config configs/quickstart.yaml
--device cpu (or cuda, cuda:1, mps, ...) computes there, with every verb; RESVAE_DEVICE does the same.
RESVAE_IMPORT=my_module imports a module first: one that registers models of your own, for instance.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code. Bad input is one line on stderr and code 2; RESVAE_DEBUG=1 shows the trace."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    wait_briefly()
    keep_freed_memory()
    with warnings.catch_warnings(), _environment():
        warnings.showwarning = _warn
        try:
            _run(arguments[0], arguments[1:])
        except KeyboardInterrupt:
            print("resvae: interrupted", file=sys.stderr)
            return 130
        except SystemExit as end:  # with this one Lightning would end as if all were well
            if type(end).__name__ != "SIGTERMException":
                raise
            return 128 + signal.SIGTERM
        except LostProcessError as error:
            print(f"resvae: error: {error}", file=sys.stderr)
            return 1
        except Exception as error:
            if os.environ.get("RESVAE_DEBUG") or not _is_users(error):
                raise
            text = one_line(error)
            print(f"resvae: error: {plain(text) if type(error).__name__ == 'ArgumentError' else text}", file=sys.stderr)
            return 2
    return 0


@contextmanager
def _environment() -> Iterator[None]:
    """Leave the environment as it was: an option of one command is none of the next in the same process."""
    before = os.environ.get(DEVICE)
    try:
        yield
    finally:
        os.environ.pop(DEVICE, None)
        if before is not None:
            os.environ[DEVICE] = before


def _run(verb: str, rest: list[str]) -> None:
    if verb in ("--version", "version"):
        from resvae import __version__

        print(f"resvae {__version__}")
        return
    if verb not in VERBS:
        raise ResvaeError(f"verb: {verb} is not known; one of {', '.join(VERBS)}")
    place, name = VERBS[verb][1], verb
    if verb == "study":
        if not rest or rest[0] in ("-h", "--help"):
            print(_studies(), end="")
            return
        name, *rest = rest
        if name not in STUDIES:
            raise ResvaeError(f"verb: study {name} is not known; one of {', '.join(STUDIES)}")
        place, verb = f"studies.{name}", f"study {name}"
    rest = _device(rest)
    for own in filter(None, os.environ.get("RESVAE_IMPORT", "").split(",")):
        _import_own(own)
    module = import_module(f"resvae.{place}")
    if hasattr(module, "main"):
        module.main(verb, rest)
    else:
        _call(getattr(module, name), verb, rest)


def _call(function: Callable[..., Any], verb: str, arguments: list[str]) -> None:
    """Call a function with the arguments that its signature describes."""
    from jsonargparse import auto_cli

    parameters = signature(function).parameters
    if "pictures" in parameters:
        arguments = _pictures(arguments)
    word = verb.split()[-1]
    needed = {name for name, each in parameters.items() if each.default is each.empty}
    if "model" in parameters.keys() - needed and arguments and not arguments[0].startswith("-"):  # it may be left out
        arguments = [f"--model={arguments[0]}", *arguments[1:]]
    auto_cli(
        function,
        args=after_files(arguments, options(word, skip=needed)),
        prog=f"resvae {verb}",
        exit_on_error=False,
        default_env=any(f"RESVAE_{word.upper()}__{name.upper()}" in os.environ for name in needed),  # no options
        env_prefix=f"RESVAE_{word.upper()}_",  # and one more underscore before the name
    )


def _device(arguments: list[str]) -> list[str]:
    """The arguments without ``--device NAME``, which goes to the environment: other processes read it there, too."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--device":
            after = i + 1 if equals else i + 2
            if not (value or arguments[i + 1 : after]):
                raise ResvaeError("device: a name is missing: cpu, cuda, cuda:1, mps, ...")
            os.environ[DEVICE] = value or arguments[i + 1]
            return [*arguments[:i], *arguments[after:]]
    return arguments


def _pictures(arguments: list[str]) -> list[str]:
    """The words between the model and the first option as ``--pictures``, which takes a list."""
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    words = arguments[1:first]
    return [*arguments[:1], *([f"--pictures={json.dumps(words)}"] if words else []), *arguments[max(first, 1) :]]


def _import_own(module: str) -> None:
    sys.path.insert(0, os.getcwd())
    try:
        import_module(module)
    except ImportError as error:
        raise ResvaeError(f"RESVAE_IMPORT: {module} cannot be imported ({one_line(error)})") from error
    finally:
        sys.path.remove(os.getcwd())


def _help() -> str:
    lines = ["resvae: residual variational autoencoders of any depth", ""]
    lines += ["usage: resvae VERB [options]        resvae VERB --help lists the options of a verb"]
    for group in dict.fromkeys(group for group, *_ in VERBS.values()):
        lines += ["", group]
        for verb, (of, _, what, example) in VERBS.items():
            lines += [f"  {verb:12} {what:21} resvae {verb} {example}"] if of == group else []
    return "\n".join(lines) + "\n" + END


def _studies() -> str:
    width = max(map(len, STUDIES))
    return "usage: resvae study NAME [options]\n\n" + "".join(f"  {name:{width}}  {w}\n" for name, w in STUDIES.items())


def _is_users(error: Exception) -> bool:
    """Whether the input is at fault and not the code."""
    kinds: list[type[Exception]] = [ResvaeError, OSError]
    elsewhere = {"jsonargparse": "ArgumentError", "pytorch_lightning.utilities.exceptions": "MisconfigurationException"}
    # a library that is not imported cannot have raised
    kinds += [getattr(sys.modules[module], name) for module, name in elsewhere.items() if module in sys.modules]
    return isinstance(error, tuple(kinds))


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the line of code that gave it."""
    print(f"resvae: warning: {one_line(message)}", file=sys.stderr)
