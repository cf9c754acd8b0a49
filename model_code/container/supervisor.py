"""Forks the worker processes, replaces those that end, and ends them all.

The first process of the container holds no model and answers nothing: it waits for signals, one at a time, so that none can come
between two of its steps. gunicorn's arbiter does as much, but wants workers of gunicorn's own (docs/decisions.md).
"""

import ctypes
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# What `work` returns where no other process could do it either.
CANNOT_WORK = 3
# A worker that ends sooner after its start than this has crashed; so many in a row, and there is no use in another.
_CRASH_SECONDS = 2.0
_MOST_CRASHES = 5
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Started:
    number: int
    at: float


class Supervisor:
    """Keeps `workers` processes alive, of which each runs `work` with its own number, from 0.

    They all accept connections on `listener`, where those wait too that come while a worker is replaced.
    """

    def __init__(
        self, workers: int, work: Callable[[int], int], listener: socket.socket, *, drain_seconds: float
    ) -> None:
        self._workers = workers
        self._work = work
        self._listener = listener
        self._drain_seconds = drain_seconds
        self._alive: dict[int, _Started] = {}
        self._due: dict[int, float] = {}
        self._crashes = 0
        self._parent = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl

    def run(self) -> int:
        """Until SIGTERM or SIGINT; returns 0 then, and 1 where a worker says CANNOT_WORK or too many crash in a row.

        At the end every worker gets SIGTERM, and SIGKILL where it lives longer than the time to drain. A second signal changes
        nothing: they stay blocked, and what is left to do is to exit.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for number in range(self._workers):
                self._start(number)
            return self._watch()
        finally:
            self._end()

    def _watch(self) -> int:
        while True:
            signalled = self._wait()
            if signalled not in (None, signal.SIGCHLD):
                _log.info("%s: answering what was accepted, and ending", signal.Signals(signalled).name)
                return 0
            for pid, status, started in self._reap():
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == CANNOT_WORK:
                    return 1
                lived = time.monotonic() - started.at
                self._crashes = self._crashes + 1 if lived < _CRASH_SECONDS else 0
                _log.error("worker %d (process %d) ended: %s; it is replaced", started.number, pid, _how(status))
                if self._crashes >= _MOST_CRASHES:
                    _log.critical("%d workers in a row ended right after their start", self._crashes)
                    return 1
                # At once after a long life, else no more than one a second.
                self._due[started.number] = started.at + 1
            for number in [number for number, at in self._due.items() if at <= time.monotonic()]:
                del self._due[number]
                self._start(number)

    def _wait(self) -> int | None:
        """The next signal, or None where a worker is due first."""
        if not self._due:
            return signal.sigwaitinfo(_SIGNALS).si_signo
        found = signal.sigtimedwait(_SIGNALS, max(0.0, min(self._due.values()) - time.monotonic()))
        return found.si_signo if found else None

    def _reap(self) -> Iterator[tuple[int, int, _Started]]:
        """Process id and wait status of each worker that has ended; one signal may stand for several."""
        while self._alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            # As the first process of a container it inherits strangers' children too.
            if started := self._alive.pop(pid, None):
                yield pid, status, started

    def _start(self, number: int) -> None:
        started = _Started(number, time.monotonic())
        if pid := os.fork():
            self._alive[pid] = started
            return
        code = 1
        try:
            self._become_worker()
            code = self._work(number)
        except BaseException:
            _log.critical("worker %d crashed", number, exc_info=True)
        finally:
            os._exit(code)

    def _become_worker(self) -> None:
        """Die with the parent, as everything in a container dies with its first process: a worker without one would keep the
        port and serve for ever (PR_SET_PDEATHSIG in prctl(2); the thread that forks is the parent's main thread, which ends last).
        """
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._parent:  # it died before it could be watched
            os._exit(1)
        # Nothing is accepted yet: a signal that has come since the fork ends it.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _end(self) -> None:
        self._listener.close()
        for pid in self._alive:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + self._drain_seconds
        while self._alive and (left := deadline - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, left)
            for _ in self._reap():
                pass
        for pid in self._alive:
            _log.error("process %d is killed: it still runs %g seconds after SIGTERM", pid, self._drain_seconds)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
