"""An interrupted measurement leaves no server behind."""

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from infra.settings import ROOT

EXIT_CODE = 130


def raise_once() -> None:
    """The first SIGINT or SIGTERM becomes KeyboardInterrupt; more of them are ignored, so that what ends is ended in full."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(command: Sequence[str]) -> int:
    """The exit code of `command`. An interruption is handed on, and waits until the command has ended by itself."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
