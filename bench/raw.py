"""The raw limit: a bare `session.run` in as many processes as cores."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.servers import pinned
from infra.settings import ROOT


def images_per_second(model: Path, body: Path, seconds: float, cores: Sequence[int]) -> float:
    """All processes together; they load first and start at once. `body` is a .npy file with the images of one run."""
    command = [*pinned(cores), sys.executable, "-m", "bench.raw_run", str(model), str(body), str(seconds)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in cores
    ]
    try:
        for worker in workers:
            _line(worker)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        return sum(float(_line(worker)) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _line(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{worker.args!r} ended without an answer")
    return line
