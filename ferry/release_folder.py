"""The files of the current release on this machine, which are seen together or not at all.

    release.json  ->  current/release.json
    model.tar.gz  ->  current/model.tar.gz
    current       ->  .mnist-03664846de58-k3j2x9/

Two files cannot be replaced in one step, a link can: the new release is complete in a folder of its own before `current`
moves to it. A kill or a full disk at any moment leaves the release that was there, whole.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_CURRENT = "current"


def replace_files(folder: Path, label: str, files: Mapping[str, bytes]) -> None:
    """Make `files` what lies in `folder` under their names; `label` shows in the name of the folder that holds them.

    Raises OSError; then the files there are what they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _sweep(folder)
        fresh = Path(tempfile.mkdtemp(dir=folder, prefix=f".{label}-"))
        try:
            fresh.chmod(0o755)
            for name, content in files.items():
                with (fresh / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _link_names(folder, files)
            _point(folder / _CURRENT, fresh.name)
        except BaseException:
            # Cut off after the last step, the fresh folder is the current one already.
            if not _is_current(folder, fresh):
                shutil.rmtree(fresh, ignore_errors=True)
            raise
        _sweep(folder)


def _link_names(folder: Path, names: Mapping[str, bytes]) -> None:
    """Put every name behind `current`, once for each folder; what plain files hold is read through it before and after."""
    if not (folder / _CURRENT).is_symlink():
        before = Path(tempfile.mkdtemp(dir=folder, prefix=".before-"))
        before.chmod(0o755)
        for name in names:
            if (folder / name).exists():
                shutil.copy2(folder / name, before / name)
        _point(folder / _CURRENT, before.name)
    for name in names:
        if not (folder / name).is_symlink():
            _point(folder / name, f"{_CURRENT}/{name}")


def _point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, in one step."""
    unfinished = link.with_name(f".{link.name}.link")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(link)


def _is_current(folder: Path, fresh: Path) -> bool:
    link = folder / _CURRENT
    return link.is_symlink() and os.readlink(link) == fresh.name


def _sweep(folder: Path) -> None:
    """Remove what `current` does not name: the release before, and what a killed command left."""
    for path in folder.glob(".*"):
        if path.is_symlink():
            path.unlink(missing_ok=True)
        elif path.is_dir() and not _is_current(folder, path):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One command at a time: another one's unfinished folder would be swept away. The lock ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
