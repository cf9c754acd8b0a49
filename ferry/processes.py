"""Background processes that outlive the command that started them, and can be found and ended by a later one.

Every process is started with a mark in its environment, which its own children inherit. The mark is the only record: a
file of process ids would be wrong as soon as something is killed, or the system hands a pid out again.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_MARK = "FERRY_LOCAL_SERVICE"
_LOG_TAIL_LINES = 15


def start(
    mark: str, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> "subprocess.Popen[bytes]":
    """Start `command` in `folder`, detached from this terminal, its output in `log`."""
    for path in (folder, log.parent):
        path.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env={**environment, _MARK: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def find(mark: str) -> list[psutil.Process]:
    """The living processes with this mark, the one that was started first, what it started after it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and _lives(process):
                found.append(process)
        except psutil.Error:  # another user's, or gone in the meantime
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def stop(mark: str, seconds: float) -> bool:
    """SIGTERM to what was started, SIGKILL to whatever of it is left after `seconds`; True when something ran."""
    marked = find(mark)
    pids = {process.pid for process in marked}
    for process in marked:
        # psutil signals no process that only has the pid of one that ended; and a process may end at any time.
        with suppress(psutil.NoSuchProcess):
            # A server hands the signal on to its workers in its own order; only orphans get it from here.
            if process.ppid() not in pids:
                process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    while any(map(_lives, marked)) and time.monotonic() - started < seconds:
        pause(started)
    for process in find(mark):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _reap()
    return bool(marked)


def _lives(process: psutil.Process) -> bool:
    """One that has ended does not, though whoever started it may collect it late or never: psutil's own wait would go on."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def port_owner(port: int) -> str | None:
    """Who listens on a TCP port of this machine: `pid 123 (command line)`, or None when nobody does."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline()) if connection.pid else "another user's"
            except psutil.Error:
                command = "gone by now"
            return f"pid {connection.pid or 'unknown'} ({command[:120]})"
    return None


def log_tail(log: Path) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]) if log.exists() else ""


def pause(started: float) -> None:
    """Wait before the next look at something that began at `started` (monotonic): short at first, longer later."""
    time.sleep(0.05 if time.monotonic() - started < 2 else 0.25)


def _reap() -> None:
    """Collect our own ended children, so that a command that starts and stops leaves no zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """A cancelled CI run or a closed terminal ends the block as Ctrl-C does, with everything that it started."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
