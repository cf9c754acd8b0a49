"""Runs `ferry` as a process of its own, and ends it right before one of its effects, or at a moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.settings import ROOT

_POINTS = Path(__file__).with_name("kill_points")
_FERRY = Path(sys.executable).with_name("ferry")
SECONDS = 300  # far more than any of these commands takes


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal; the effects that it came to, the last one not done when it was
    ended there; how long it took."""

    code: int
    printed: str
    errors: str
    effects: list[str]
    seconds: float


def run(
    settings_path: Path,
    arguments: Sequence[str],
    folder: Path,
    *,
    before: int = 0,
    after: float | None = None,
    number: int = signal.SIGKILL,
    whom: str = "self",
    variables: Mapping[str, str] | None = None,
    program: Sequence[str | Path] = (_FERRY,),
) -> Ended:
    """Run the command to its end, or until signal `number` goes to it ("self") or its process group ("group"): before its effect
    `before`, counted from 1, or `after` so many seconds. Temporary files go below `folder`."""
    log, temporary = folder / "effects", folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(_POINTS),
        "KILL_POINTS": f"{log}:{before}:{int(number)}:{whom}",
        "TMPDIR": str(temporary),
        **(variables or {}),
    }
    chosen = ["--env", str(settings_path)] if program[0] == _FERRY else []
    # A group of its own, and neither pipe for what it leaves behind: a server that keeps one open would be waited for.
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        process = subprocess.Popen(
            [*map(str, program), *chosen, *arguments],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
        started = time.monotonic()
        if after is not None:
            _signal(process, after, number, whom)
        code = process.wait(SECONDS)
        out.seek(0)
        err.seek(0)
        effects = log.read_text().splitlines() if log.exists() else []
        return Ended(code, out.read(), err.read(), effects, time.monotonic() - started)


def _signal(process: "subprocess.Popen[bytes]", after: float, number: int, whom: str) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(after)
    if process.returncode is None:
        (os.killpg if whom == "group" else os.kill)(process.pid, number)
