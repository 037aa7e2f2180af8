"""A run's configuration: read by one parser from files, environment and options, in that order of precedence."""

import functools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, register_unresolvable_import_paths

from resvae.data import ImageDataModule
from resvae.data.sources import SHAPES
from resvae.environment import after_files, files_in, options
from resvae.errors import ResvaeError, one_line
from resvae.files import place
from resvae.messages import plain
from resvae.models import MODELS
from resvae.runs.data import located
from resvae.runs.folder import CONFIG
from resvae.training.callbacks import EarlyStopping, ImageGrids
from resvae.training.classifier import LitClassifier
from resvae.training.loggers import Tracker
from resvae.training.module import LitVAE

register_unresolvable_import_paths(torch)  # torch.optim.Adam says that it lives in a private module

KINDS: dict[str, Any] = {kind.field: kind for kind in (LitVAE, LitClassifier)}
TRAINER: dict[str, Any] = {
    "trainer.max_epochs": 1000,
    "trainer.log_every_n_steps": 50,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_model_summary": False,
}
# What may differ between two configurations of the same training: where it goes, and what is shown meanwhile.
ELSEWHERE = ("config", "name", "runs", "ckpt_path", "weights_only", "trainer.enable_progress_bar")
WRITTEN_BY = "pytorch_lightning"  # in the first line of a configuration that a run wrote
EVERY = "All options of `resvae fit` are allowed too: --trainer.max_epochs 10 --data.limit 5000."
Tree = dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """All fields of a run, parsed and with their defaults.

    Args:
        field: ``vae`` or ``classifier``: what ``model`` holds.
        values: the fields; ``values.trainer.max_epochs``.
        shaped: whether it was said which images the model takes (``image_shape``).
    """

    field: str
    values: Namespace
    shaped: bool = True

    @property
    def folder(self) -> Path:
        """The run's."""
        return place(self.values.runs) / self.values.name

    def refuse_name(self) -> None:
        """Raise ``ResvaeError`` where the name would put the run beside the folder of all runs."""
        name = Path(self.values.name)
        if name.is_absolute() or not name.parts or {"..", "~"} & set(name.parts):
            raise ResvaeError(
                f"name: {self.values.name!r} is not allowed; a name, or group/name, below {self.values.runs}"
            )

    def text(self) -> str:
        """The YAML that ``resvae fit --config`` reads, every field with its value."""
        return run_parser(self.field).dump(self.values, skip_unset=False)

    def tree(self) -> Tree:
        """The fields as nested dicts of plain values."""
        return yaml.safe_load(self.text())

    def changed(self, changes: Mapping[str, Any]) -> "Configuration":
        """The configuration with other values of some fields, such as ``{"model.vae.init_args.depth": 40}``.

        Raises:
            jsonargparse.ArgumentError: no such field, or a value that it cannot have.
        """
        tree = self.tree()
        for field, value in changes.items():
            *parents, last = field.split(".")
            functools.reduce(lambda branch, name: branch[name], parents, tree)[last] = value
        return Configuration(self.field, run_parser(self.field).parse_object(tree))

    def differs(self, other: "Configuration") -> str | None:
        """The first field that makes this another training than ``other``, as ``field value, not other's value``."""
        here, there = (dict(leaves(each.values.as_dict())) for each in (self, other))
        for field in here | there:
            if here.get(field) != there.get(field) and field not in ELSEWHERE:
                return f"{field} {here.get(field)}, not {there.get(field)}"
        return None

    def take_shape(self) -> ImageDataModule | None:
        """Let the model take the images of the data set, unless it was said which; the data, if it read them."""
        arguments = self.values.model[self.field].get("init_args") or {}
        if self.shaped or "image_shape" not in arguments:
            return None
        data, size = self.values.data, self.values.data.image_size
        if (shape := SHAPES.get(data.name)) is not None:
            arguments["image_shape"] = shape if size is None else (shape[0], size, size)
            return None
        read = ImageDataModule(**data.as_dict())
        arguments["image_shape"] = read.image_shape
        return read

    def instantiate(self) -> Namespace:
        """What the fields describe: ``model``, ``data``, ``early_stopping``, ``images``; the trainer's stay values."""
        return run_parser(self.field).instantiate(self.values)


