"""A file that says who trains in a folder: two processes must not."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from resvae.errors import ResvaeError
from resvae.runs.folder import LOCK

SILENCE = 10.0  # seconds without a sign of life after which the process of another machine counts as ended


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock file, which names the host and the process that train there.

    The lock of a process that has ended is taken over: on the same machine at once, where the process and its start
    can be looked up; from another machine when it has given no sign of life for 10 seconds.

    Raises:
        ResvaeError: another process trains in the folder.
    """
    lease = SoftFileLease(folder / LOCK, lease_duration=SILENCE)
    try:
        lease.acquire(timeout=0)
    except Timeout as error:
        owner = lease.owner
        here = owner is not None and socket.gethostname() in owner.hostname
        try:
            lease.acquire(timeout=0 if here else 1.5 * SILENCE)
        except Timeout:
            who = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
            raise ResvaeError(f"folder: {who} trains in {folder}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lease.release()
