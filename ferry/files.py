"""Writes that are seen whole or not at all."""

import fcntl
import glob
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

_PARTIAL = ".partial"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` with `content`; a reader, or a kill at any moment, sees the old file or the new one.

    A kill may leave a hidden file beside it, which the next write of `path` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    with _partial(path) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _partial(path: Path) -> IO[bytes]:
    """A new file beside `path`, locked for as long as it is open: so the kernel tells others whether its writer lives."""
    while True:
        file = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL, delete=False)  # noqa: SIM115
        # Where a file system knows no locks, nobody removes the file either.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # Another writer took it for abandoned in the moment before it was locked.


def _remove_abandoned(path: Path) -> None:
    for name in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
        # Held by a writer that lives, gone meanwhile, or somebody else's: it stays.
        with suppress(OSError), name.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name.unlink()
