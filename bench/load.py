"""The load generator: wrk, where it is installed, else autocannon from npm, which takes far more of the processor itself.

Both keep their connections open and send the next request on each as soon as the last one is answered.
"""

import json
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.environments import BUILD
from bench.payloads import Payload, WrongAnswer
from bench.servers import pinned
from infra.settings import ROOT

TIMEOUT_SECONDS = 10
AUTOCANNON = "autocannon@9.0.0"

_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Load:
    """One measured cell. Only answers of status 2xx count as requests; whatever else came, or did not, is an error."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


class Generator(Protocol):
    version: str

    def run(self, url: str, payload: Payload, connections: int, seconds: float, paths: Sequence[str] = ()) -> Load:
        """One cell, of whole seconds; requests go round over `paths` where there are any. Raises WrongAnswer where nothing
        listens."""


class Wrk:
    """https://github.com/wg/wrk; one thread. It corrects its latencies for coordinated omission."""

    def __init__(self, program: str, cores: Sequence[int]) -> None:
        self._command = [*pinned(cores), program]
        # It prints its version with its usage, and exits with 1.
        usage = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        self.version = " ".join(usage.split()[:2])

    def run(self, url: str, payload: Payload, connections: int, seconds: float, paths: Sequence[str] = ()) -> Load:
        flags = ["--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
        flags += ["--timeout", f"{TIMEOUT_SECONDS}s", "--script", str(_SCRIPT)]
        said = _output([*self._command, *flags, url, "--", payload.content_type, str(payload.file), *paths])
        return read_wrk(json.loads(said.splitlines()[-1]))


class Autocannon:
    """https://github.com/mcollina/autocannon, in Node."""

    def __init__(self, node_modules: Path, cores: Sequence[int]) -> None:
        self._command = [*pinned(cores), str(node_modules / ".bin" / "autocannon")]
        self.version = AUTOCANNON

    def run(self, url: str, payload: Payload, connections: int, seconds: float, paths: Sequence[str] = ()) -> Load:
        flags = ["--connections", str(connections), "--duration", str(max(1, round(seconds)))]
        flags += ["--timeout", str(TIMEOUT_SECONDS), "--json", "--no-progress"]
        with tempfile.TemporaryDirectory(prefix="ferry-bench-") as folder:
            if paths:
                archive = Path(folder) / "requests.har"
                archive.write_text(json.dumps(har(url, payload, paths)))
                flags += ["--har", str(archive)]
            else:
                flags += ["--method", "POST", "--headers", f"content-type={payload.content_type}"]
                flags += ["--input", str(payload.file)]
            return read_autocannon(json.loads(_output([*self._command, *flags, url])))


def har(url: str, payload: Payload, paths: Sequence[str]) -> dict[str, Any]:
    """The requests that autocannon goes round over, as it reads them (W3C, "HTTP Archive format"); bodies have to be text."""
    headers = [{"name": "content-type", "value": payload.content_type}]
    body = {"mimeType": payload.content_type, "text": payload.file.read_text()}
    requests = [
        {"method": "POST", "url": urllib.parse.urljoin(url, path), "headers": headers, "postData": body}
        for path in paths
    ]
    return {"log": {"version": "1.2", "entries": [{"request": request} for request in requests]}}


def read_wrk(found: dict[str, Any]) -> Load:
    answered = found["requests"] - found["status_errors"]
    errors = found["status_errors"] + found["socket_errors"]
    return Load(answered / found["seconds"], found["p50_ms"], found["p99_ms"], errors)


def read_autocannon(found: dict[str, Any]) -> Load:
    """Its latencies are whole milliseconds, where less than one counts as one; its errors hold its timeouts."""
    p50, p99 = (max(1, found["latency"][name]) for name in ("p50", "p99"))
    return Load(found["2xx"] / found["duration"], p50, p99, found["non2xx"] + found["errors"])


def find_generator(cores: Sequence[int]) -> Generator:
    """wrk, or autocannon installed below build/bench. Raises SystemExit where there is neither."""
    program = shutil.which("wrk")
    if program:
        return Wrk(program, cores)
    folder = BUILD / "autocannon"
    if not (folder / "node_modules" / ".bin" / "autocannon").exists():
        print("wrk is not installed (Debian, Ubuntu: apt-get install wrk); getting autocannon from npm ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", AUTOCANNON]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise SystemExit(f"no load generator: install wrk, or make npm work here: {finished.stderr[-500:]}")
    return Autocannon(folder / "node_modules", cores)


def _output(command: Sequence[str]) -> str:
    """Raises WrongAnswer where the server could not even be reached any more."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        said = finished.stderr or finished.stdout
        raise WrongAnswer(f"the load generator ended with exit code {finished.returncode}: {said.strip()}")
    return finished.stdout
