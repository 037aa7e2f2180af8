"""Options that the environment gives: one reader for all verbs."""

import os
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise

ENDS_WITH_PARENT = "RESVAE_ENDS_WITH_PARENT"  # set for a run that another process has started and waits for
DEVICE = "RESVAE_DEVICE"  # where to compute; ``--device`` sets it, for other processes of the command, too
CONFIG_FILE = ("-c", "--config")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def wait_briefly() -> None:
    """Let a thread of torch's that waits for another on a CPU spin 5,000 times, not 300,000, before it gives way.

    It must be called before torch is imported. Where other work shares the cores, a thread that spins takes the time of
    the one that it waits for. What the user set is left alone.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = "5000"


def keep_freed_memory() -> None:
    """Let memory that is freed stay with the process, so that the next step of a training takes it as it is.

    By default the C library of Linux hands much of it back after each step, and the system clears it anew, page by
    page. Pieces of more than 32 MiB are handed back all the same. What the user set is left alone.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


def variables(verb: str) -> dict[str, str]:
    """The variables ``RESVAE_<VERB>__<FIELD>`` of the environment, with their values."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(f"RESVAE_{verb.upper()}__")}


def options(verb: str, skip: Collection[str] = ()) -> list[str]:
    """The options that the environment gives to a verb: ``RESVAE_FIT__DATA__SEED=1`` is ``--data.seed=1``.

    Args:
        verb: the last word of the verb: ``fit``, ``sweep``, ``degradation``.
        skip: fields that are no options.
    """
    found = {name.partition("__")[2].lower().replace("__", "."): text for name, text in variables(verb).items()}
    return [f"--{field}={text}" for field, text in found.items() if field not in skip]


def after_files(arguments: Sequence[str], inserted: Sequence[str]) -> list[str]:
    """The arguments with others inserted after the last configuration file: they win over files, and options win."""
    files = [i for i, argument in enumerate(arguments) if argument.split("=")[0] in CONFIG_FILE]
    start = files[-1] + 1 + ("=" not in arguments[files[-1]]) if files else 0
    return [*arguments[:start], *inserted, *arguments[start:]]


def files_in(arguments: Sequence[str]) -> list[str]:
    """The configuration files that the arguments name."""
    parts = [(argument.partition("="), following) for argument, following in pairwise([*arguments, ""])]
    return [value if equals else following for (name, equals, value), following in parts if name in CONFIG_FILE]
