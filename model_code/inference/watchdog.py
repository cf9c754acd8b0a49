"""Ends inferences that take too long: one thread watches all runs of a model."""

import math
import threading
import time

import onnxruntime as ort

Run = tuple[float, ort.RunOptions]  # its deadline, as time.monotonic() counts, and the options to run with


class Watchdog:
    """Sets `terminate` on the options of every run that is still watched at its deadline; safe to use from several threads.

    ONNX Runtime looks at the flag between two operators, also inside a Loop: a single operator is never cut short.

    The thread starts with a run and ends when it wakes up with nothing to watch. It sleeps until the earliest deadline
    that it knows of, even when that run has ended long before: so a quick run costs no switch between threads. Nor does it
    take the lock: what a set or a list does in one call, no other thread sees half done.

    It belongs to the process that made it. That is no loss: a session of ONNX Runtime does not survive a fork either,
    each worker loads a model of its own.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._runs: set[Run] = set()
        self._spare: list[ort.RunOptions] = []
        self._watching = False
        self._wakes_at = math.inf

    def watch(self, deadline: float) -> Run:
        """A run that is ended at `deadline`, as time.monotonic() counts. Every `watch` needs its `forget`."""
        try:
            options = self._spare.pop()
        except IndexError:
            options = ort.RunOptions()
        run = (deadline, options)
        self._runs.add(run)
        # Read after the run was added, and set to infinity before the runs are read: one of the two sees the other.
        if deadline < self._wakes_at:
            self._wake()
        return run

    def forget(self, run: Run) -> None:
        """The run has ended, in whatever way."""
        try:
            self._runs.remove(run)
        except KeyError:
            return  # it was late: its options are, or will be, of no use for another run
        self._spare.append(run[1])

    def _wake(self) -> None:
        with self._changed:
            if self._watching:
                self._changed.notify()
            else:
                threading.Thread(target=self._end_late_runs, name="watchdog", daemon=True).start()
                self._watching = True

    def _end_late_runs(self) -> None:
        with self._changed:
            while True:
                self._wakes_at = math.inf
                runs = self._runs.copy()
                if not runs:
                    break
                now = time.monotonic()
                for run in runs:
                    if run[0] <= now:
                        self._end(run)
                self._wakes_at = min((deadline for deadline, _ in runs if deadline > now), default=now)
                self._changed.wait(self._wakes_at - now)
            self._watching = False

    def _end(self, run: Run) -> None:
        try:
            self._runs.remove(run)
        except KeyError:
            return  # it has ended by itself, and its options may serve another one already
        run[1].terminate = True
