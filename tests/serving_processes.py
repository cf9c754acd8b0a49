"""Starts the servers as the platforms do, each a real process on a free loopback port, and talks to them."""

import http.client
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ferry.wheels import read_pins
from infra.settings import ROOT
from model_code import environment

LOOPBACK = "127.0.0.1"
SERVE = ROOT / "model_code" / "container" / "serve"
START_SECONDS = 30
STOP_SECONDS = 40


@dataclass(frozen=True)
class Reply:
    """One HTTP answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Server:
    """A running process and the port that it listens on."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """One request on a connection of its own."""
        with closing(http.client.HTTPConnection(LOOPBACK, self.port, timeout=START_SECONDS)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())

    def connect(self) -> socket.socket:
        """A bare connection, for what HTTP clients would not send."""
        return socket.create_connection((LOOPBACK, self.port), timeout=START_SECONDS)

    def tell(self, raw: bytes) -> bytes:
        """Send these bytes and return everything up to the end of the connection."""
        with self.connect() as connection:
            connection.sendall(raw)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection, an orderly one or not."""
    received = b""
    with suppress(ConnectionError):  # what was sent and not read any more makes the end a reset
        while more := connection.recv(65536):
            received += more
    return received


def accepts(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} seconds"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def container_variables(base: Path, port: int | str, **variables: str) -> dict[str, str]:
    """The environment of the container's process, with nothing of this one's but the search path for programs."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        environment.BASE_DIR: str(base),
        environment.BIND_ADDRESS: LOOPBACK,
        environment.BIND_TO_PORT: str(port),
        environment.WORKERS: "1",
        **variables,
    }


@contextmanager
def container(
    base: Path, *, command: Sequence[str] = (str(SERVE),), port: int | None = None, **variables: str
) -> Iterator[Server]:
    """The SageMaker container's `serve`, or another `command` in its place, over the model in `base`/model."""
    port = port or free_port()
    with _running(command, container_variables(base, port, **variables), base, port, "/ping", {200}) as server:
        yield server


def build_package(folder: Path, function_app: str | None = None) -> Path:
    """What an unpacked Azure package holds, linked instead of copied, without a release.

    Its third-party files are those of the pins in function_app/requirements.txt and no others. `function_app` replaces
    the source of function_app.py.
    """
    libraries = folder / ".python_packages" / "lib" / "site-packages"
    libraries.mkdir(parents=True)
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in read_pins(ROOT / "function_app" / "requirements.txt", python_version):
        _link_distribution(name, libraries)
    source = function_app or (ROOT / "function_app" / "function_app.py").read_text()
    (folder / "function_app.py").write_text(source)
    shutil.copy(ROOT / "function_app" / "host.json", folder)
    (folder / "model_code").mkdir()
    for name in ("__init__.py", "environment.py", "inference"):
        (folder / "model_code" / name).symlink_to(ROOT / "model_code" / name)
    return folder


def _link_distribution(name: str, libraries: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
    for top in tops:
        (libraries / top).symlink_to(Path(str(distribution.locate_file(top))))


@contextmanager
def functions_host(package: Path, **variables: str) -> Iterator[Server]:
    """The development host over an unpacked Azure package."""
    port = free_port()
    script = str(ROOT / "ferry" / "functions_host.py")
    command = [sys.executable, "-I", "-S", script, "--package", str(package), "--port", str(port)]
    # Without a model it stays at 503.
    # Without a model it stays at 503, and a package that is not ours has no such route.
    health = {200, 503, 404}
    with _running(command, {"PATH": os.environ["PATH"], **variables}, package, port, "/api/health", health) as server:
        yield server


@contextmanager
def _running(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, port: int, probe: str, statuses: set[int]
) -> Iterator[Server]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, port, log)
    try:
        _wait(server, probe, statuses)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()


def _wait(server: Server, probe: str, statuses: set[int]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError):
            if server.ask("GET", probe).status in statuses:
                return
        time.sleep(0.02)
    raise AssertionError(f"no answer from {server.process.args!r}:\n{server.log.read_text()}")