def parse(
    arguments: Sequence[str],
    verb: str = "fit",
    add: Callable[[ArgumentParser], None] | None = None,
    defaults: Sequence[str] = (),
) -> tuple[Configuration, Namespace]:
    """Parse the command line of a verb that trains or tests runs.

    Args:
        arguments: after the verb.
        verb: whose variables of the environment count, after those of ``fit``.
        add: adds the verb's own options to the parser.
        defaults: of the verb; options that win over files and the environment of ``fit``.

    Returns:
        The run's configuration, and the verb's own options.

    Raises:
        jsonargparse.ArgumentError: an unknown field, or a value that it cannot have.
        ResvaeError: no such file.
    """
    word = verb.split()[-1]
    runs = options("fit") if word not in ("fit", "validate", "test") else []
    arguments = after_files(arguments, [*_of_runs(arguments), *runs, *defaults, *options(word)])
    field = field_of(arguments)
    parser = run_parser.__wrapped__(field, verb)
    known = set(vars(parser.get_defaults()))
    if add is not None:
        add(parser)
    own = set(vars(parser.get_defaults())) - known
    values = parser.parse_args(arguments)
    own_values = Namespace({name: values.pop(name) for name in own})
    return Configuration(field, values, _gives("image_shape", field, arguments)), own_values


def printed_help(
    verb: str, description: str, arguments: Sequence[str], add: Callable[[ArgumentParser], None], config: str | None
) -> bool:
    """Whether help was asked for and printed: a verb's own options alone; those of ``fit`` are many."""
    if not {"-h", "--help"} & set(arguments):
        return False
    parser = ArgumentParser(prog=f"resvae {verb}", description=f"{description} {EVERY}")
    parser.add_argument("--config", default=config, help="the YAML of the base configuration")
    add(parser)
    parser.print_help()
    return True


def read_configuration(path: Path) -> Configuration:
    """The configuration in a file, whatever the environment says.

    Raises:
        ResvaeError: there is none, or it is damaged.
    """
    arguments = ["--config", str(path)]
    try:
        field = field_of(arguments)
        return Configuration(field, run_parser(field).parse_args(arguments + _of_runs(arguments)))
    except (OSError, ValueError, yaml.YAMLError, ArgumentError) as error:
        raise ResvaeError(f"configuration: {path} cannot be read ({plain(one_line(error))})") from error


@functools.cache
def run_parser(field: str, verb: str = "fit") -> ArgumentParser:
    """The parser of all fields of a run whose ``model`` holds a ``vae`` or a ``classifier``."""
    parser = ArgumentParser(
        prog=f"resvae {verb}",
        exit_on_error=False,
        dump_header=[f"resvae {version('resvae')}, {WRITTEN_BY} {pl.__version__}"],
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file of these options")
    parser.add_argument("--name", type=str, default="run", help="the run's folder is <runs>/<name>")
    parser.add_argument("--runs", type=str, default="runs", help="the folder of all runs")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="of all noise; true: a random one")
    parser.add_argument("--ckpt_path", type=str | None, help="resume from: last, best, or a checkpoint's file")
    parser.add_argument("--init_from", type=str | None, help="begin with the weights of a MODEL, of any run or name")
    parser.add_argument("--init_partial", type=bool, default=False, help="with init_from: leave out what does not fit")
    parser.add_argument(
        "--weights_only", type=bool | None, help="of no use: no checkpoint runs code"
    )  # older runs' files
    parser.add_argument(
        "--tracker",
        type=Tracker,
        default="auto",
        help="beside metrics.csv: wandb (offline if not logged in), tensorboard, none; auto: wandb if logged in",
    )
    parser.add_argument(
        "--save_every_n_steps", type=int, default=500, help="number of updates between two checkpoints of last.ckpt"
    )
    kind = KINDS[field]
    _add_class(parser, pl.Trainer, "trainer", instantiate=False)
    _add_class(parser, kind, "model")
    _add_class(parser, ImageDataModule, "data")
    _add_class(parser, EarlyStopping, "early_stopping")
    if kind.draws:
        _add_class(parser, ImageGrids, "images")
    parser.set_defaults(TRAINER | {"early_stopping.patience": 50, "early_stopping.verbose": False} | kind.defaults)
    return parser


