"""A file that says who trains in a folder: two processes must not."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from resvae.errors import ResvaeError
from resvae.runs.folder import LOCK

BEAT = 3.0  # seconds between two signs of life of the process that holds a lock
PATIENCE = 10.0  # seconds without one after which a process that cannot be looked up counts as ended


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's ``lock.json``, which says who trains there: host, process and since when.

    The lock of a process that has ended is taken over. On Linux, a process of this machine is looked up by its number
    and start; any other shows that it lives by touching its lock every few seconds.

    Raises:
        ResvaeError: another process trains in the folder.
    """
    path = folder / LOCK
    while True:
        try:
            with path.open("x") as file:
                json.dump(_this_process(), file)
            break
        except FileExistsError:
            holder = _read(path)
        if _lives(path, holder):
            who = f"process {holder.get('process', '?')} on {holder.get('host', 'an unknown host')}"
            raise ResvaeError(
                f"folder: {who} trains in {folder} since {holder.get('since', 'a moment ago')}; wait for it, or stop it"
            )
        _remove(path, holder)
    ended = Event()
    Thread(target=_beat, args=(path, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def _this_process() -> dict[str, Any]:
    since = datetime.now().isoformat(" ", "seconds")
    return {"host": _host(), "process": os.getpid(), "started": _started(os.getpid()), "since": since}


def _host() -> str:
    """The machine's name, and on Linux the space of its process numbers: containers may share the name."""
    try:
        return f"{socket.gethostname()} ({os.readlink('/proc/self/ns/pid')})"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str | None:
    """When a process of this machine started, in ticks since the boot; None where that is not known."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _lives(path: Path, holder: dict[str, Any]) -> bool:
    if holder.get("host") == _host() and holder.get("started") is not None:
        return _started(holder["process"]) == holder["started"]
    before, end = _touched(path), time.monotonic() + PATIENCE
    while before is not None and time.monotonic() < end:
        time.sleep(BEAT / 10)
        if _touched(path) not in (before, None):
            return True
        before = before if _touched(path) is not None else None  # removed: its holder has ended
    return False


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _remove(path: Path, holder: dict[str, Any]) -> None:
    """Take away a lock whose holder has ended, but not one that another process has put there meanwhile."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.rename(aside)
        if _read(aside) != holder:
            os.link(aside, path)
        aside.unlink()
    except OSError:  # another process was faster; the caller looks again
        aside.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """Empty while it is being written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _beat(path: Path, ended: Event) -> None:
    while not ended.wait(BEAT):
        try:
            os.utime(path)
        except OSError:  # the folder was removed, or its disk is away
            continue
