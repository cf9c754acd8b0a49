"""A development host for a built Azure package: python -I -S functions_host.py --package FOLDER --port PORT

It stands in for Azure Functions Core Tools where those are not installed, and runs the same FunctionApp object from the
same files. With -I and -S the interpreter brings the standard library only; everything else has to be in the package.

What it does as the real host and its Python worker do:
- The search path is the package's .python_packages/lib/site-packages first and the package's own folder last
  (azure-functions-python-worker, utils/dependency.py); function_app.py holds exactly one FunctionApp (its loader.py).
- Functions answer below /api; another path, or another method than the function names, is 404 (the host's routing).
- A body over 104,857,600 bytes is 413 (azure-functions-host, ScriptConstants.cs).
- A handler that raises is 500 with an empty body (azure-functions-host, ExceptionMiddleware.cs).
- Handlers run in a pool of PYTHON_THREADPOOL_THREAD_COUNT threads, Python's default where that is not set.
- Keys are not checked, as Core Tools does not check them either.

What it does not do: route parameters, other triggers than HTTP, async handlers, host.json, tracing, a second process.
The server is the standard library's: werkzeug's, which the package holds, closes the connection after each answer.
"""

import argparse
import importlib
import inspect
import logging
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_BODY_BYTES = 104_857_600
READ_SECONDS = 30
THREADS = "PYTHON_THREADPOOL_THREAD_COUNT"
_LOOPBACK = "127.0.0.1"
_CHUNK_LINE_BYTES = 100

_log = logging.getLogger("functions_host")


@dataclass(frozen=True)
class HttpFunction:
    """One function of the app: where it answers, and what is called with which arguments."""

    name: str
    path: str
    methods: frozenset[str]
    handler: Callable[..., Any]
    request_parameter: str
    takes_context: bool


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of one HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HostError(Exception):
    """The package cannot be hosted; the message says why."""


class _Refused(Exception):
    """The body cannot be read: this status, an empty answer, and the end of the connection."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def main() -> int:
    """Host one package until SIGTERM or SIGINT; returns the exit code: 0, or 1 where the package cannot be hosted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder of the unpacked package")
    parser.add_argument("--port", type=int, required=True, help=f"port on {_LOOPBACK}")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        functions = load_functions(arguments.package.resolve())
        server = _Server((_LOOPBACK, arguments.port), functions)
    except (HostError, OSError) as error:
        _log.critical("%s", error)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        # A thread of its own, because shutdown() waits for the loop that this thread runs.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    for function in functions:
        _log.info("%s: %s http://%s:%d%s", function.name, *sorted(function.methods), *server.address, function.path)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    server.pool.shutdown()
    return 0


def load_functions(package: Path) -> list[HttpFunction]:
    """Import the package's function_app.py as Azure's worker does and read what it declares. Raises HostError."""
    if not (package / "function_app.py").is_file():
        raise HostError(f"{package}: no function_app.py; give the folder of an unpacked package")
    sys.path.insert(0, str(package / ".python_packages" / "lib" / "site-packages"))
    sys.path.append(str(package))
    os.chdir(package)
    from azure.functions import FunctionRegister

    module = importlib.import_module("function_app")
    apps = [value for value in vars(module).values() if isinstance(value, FunctionRegister)]
    if len(apps) != 1:
        raise HostError(f"function_app.py has {len(apps)} top-level FunctionApp objects; the worker takes exactly one")
    return [_http_function(function) for function in apps[0].get_functions()]


def _http_function(function: Any) -> HttpFunction:
    name, handler = function.get_function_name(), function.get_user_function()
    trigger = function.get_trigger().get_dict_repr()
    route = trigger.get("route") or name
    if trigger["type"] != "httpTrigger" or "{" in route:
        raise HostError(f"{name}: only HTTP triggers without route parameters are hosted here")
    return HttpFunction(
        name=name,
        path=f"/api/{route}",
        methods=frozenset(str(method) for method in trigger["methods"]),
        handler=handler,
        request_parameter=trigger["name"],
        takes_context="context" in inspect.signature(handler).parameters,
    )


