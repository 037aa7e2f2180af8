"""A grid: a base configuration, and the points at which it is trained. Sweeps and training studies are grids."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from resvae.environment import files_in
from resvae.errors import ResvaeError
from resvae.files import place, write_text
from resvae.runs.folder import CONFIG, has_ended, latest_checkpoint
from resvae.runs.lock import locked
from resvae.studies.processes import Job, Workers
from resvae.studies.table import Row
from resvae.training.configuration import Configuration, parse, printed_help, read_configuration


@dataclass(frozen=True)
class Point:
    """One run of a grid.

    Args:
        name: of the run's folder.
        labels: what it is; the first cells of its row.
        changes: the fields in which its configuration differs from the base, by their full names.
        reported: cells of its row that others have published.
    """

    name: str
    labels: Row
    changes: Mapping[str, Any]
    reported: Row = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {label}" for name, label in self.labels.items())


@dataclass(frozen=True)
class Grid:
    """Training runs in one folder, each in a process of its own.

    Args:
        verb: who asks: ``sweep``, ``study degradation``.
        folder: of the runs and the table.
        base: what the runs have in common.
        points: the runs.
        workers: where, and how many at once.
    """

    verb: str
    folder: Path
    base: Configuration
    points: Sequence[Point]
    workers: Workers

    def train(self, table: Callable[[], str], stem: str) -> str:
        """Train what has not ended yet; print the table and what was written, and return the table in Markdown.

        Each run's configuration is written into its folder before it starts. A run that was stopped resumes from its
        last checkpoint; one that fails does not stop the others.

        Args:
            table: writes what the folder's runs have found, and returns it as Markdown; called after every run.
            stem: how the names of the files that ``table`` writes begin.

        Raises:
            ResvaeError: no model is as a point says, or runs in the folder were trained otherwise (before anything is
                written); another process trains there; a run failed.
        """
        configurations = {point.name: self._configuration(point) for point in self.points}
        for point in self.points:
            self._check(point, configurations[point.name])
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            failed, text = [], table()
            left = [Job(str(each), self.folder / each.name) for each in self.points if not self._ended(each)]
            for job in left:
                if latest_checkpoint(job.folder) is None:
                    if job.folder.exists():  # killed before its first checkpoint
                        with locked(job.folder):
                            shutil.rmtree(job.folder)
                    job.folder.mkdir()
                    write_text(job.folder / CONFIG, configurations[job.folder.name].text())
            for job, code in self.workers.train(left):
                failed += [job] if code else []
                text = table()
        if text:
            print(text)
            wrote = [path for path in self.folder.glob(f"{stem}*") if path.suffix in (".csv", ".md", ".png")]
            print("\n".join(f"wrote {path}" for path in sorted(wrote)))
        if failed:
            told = "; ".join(f"{job} ({job.log})" if self.workers.logged else str(job) for job in failed)
            raise ResvaeError(f"{self.verb}: failed: {told}; the same command resumes what is left")
        return text

    def _ended(self, point: Point) -> bool:
        return has_ended(self.folder / point.name)

    def _check(self, point: Point, configuration: Configuration) -> None:
        if self._ended(point):
            return
        try:
            with torch.device("meta"):  # nothing is allocated
                configuration.instantiate()
        except ResvaeError as error:
            raise ResvaeError(f"{self.verb}: {point}: {error}") from error

    def _configuration(self, point: Point) -> Configuration:
        """The point's; ``ResvaeError`` where its folder holds the training of another."""
        run = self.folder / point.name
        here = self.base.changed({**point.changes, "name": run.name, "runs": str(self.folder)})
        if (self._ended(point) or latest_checkpoint(run)) and (other := read_configuration(run / CONFIG).differs(here)):
            raise ResvaeError(f"{self.verb}: {run} was trained with {other}; choose another folder, or remove that one")
        return here


def parse_grid(
    verb: str,
    description: str,
    arguments: Sequence[str],
    add: Callable[[ArgumentParser], None],
    config: str | None = None,
    seeds: str | None = None,
) -> tuple[Configuration, Namespace] | None:
    """The base configuration and the grid's own options of a command line; None after printing help.

    Args:
        verb, description: what it is called, and what it does.
        arguments: after the verb; its own options, and all those of ``resvae fit``.
        add: adds the options that this verb alone has.
        config, seeds: the defaults of these options.

    Raises:
        jsonargparse.ArgumentError, ResvaeError: as ``parse``; no configuration.
    """

    def options(parser: ArgumentParser) -> None:
        add(parser)
        parser.add_argument("--seeds", type=str | None, default=seeds, help="0,1,2: one run per value and seed")
        parser.add_argument("--jobs", type=int, default=1, help="runs at once; their output goes to <run>.log")
        parser.add_argument("--ray", type=str | None, help="a Ray cluster's address, auto or local; the disk is shared")
        parser.add_argument("--cpus", type=int, default=1, help="with --ray: cores per run")
        parser.add_argument("--gpus", type=float, default=0, help="with --ray: GPUs per run")

    if printed_help(verb, description, arguments, options, config):
        return None
    if not files_in(arguments):
        if config is None:
            raise ResvaeError(f"{verb}: --config is missing; give the YAML of the base configuration")
        arguments = ["--config", config, *arguments]
    for file in files_in(arguments):
        if not place(file).is_file():
            raise ResvaeError(f"{verb}: the configuration {file} does not exist")
    base, own = parse(arguments, verb, options, ["--name=sweep", "--runs=runs", "--ckpt_path=null"])
    base.take_shape()  # each run is given a whole configuration
    return base, own
