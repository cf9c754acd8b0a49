"""Checks a model where it can do no harm: in a process of its own, under limits, without anybody's credentials.

The parent calls `probe_model`; its child is this module's `main`, which runs the check and then loads the model and answers
its golden inputs as serving does, and as many of them as one request may hold: what a model takes can grow faster than its
batch. A model that allocates, spins or crashes ends the child only.
"""

import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ferry.errors import FerryError
from infra.settings import ROOT
from model_code.environment import MODEL_FILE

if TYPE_CHECKING:
    from model_code.inference.predictor import Predictor

_REFUSED = 3  # exit code of the child that has a reason on its standard output
_MAX_REASON = 4_000  # characters
# What the interpreter needs to find itself. Not the rest: it holds the operator's credentials.
_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")


@dataclass(frozen=True)
class Limits:
    """Address space in bytes, CPU seconds over all threads, and seconds of wall-clock time of the child.

    A model near the largest size (495 MiB of dense layers) took between 2 and 3 GiB and 8 s on two cores; a usual one takes
    less than a second. The largest request takes up to a request's deadline beside that. The clock runs longer than the CPU,
    for a machine that is busy.
    """

    memory: int = 4 * 2**30
    cpu_seconds: int = 60
    seconds: int = 120


def probe_model(folder: Path, origin: str, limits: Limits | None = None) -> None:
    """Check, load and warm up the model in `folder` (model.onnx, model.json), within `limits`.

    Raises FerryError with the reason, also where the child was ended by a limit or crashed; `origin` is where the model
    comes from.
    """
    limits = limits or Limits()
    numbers = [str(limits.memory), str(limits.cpu_seconds)]
    try:
        # The folder of the code, so that it is found however it was installed.
        finished = subprocess.run(
            [sys.executable, "-m", "ferry.model_probe", str(folder), origin, *numbers],
            # OpenBLAS reserves addresses for each core of the machine; nothing of it is used here.
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limits.seconds,
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired as error:
        raise _stopped(origin, f"it took more than {limits.seconds} s") from error
    match finished.returncode:
        case 0:
            return
        case code if code == _REFUSED:
            raise FerryError(finished.stdout.strip()[:_MAX_REASON])
        case code if code == -signal.SIGXCPU:
            raise _stopped(origin, f"it used more than {limits.cpu_seconds} s of CPU time")
        case code if code < 0:
            raise _stopped(origin, f"it was ended by {signal.Signals(-code).name}, or crashed")
        case code:
            last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            raise FerryError(f"{origin}: the check of the model ended with exit code {code} ({last[:_MAX_REASON]})")


def _stopped(origin: str, reason: str) -> FerryError:
    return FerryError(
        f"MODEL_INVALID {origin}: {MODEL_FILE}: its golden inputs were given up: {reason}; nothing was published"
    )


def main(folder: Path, origin: str, memory: int, cpu_seconds: int) -> str | None:
    """The child: None, or the reason why the model in `folder` is refused."""
    _limit(resource.RLIMIT_AS, memory, memory)
    # One second later comes SIGKILL, which would not say why.
    _limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _limit(resource.RLIMIT_CORE, 0, 0)
    # Here and not above: the parent needs neither, and the limits hold for them, too.
    from ferry.model_check import check_model
    from model_code.inference.errors import InferenceError
    from model_code.inference.predictor import Predictor

    try:
        check_model((folder / MODEL_FILE).read_bytes(), origin)
        return _largest_request(Predictor.load(folder), origin)
    except FerryError as error:
        return str(error)
    except InferenceError as error:
        return f"MODEL_INVALID {origin}: {error}"
    except MemoryError:
        return f"MODEL_INVALID {origin}: {MODEL_FILE}: it needs more than {memory:,} bytes of memory"


def _largest_request(predictor: "Predictor", origin: str) -> str | None:
    """None, or why the model cannot answer as many instances as one request may hold."""
    import numpy as np

    from model_code.inference.contract import MAX_BODY_BYTES, MAX_INSTANCES
    from model_code.inference.errors import DeadlineExceeded

    golden = predictor.description.signature.golden.inputs
    instances = max(1, min(MAX_INSTANCES, MAX_BODY_BYTES // golden[0].size))  # a raw value takes a byte at least
    try:
        predictor.run(golden[np.arange(instances) % len(golden)])
    except DeadlineExceeded:  # which serving ends, too, and other machines are faster
        return None
    except Exception as error:  # ONNX Runtime's have no base of their own
        return (
            f"MODEL_INVALID {origin}: {MODEL_FILE}: it answers {len(golden)} instances, but not the {instances:,} that a request "
            f"may hold: {error}; nothing was published"
        )
    return None


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit; one that is already lower stays."""
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    reason = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    if reason is not None:
        print(reason)
        sys.exit(_REFUSED)