@lru_cache(maxsize=1)
def _context_type() -> Any:
    """azure.functions is importable only once the package is on the search path, hence no class of this module."""
    from azure.functions import Context

    class InvocationContext(Context):
        invocation_id = function_name = function_directory = ""
        thread_local_storage = threading.local
        trace_context: Any = None
        retry_context: Any = None

        def __init__(self, function_name: str) -> None:
            self.invocation_id = str(uuid.uuid4())
            self.function_name = function_name
            self.function_directory = os.getcwd()

    return InvocationContext


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # idle connections do not keep the process alive
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], functions: list[HttpFunction]) -> None:
        super().__init__(address, _Handler)
        self.address = address
        self.functions = functions
        self.pool = ThreadPoolExecutor(int(os.environ.get(THREADS, "0")) or None, thread_name_prefix="function")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "functions-host", ""
    timeout = READ_SECONDS
    # One packet for head and body, at once: split, they would wait for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        try:
            body = self._read_body()
        except _Refused as refusal:
            self.close_connection = True
            self._write(Answer(refusal.status, {}, b""))
            return
        function = self._function()
        if function is None:
            self._write(Answer(404, {}, b""))
            return
        # The answer is written in the pool too, so that the pool's end means that everything accepted was answered.
        self.server.pool.submit(lambda: self._write(self._invoke(function, body))).result()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = _serve  # noqa: N815 (http.server's)

    def _function(self) -> HttpFunction | None:
        path = unquote(urlsplit(self.path).path)
        for function in self.server.functions:
            if function.path == path and self.command in function.methods:
                return function
        return None

    def _read_body(self) -> bytes:
        lengths = set(self.headers.get_all("content-length", ["0"]))
        encoding = self.headers.get("transfer-encoding")
        if encoding is not None:
            if "content-length" in self.headers or encoding.strip().lower() != "chunked":
                raise _Refused(400)
            return b"".join(self._chunks())
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise _Refused(400)
        return self._read(_within_limit(int(length[:18])))

    def _chunks(self) -> list[bytes]:
        chunks, size = [], 0
        while length := self._chunk_length():
            size = _within_limit(size + length)
            chunks.append(self._read(length))
            self._line()
        while self._line():  # trailers
            pass
        return chunks

    def _chunk_length(self) -> int:
        digits = self._line().partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", digits):
            raise _Refused(400)
        return int(digits, 16)

    def _line(self) -> bytes:
        line = self.rfile.readline(_CHUNK_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _Refused(400)
        return line.strip()

    def _read(self, size: int) -> bytes:
        body = self.rfile.read(size)
        if len(body) != size:
            raise _Refused(400)
        return body

    def _invoke(self, function: HttpFunction, body: bytes) -> Answer:
        from azure.functions.http import HttpRequest, HttpResponseConverter

        request = HttpRequest(
            method=self.command,
            url=f"http://{self.headers.get('host', _LOOPBACK)}{self.path}",
            headers={name: ",".join(self.headers.get_all(name, [])) for name in self.headers},
            params=dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)),
            route_params={},
            body_type="bytes",
            body=body,
        )
        context = {"context": _context_type()(function.name)} if function.takes_context else {}
        try:
            result = function.handler(**{function.request_parameter: request}, **context)
            answer = HttpResponseConverter.encode(result, expected_type=None).value
        except (Exception, SystemExit):
            _log.exception("%s failed", function.name)
            return Answer(500, {}, b"")
        headers = {name: datum.value for name, datum in answer["headers"].items()}
        return Answer(int(answer["status_code"].value), headers, answer["body"].value)

    def _write(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()


def _within_limit(size: int) -> int:
    if size > MAX_BODY_BYTES:
        raise _Refused(413)
    return size


if __name__ == "__main__":
    sys.exit(main())
