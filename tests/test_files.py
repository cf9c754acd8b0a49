"""A file is replaced whole or not at all, and what a killed writer leaves doesn't stay."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ferry.files import write_atomically
from infra.settings import ROOT

# Writes "theirs", and does what it is told between the writing and the renaming.
_WRITER = """
import os, pathlib, sys
from ferry.files import write_atomically

def meanwhile(_):
    {meanwhile}

os.fsync = meanwhile
write_atomically(pathlib.Path(sys.argv[1]), b"theirs")
"""
_IS_KILLED = "os.kill(os.getpid(), 9)"
_WAITS = "print('written', flush=True); sys.stdin.read()"


def writer(path: Path, meanwhile: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER.format(meanwhile=meanwhile), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["results.csv", "a [strange] name*?"])
def test_d5_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"before")
    with writer(path, _IS_KILLED) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"before"
    write_atomically(path, b"ours")
    assert names(tmp_path) == [name]
    assert path.read_bytes() == b"ours"


def test_d5_the_file_of_a_writer_that_lives_is_spared(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with writer(path, _WAITS) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "written\n"
        write_atomically(path, b"ours")
        assert len(names(tmp_path)) == 2
        living.communicate()
    assert living.returncode == 0
    assert names(tmp_path) == ["results.csv"]
    assert path.read_bytes() == b"theirs"


def test_many_writers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    contents = [b"%d\n" % number * number for number in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert names(tmp_path) == ["results.csv"]
    assert path.read_bytes() in contents


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "results.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "results.csv", b"ours")
    assert names(tmp_path) == ["results.csv"]
