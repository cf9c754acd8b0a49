"""One command at a time where two would be in each other's way."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ferry.console import Report
from ferry.errors import FerryError

# What a command that was killed has started may hold its lock for a moment longer than it lives.
_SECONDS = 2


@contextmanager
def exclusively(path: Path, what: str, seconds: float = _SECONDS, report: Report | None = None) -> Iterator[TextIO]:
    """Hold the lock file `path`; the kernel drops the lock when its holder dies, and whoever inherited the file.

    `report` is told where it has to be waited for. Raises FerryError where it stays held for `seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        deadline = time.monotonic() + seconds
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise FerryError(f"another `{what}` command is at work in {path.parent}; wait for it to end")
            if report is not None:
                report(f"another `{what}` command is at work in {path.parent}; waiting for it to end")
                report = None
            time.sleep(0.05)
        yield lock


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