def _add_class(parser: ArgumentParser, kind: type, field: str, instantiate: bool = True) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LeafSpec of torch's trees, which jsonargparse looks at
        parser.add_class_arguments(kind, field, fail_untyped=False, instantiate=instantiate, sub_configs=True)


def field_of(arguments: Sequence[str]) -> str:
    """``vae`` or ``classifier``: which of the two the options, or the files among them, name under ``model``."""
    named = {argument.split("=")[0].split(".")[1] for argument in arguments if argument.startswith("--model.")}
    for file in files_in(arguments):
        named |= set(_model_in(_read(file)[0]))
    return next((field for field in KINDS if field in named and field != "vae"), "vae")


def _gives(name: str, field: str, arguments: Sequence[str]) -> bool:
    """Whether the options, or the files among them, give the model's argument of this name."""
    models = [_model_in(_read(file)[0]).get(field) for file in files_in(arguments)]
    return any(name in str(each) for each in [*models, *arguments])


def _read(file: str) -> tuple[Tree, bool]:
    """What a configuration file holds, and whether a run wrote it; nothing where the parser will say what is wrong.

    Raises:
        ResvaeError: it is no text, or holds no fields.
    """
    try:
        text = place(file).read_text(encoding="utf-8-sig")
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ResvaeError(f"config: {file} is not text in UTF-8; save it as that") from error
    except (OSError, yaml.YAMLError):
        return {}, False
    if not isinstance(content, dict):
        raise ResvaeError(f"config: {file} holds no fields; lines such as name: run are needed")
    return content, WRITTEN_BY in text.partition("\n")[0]


def _model_in(content: Tree) -> Tree:
    model = content.get("model")
    return model if isinstance(model, dict) else {}


def _of_runs(arguments: Sequence[str]) -> list[str]:
    """Options that make a run's own file mean what it meant, wherever it lies now and from wherever it is read."""
    found: list[str] = []
    for file in files_in(arguments):
        content, written = _read(file)
        if written:
            found += [*_folder(place(file), content), *_earlier(content)]
    return found


def _folder(file: Path, content: Tree) -> list[str]:
    """Options for the folder of runs in which the file lies, and for data where the run saw them."""
    found: list[str] = []
    folder, name = file.resolve().parent, Path(str(content.get("name")))
    if file.name == CONFIG and folder.parts[-len(name.parts) :] == name.parts:
        runs = folder.parents[len(name.parts) - 1]
        found += [f"--runs={runs}"] if place(str(content.get("runs"))).resolve() != runs else []
    data = content.get("data")
    data = data if isinstance(data, dict) else {}
    return found + [f"--data.{key}={value}" for key, value in located(data, folder).items() if data.get(key) != value]


def _earlier(content: Tree) -> list[str]:
    """Options for arguments that are newer than a run's own file: the values that its model had (``earlier``)."""
    found: list[str] = []
    for field, value in _model_in(content).items():
        name = value.get("class_path", "").rpartition(".")[2] if isinstance(value, dict) else ""
        if name in MODELS:
            known = value.get("init_args") or {}
            earlier = MODELS[name].earlier
            found += [f"--model.{field}.init_args.{key}={old}" for key, old in earlier.items() if key not in known]
    return found


def leaves(tree: Tree, prefix: str = "") -> list[tuple[str, Any]]:
    """Each field by its full name, with its value."""
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            pairs += leaves(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value))
    return pairs


def listed(option: str, text: str, each: str = r"\d+(-\d+)*") -> list[tuple[int, ...]]:
    """Numbers, or numbers joined by dashes, with commas between them, each kept once; else ``ResvaeError``."""
    parts = text.replace(" ", "").split(",")
    if not all(re.fullmatch(each, part) for part in parts):
        raise ResvaeError(f"{option}: {text!r} is not allowed; give numbers with commas between")
    return list(dict.fromkeys(tuple(map(int, part.split("-"))) for part in parts))


def numbers(option: str, text: str) -> list[int]:
    """``listed`` without dashes."""
    return [number for (number,) in listed(option, text, r"\d+")]
