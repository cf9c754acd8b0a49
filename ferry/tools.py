"""Runs the tools that change a cloud, so that an interruption lets them end their step and keep their records whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError
from ferry.locking import exclusively
from infra.settings import ENVIRONMENT_VARIABLE, ROOT, Settings

_TAIL_LINES = 20
_LOOK_SECONDS = 0.1
_WAIT_SECONDS = 60


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    shows: Callable[[str], bool],
    report: Report,
    alone: bool = False,
) -> None:
    """Run `command` in `folder`; its output goes to `log`, the lines that `shows` picks to `report`.

    The tool outlives us: it writes to the file itself, so that no closed pipe ends it halfway when we are killed. When we
    are interrupted it gets exactly one SIGINT in a session of its own: a second one, as a terminal's Ctrl-C would add,
    makes Terraform drop everything, its state included.

    With `alone`, one that outlived its command is waited for by the next run of the same tool with the same folder of logs:
    the CDK CLI refuses to write where another one does. Raises FerryError with the log's end, and where the other one goes on.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    name = Path(command[0]).name
    with ExitStack() as stack:
        held = []
        if alone:
            lock = stack.enter_context(exclusively(log.parent / f"{name}.lock", name, _WAIT_SECONDS, report))
            held.append(lock.fileno())
        output = stack.enter_context(log.open("wb"))
        lines = stack.enter_context(log.open(encoding="utf-8", errors="replace"))
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, pass_fds=held,
        )  # fmt: skip
        try:
            ended = False
            while not ended:
                ended = process.poll() is not None
                for text in lines:
                    if shows(text):
                        report(" ".join(text.split()))
                if not ended:
                    time.sleep(_LOOK_SECONDS)
        except BaseException:
            process.send_signal(signal.SIGINT)
            report(f"{name} is told to end after what it is doing; {log} has what it says")
            process.wait()
            raise
    if process.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])
        raise FerryError(f"{name} ended with {process.returncode}; {log} ends:\n{tail}")


def node_tool(name: str, settings: Settings, environment_file: Path) -> tuple[str, dict[str, str]]:
    """The pinned `cdk` or `cdktf`, and the process environment in which it reads the same settings.

    For a local environment nothing of a real account is left in it. Raises FerryError where it is not installed.
    """
    executable = ROOT / "node_modules" / ".bin" / name
    if not executable.exists():
        raise FerryError(f"{executable}: not there; `make setup` installs it")
    base = aws.emulator_environment(settings) if settings.local is not None else dict(os.environ)
    return str(executable), base | {
        ENVIRONMENT_VARIABLE: str(environment_file),
        # The virtual environment's Node, not the system's, for the tool and for jsii.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)]),
        "CHECKPOINT_DISABLE": "1",
        "CI": "1",
    }
