"""Ends inferences that take too long: one thread watches all runs of a model."""

import math
import threading
import time

import onnxruntime as ort


class Watchdog:
    """Sets `terminate` on the options of every run that is still watched at its deadline; safe to use from several threads.

    ONNX Runtime looks at the flag between two operators, also inside a Loop: a single operator is never cut short.

    The thread starts with a run and ends when it wakes up with nothing to watch. It sleeps until the earliest deadline
    that it knows of, even when that run has ended long before: so a quick run costs no switch between threads.

    It belongs to the process that made it. That is no loss: a session of ONNX Runtime does not survive a fork either,
    each worker loads a model of its own.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._deadlines: dict[ort.RunOptions, float] = {}
        self._watching = False
        self._wakes_at = math.inf

    def watch(self, options: ort.RunOptions, deadline: float) -> None:
        """End the run with these options at `deadline`, as time.monotonic() counts. Every `watch` needs its `forget`."""
        with self._changed:
            if not self._watching:
                threading.Thread(target=self._end_late_runs, name="watchdog", daemon=True).start()
                self._watching = True
            elif deadline < self._wakes_at:
                self._changed.notify()
            self._deadlines[options] = deadline

    def forget(self, options: ort.RunOptions) -> None:
        """The run has ended, in whatever way."""
        with self._changed:
            self._deadlines.pop(options, None)

    def _end_late_runs(self) -> None:
        with self._changed:
            while self._deadlines:
                now = time.monotonic()
                for options in [late for late, deadline in self._deadlines.items() if deadline <= now]:
                    options.terminate = True
                    del self._deadlines[options]
                self._wakes_at = min(self._deadlines.values(), default=now)
                self._changed.wait(self._wakes_at - now)
            self._watching = False
