"""What a sweep and the studies that train share: their options, and the training of many runs in one folder."""

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml

from resvae.errors import ResvaeError, at_least
from resvae.files import write_atomically
from resvae.studies.remote import Cluster, train_remotely
from resvae.studies.runs import Run, train_here


@dataclass(frozen=True)
class Launch:
    """Training runs of one folder, each in a process of its own.

    Args:
        verb: who asks: ``sweep``, ``study degradation``.
        folder: of the runs, the table, and ``sweep.json`` or ``degradation.json``: what the runs have in common.
        config: the YAML of ``resvae fit``.
        overrides: further arguments of ``resvae fit``.
        jobs: runs at once on this machine.
        cluster: where to train instead.
        more: what else the runs have in common.

    Raises:
        ResvaeError: no such configuration; the folder's runs were trained otherwise.
    """

    verb: str
    folder: Path
    config: str | Path
    overrides: Sequence[str] = ()
    jobs: int = 1
    cluster: Cluster | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(1, jobs=self.jobs)
        try:
            there = json.loads(self._kept.read_text()) if self._kept.is_file() else {}
        except ValueError as error:
            raise ResvaeError(f"{self.verb}: {self._kept} is damaged; remove it, or choose another folder") from error
        other = [name for name, value in self.common.items() if there.get(name) != value]
        if other and any(self.folder.glob("*/checkpoints/*.ckpt")):
            raise ResvaeError(
                f"{self.verb}: the runs in {self.folder} were trained with another {' and '.join(other)} "
                f"(see {self._kept}); choose another folder, or remove that one"
            )

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of ``resvae fit`` in all runs."""
        return "--config", str(self.config), *self.overrides

    @cached_property
    def common(self) -> dict[str, Any]:
        """What all runs have in common; the configuration's comments may change."""
        if not Path(self.config).is_file():
            raise ResvaeError(f"{self.verb}: the configuration {self.config} does not exist")
        try:
            content = yaml.safe_load(Path(self.config).read_text())
        except (ValueError, yaml.YAMLError) as error:
            raise ResvaeError(f"{self.verb}: {self.config} is not YAML: {error}") from error
        environment = {name: value for name, value in os.environ.items() if name.startswith("RESVAE_FIT__")}
        given = {"config": content, "overrides": self.overrides, "environment": environment, **self.more}
        return json.loads(json.dumps(given, default=str))

    def train(self, runs: Sequence[Run], table: Callable[[], str], stem: str) -> str:
        """Train what has not ended yet; print the table and what was written.

        A run that was stopped goes on from its last checkpoint; one that fails does not stop the others.

        Args:
            runs: all that there shall be.
            table: writes what the folder's runs have found, and returns it as Markdown; called after every run.
            stem: how the names of the files that ``table`` writes begin.

        Raises:
            ResvaeError: a run failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.common, indent=2) + "\n"
        write_atomically(self._kept, lambda path: path.write_text(text))
        failed, text, left = [], table(), [run for run in runs if not run.ended]
        if left:
            environment = self.common["environment"]
            trained = (
                train_remotely(left, self.cluster, environment)
                if self.cluster
                else train_here(left, self.jobs, environment)
            )
            for run, code in trained:
                failed += [run] if code else []
                text = table()
        if text:
            print(text)
            wrote = [path for path in self.folder.glob(f"{stem}*") if path.suffix in (".csv", ".md", ".png")]
            print("\n".join(f"wrote {path}" for path in sorted(wrote)))
        if failed:
            logged = self.cluster or self.jobs > 1
            told = "; ".join(f"{run.label} ({run.log})" if logged else run.label for run in failed)
            raise ResvaeError(f"{self.verb}: failed: {told}; the same command goes on with what is left")
        return text

    @property
    def _kept(self) -> Path:
        return self.folder / f"{self.verb.split()[-1]}.json"


class Parser(argparse.ArgumentParser):
    """The options that all have; what it does not know goes to ``resvae fit`` of each run."""

    def __init__(self, verb: str, description: str, config: str | None = None, seeds: str | None = None):
        super().__init__(
            prog=f"resvae {verb}",
            allow_abbrev=False,
            description=description,
            epilog="Every other option goes to `resvae fit` of each run: --trainer.max_epochs 10 --data.limit 5000",
        )
        self._prefix = f"RESVAE_{verb.split()[-1].upper()}__"
        self.add_argument("--config", default=config, help=f"the YAML of `resvae fit` [{config or 'needed'}]")
        own = "the configuration's own"
        self.add_argument("--seeds", default=seeds, help=f"0,1,2: one run a value and seed [{seeds or own}]")
        self.add_argument("--jobs", type=int, default=1, help="so many runs at once; their output goes to <run>.log")
        self.add_argument("--ray", help="run on Ray: a cluster's address, auto, or local; the workers share the disk")
        self.add_argument("--cpus", type=int, default=1, help="of --ray: cores a run")
        self.add_argument("--gpus", type=float, default=0, help="of --ray: GPUs a run")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The options, those that are not given from the environment: ``RESVAE_SWEEP__DEPTHS``."""
        for action in self._actions:
            if (value := os.environ.get(f"{self._prefix}{action.dest.upper()}")) is not None:
                action.default = value  # argparse converts a default that is a text
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """argparse's complaint as a ``ResvaeError``, where argparse would exit."""
        raise ResvaeError(f"{self.prog.removeprefix('resvae ')}: {message}")

    def launch(self, folder: Path, known: argparse.Namespace, overrides: Sequence[str]) -> Launch:
        """What the options ask for."""
        cluster = None if known.ray is None else Cluster(known.ray, known.cpus, known.gpus)
        return Launch(self.prog.removeprefix("resvae "), folder, known.config, overrides, known.jobs, cluster)


def listed(option: str, text: str, each: str = r"\d+(-\d+)*") -> list[tuple[int, ...]]:
    """Numbers, or numbers with dashes, with commas between them, each once, or ``ResvaeError``."""
    parts = text.replace(" ", "").split(",")
    if not all(re.fullmatch(each, part) for part in parts):
        raise ResvaeError(f"{option}: {text!r} is not allowed; give numbers with commas between")
    return list(dict.fromkeys(tuple(map(int, part.split("-"))) for part in parts))
