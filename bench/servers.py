"""Starts one server at a time as a real process tree on a free loopback port, and ends the whole tree."""

import os
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from bench.environments import PEERS, Peer, build
from bench.payloads import ANSWER_SECONDS, WrongAnswer
from ferry import processes
from infra.release import Release
from infra.settings import ROOT
from model_code import environment

LOOPBACK = "127.0.0.1"
SERVE = ROOT / "model_code" / "container" / "serve"
START_SECONDS = 120
# How long the first process may take to end the others, and what it has left may take to end by itself.
STOP_SECONDS = 5
ORPHAN_SECONDS = 1


@dataclass(frozen=True)
class Server:
    """How one server is started, where it answers, and whether it reads npy.

    `port_variable` and `folder_variable` are set to a free port and to a scratch folder of its own.
    """

    name: str
    title: str
    command: Sequence[str]
    variables: Mapping[str, str]
    path: str
    binary: bool = True
    port_variable: str = "BENCH_PORT"
    folder_variable: str = "BENCH_FOLDER"


class Check(Protocol):
    """What tells that a server is there."""

    def check(self, url: str) -> None:
        """Raises WrongAnswer or OSError while it is not."""


class Ping:
    """For a server that has no model yet: GET /ping."""

    def check(self, url: str) -> None:
        with urllib.request.urlopen(f"{url}/ping", timeout=ANSWER_SECONDS):
            pass


@dataclass
class Running:
    """A server that has given its first right answer `start_seconds` after it was started."""

    url: str
    start_seconds: float
    leader: int
    mark: str
    peak_bytes: int = field(default=0)

    def memory(self) -> int:
        """Bytes: the proportional set sizes of all its processes, in which shared pages count once."""
        total = 0
        for process in tree(self.leader, self.mark):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    def weigh(self) -> None:
        """Keep the largest memory seen."""
        self.peak_bytes = max(self.peak_bytes, self.memory())


def ours(
    name: str, title: str, release: Release, model_folder: Path, cores: int, variables: Mapping[str, str] | None = None
) -> Server:
    """The SageMaker container's process, as the endpoint starts it; `model_folder` is its /opt/ml."""
    return Server(
        name,
        title,
        [sys.executable, str(SERVE)],
        {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            environment.BASE_DIR: str(model_folder),
            environment.BIND_ADDRESS: LOOPBACK,
            environment.WORKERS: str(cores),
            environment.RELEASE_ID: release.release_id,
            environment.MODEL_JSON_SHA256: release.model_json.sha256,
            **(variables or {}),
        },
        "/invocations",
        port_variable=environment.BIND_TO_PORT,
    )


def many_models(name: str, folder: Path, threads: int) -> Server:
    """The same process as a multi-model endpoint starts it; `folder` is its /opt/ml. Its URL has no path yet."""
    return Server(
        name,
        "modelferry, multi-model",
        [sys.executable, str(SERVE)],
        {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            environment.BASE_DIR: str(folder),
            environment.BIND_ADDRESS: LOOPBACK,
            environment.WORKERS: str(threads),
            environment.MULTI_MODEL: "true",
        },
        "",
        port_variable=environment.BIND_TO_PORT,
    )


def constant_server(name: str, cores: int) -> Server:
    """The limit of HTTP itself: our server's library, which reads the body and answers a constant."""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "BENCH_PROCESSES": str(cores)}
    return Server(name, "constant answer", [sys.executable, "-m", "bench.constant"], variables, "/invocations")


def peer_server(peer: Peer, model: Path, cores: int) -> Server:
    """Raises Missing where its environment cannot be built."""
    python = build(peer)
    variables = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": f"{PEERS / 'common'}:{peer.folder}",
        # Off, as in ours.
        "ORT_DISABLE_TELEMETRY": os.environ["ORT_DISABLE_TELEMETRY"],
        "BENCH_MODEL": str(model),
        "BENCH_PROCESSES": str(cores),
    }
    return Server(
        peer.name, peer.title, [str(python), str(peer.folder / "start.py")], variables, peer.path, peer.binary
    )


@contextmanager
def running(server: Server, first: Check, cores: Sequence[int]) -> Iterator[Running]:
    """The server on these cores, once it answers `first` rightly. Raises WrongAnswer, with the end of its log."""
    port = free_port()
    mark = f"bench-{os.getpid()}-{server.name}"
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as scratch:
        folder = Path(scratch)
        variables = {**server.variables, server.port_variable: str(port), server.folder_variable: scratch}
        log = folder / "server.log"
        started = time.monotonic()
        process = processes.start(mark, [*pinned(cores), *server.command], variables, folder, log)
        try:
            url = f"http://{LOOPBACK}:{port}{server.path}"
            while True:
                try:
                    first.check(url)
                    break
                except (OSError, WrongAnswer) as error:
                    if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                        tail = processes.log_tail(log)
                        raise WrongAnswer(f"no right answer from {server.title}: {error}\n{tail}") from error
                    time.sleep(0.02)
            yield Running(url, time.monotonic() - started, process.pid, mark)
        finally:
            end(process.pid, mark)


def end(leader: int, mark: str) -> None:
    """SIGTERM to the first process, which ends its own; SIGKILL to whatever is left of the tree."""
    members = tree(leader, mark)
    first = [process for process in members if process.pid == leader]
    for process in first:
        process.terminate()
    psutil.wait_procs(first, timeout=STOP_SECONDS)
    psutil.wait_procs(members, timeout=ORPHAN_SECONDS)
    left = tree(leader, mark)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def tree(leader: int, mark: str) -> list[psutil.Process]:
    """The living processes of one server: those of its session, and those that left it but inherited its mark."""
    found = {process.pid: process for process in processes.find(mark)}
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
        except (OSError, psutil.Error):
            continue
    return list(found.values())


def pinned(cores: Sequence[int]) -> list[str]:
    """The beginning of a command line that keeps a process tree on these cores."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores))] if shutil.which("taskset") else []


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
