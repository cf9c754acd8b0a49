"""A development host for a built Azure package: python -I -S functions_host.py --package FOLDER --port PORT

It stands in for Azure Functions Core Tools where those are not installed, and runs the same FunctionApp object from the
same files. With -I and -S the interpreter brings the standard library only; everything else has to be in the package.

What it does as the real host and its Python worker do, each with the file of theirs that says so, in
tests/test_functions_host.py: the search path, the one FunctionApp, routes and their prefix, methods, keys and their levels,
the limit of a body, the homepage, the ping, 500 for what a handler raises, and the order in which these are looked at.

The variables that it reads:
    FERRY_FUNCTION_KEY                  a key for functions of level FUNCTION; without any key none is asked for, as in Core Tools
    FERRY_MASTER_KEY                    a key for every function, the level ADMIN included
    FUNCTIONS_REQUEST_BODY_SIZE_LIMIT   bytes of a body, 104857600 where it is not set or no number
    AzureWebJobsDisableHomepage         "true" makes / an empty 204
    PYTHON_THREADPOOL_THREAD_COUNT      threads that run the handlers, Python's default where it is not set

Where it differs on purpose: a body over the limit is 413, as the server below Azure's host says; the host hides that behind a
500 (azure-functions-host issue 10519), which would tell a client to try again.

What it does not do: route parameters, other triggers than HTTP, async handlers, the rest of host.json, tracing, a second
process. The server is the standard library's: werkzeug's, which the package holds, closes the connection after each answer.
"""

import argparse
import hmac
import importlib
import inspect
import json
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
from urllib.parse import parse_qs, parse_qsl, unquote

MAX_BODY_BYTES = 104_857_600
READ_SECONDS = 30
FUNCTION_KEY = "FERRY_FUNCTION_KEY"
MASTER_KEY = "FERRY_MASTER_KEY"
BODY_LIMIT = "FUNCTIONS_REQUEST_BODY_SIZE_LIMIT"
DISABLE_HOMEPAGE = "AzureWebJobsDisableHomepage"
THREADS = "PYTHON_THREADPOOL_THREAD_COUNT"
_PING = "/admin/host/ping"
_HOMEPAGE = b"<!DOCTYPE html><title>Development host</title><p>This function app is up and running.</p>"
_LOOPBACK = "127.0.0.1"
_CHUNK_LINE_BYTES = 100
_ORIGIN = re.compile("^https?://[^/?]*", re.IGNORECASE)  # of a target in absolute form (RFC 9112, section 3.2.2)

_log = logging.getLogger("functions_host")


@dataclass(frozen=True)
class HttpFunction:
    """One function of the app: where it answers whom, and what is called with which arguments.

    `path` is in lower case; no `methods` means all of them; `level` is ANONYMOUS, FUNCTION or ADMIN.
    """

    name: str
    path: str
    methods: frozenset[str]
    level: str
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


@dataclass(frozen=True)
class Keys:
    """The keys that the host knows; with none of them it asks for none."""

    function: str | None
    master: str | None

    @classmethod
    def take(cls) -> "Keys":
        """From the environment and out of it: the package's code has no use for them."""
        return cls(os.environ.pop(FUNCTION_KEY, "") or None, os.environ.pop(MASTER_KEY, "") or None)

    def admit(self, presented: str, level: str) -> bool:
        """Whether a caller with the key `presented` may call a function of this level."""
        if level == "ANONYMOUS" or (self.function is None and self.master is None):
            return True
        return _same(presented, self.master) or (level == "FUNCTION" and _same(presented, self.function))


def _same(presented: str, key: str | None) -> bool:
    return key is not None and hmac.compare_digest(presented.encode(), key.encode())


class _Malformed(Exception):
    """Nobody knows where the body ends."""


class _TooLarge(Exception):
    """The body is over the limit, and not read to its end."""


def main() -> int:
    """Host one package until SIGTERM or SIGINT; returns the exit code: 0, or 1 where the package cannot be hosted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder of the unpacked package")
    parser.add_argument("--port", type=int, required=True, help=f"port on {_LOOPBACK}")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    keys = Keys.take()
    try:
        functions = load_functions(arguments.package.resolve())
        server = _Server((_LOOPBACK, arguments.port), functions, keys)
    except (HostError, OSError) as error:
        _log.critical("%s", error)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        # A thread of its own, because shutdown() waits for the loop that this thread runs.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    for function in functions:
        methods = ", ".join(sorted(function.methods)) or "every method"
        _log.info("%s: %s http://%s:%d%s", function.name, methods, *server.address, function.path)
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
    prefix = _route_prefix(package / "host.json")
    return [_http_function(function, prefix) for function in apps[0].get_functions()]


def _route_prefix(host_json: Path) -> str:
    """extensions.http.routePrefix of host.json without slashes around it, "api" where it says nothing."""
    settings = json.loads(host_json.read_bytes()) if host_json.is_file() else {}
    return str(settings.get("extensions", {}).get("http", {}).get("routePrefix", "api")).strip("/")


def _http_function(function: Any, prefix: str) -> HttpFunction:
    name, handler = function.get_function_name(), function.get_user_function()
    trigger = function.get_trigger().get_dict_repr()
    route = trigger.get("route") or name
    if trigger["type"] != "httpTrigger" or "{" in route:
        raise HostError(f"{name}: only HTTP triggers without route parameters are hosted here")
    return HttpFunction(
        name=name,
        path="/" + "/".join(part for part in (prefix, route.strip("/")) if part).lower(),
        methods=frozenset(str(method) for method in trigger.get("methods") or ()),
        level=str(trigger["authLevel"]),
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

    def __init__(self, address: tuple[str, int], functions: list[HttpFunction], keys: Keys) -> None:
        super().__init__(address, _Handler)
        self.address = address
        self.functions = functions
        self.keys = keys
        self.body_limit = _body_limit()
        self.pool = ThreadPoolExecutor(int(os.environ.get(THREADS, "0")) or None, thread_name_prefix="function")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # or a first line that is none would be refused without a status
    server_version, sys_version = "functions-host", ""
    timeout = READ_SECONDS
    # One packet for head and body, at once: split, they would wait for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def __getattr__(self, name: str) -> Any:
        """http.server asks for do_GET and the like; here one method serves them all, also those that nobody heard of."""
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Without the query: it may hold a key."""
        _log.info("%s %s %s", self.command, self._target()[0], code)

    def _serve(self) -> None:
        """Route, then key, then body: a caller without the right to call a function learns nothing about its limits."""
        try:
            body = self._read_body()
        except _Malformed:
            self._refuse(400)
            return
        except _TooLarge:
            body = None
        path = unquote(self._target()[0]).lower()
        function = self._function(path.rstrip("/") or "/")
        if function is None:
            self._write(self._host_answer(path), closing=body is None)
        elif not self.server.keys.admit(self._presented_key(), function.level):
            self._write(Answer(401, {}, b""), closing=body is None)
        elif body is None:
            _log.error("%s: the body is over %d bytes", function.name, self.server.body_limit)
            self._refuse(413)
        else:
            # Written in the pool too, so that the pool's end means that everything accepted was answered.
            self.server.pool.submit(lambda: self._write(self._invoke(function, body))).result()

    def _refuse(self, status: int) -> None:
        self._write(Answer(status, {}, b""), closing=True)

    def _function(self, path: str) -> HttpFunction | None:
        for function in self.server.functions:
            if function.path == path and (not function.methods or self.command in function.methods):
                return function
        return None

    def _host_answer(self, path: str) -> Answer:
        """What the host itself says where no function answers."""
        if path == _PING and self.command in ("GET", "POST"):
            return Answer(200, {}, b"")
        if path != "/":
            return Answer(404, {}, b"")
        if os.environ.get(DISABLE_HOMEPAGE, "").lower() == "true":
            return Answer(204, {}, b"")
        return Answer(200, {"content-type": "text/html"}, _HOMEPAGE)

    def _presented_key(self) -> str:
        """The header, even an empty one, comes before the query."""
        query = parse_qs(self._target()[1])
        return self._header("x-functions-key") if "x-functions-key" in self.headers else query.get("code", [""])[0]

    def _target(self) -> tuple[str, str]:
        """Path and query as they were sent: http.server takes the second slash of two at the start away."""
        words = self.requestline.split()
        path, _, query = _ORIGIN.sub("", words[1] if len(words) > 1 else "").partition("?")
        return path, query

    def _header(self, name: str) -> str:
        """All values of a header as one. Blanks around a value are not its own (RFC 9110, section 5.5)."""
        return ",".join(value.strip(" \t") for value in self.headers.get_all(name, []))

    def _read_body(self) -> bytes:
        lengths = set(self.headers.get_all("content-length", ["0"]))
        encoding = self.headers.get("transfer-encoding")
        if encoding is not None:
            if "content-length" in self.headers or encoding.strip().lower() != "chunked":
                raise _Malformed
            return b"".join(self._chunks())
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise _Malformed
        return self._read(self._within_limit(int(length[:18])))

    def _chunks(self) -> list[bytes]:
        chunks, size = [], 0
        while length := self._chunk_length():
            size = self._within_limit(size + length)
            chunks.append(self._read(length))
            self._line()
        while self._line():  # trailers
            pass
        return chunks

    def _chunk_length(self) -> int:
        digits = self._line().partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", digits):
            raise _Malformed
        return int(digits, 16)

    def _line(self) -> bytes:
        line = self.rfile.readline(_CHUNK_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _Malformed
        return line.strip()

    def _read(self, size: int) -> bytes:
        body = self.rfile.read(size)
        if len(body) != size:
            raise _Malformed
        return body

    def _within_limit(self, size: int) -> int:
        if size > self.server.body_limit:
            raise _TooLarge
        return size

    def _invoke(self, function: HttpFunction, body: bytes) -> Answer:
        from azure.functions.http import HttpRequest, HttpResponseConverter

        request = HttpRequest(
            method=self.command,
            url=f"http://{self.headers.get('host', _LOOPBACK)}{'?'.join(filter(None, self._target()))}",
            headers={name: self._header(name) for name in self.headers},
            params=dict(parse_qsl(self._target()[1], keep_blank_values=True)),
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

    def _write(self, answer: Answer, *, closing: bool = False) -> None:
        self.close_connection = self.close_connection or closing
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("content-length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()


def _body_limit() -> int:
    try:
        return int(os.environ.get(BODY_LIMIT, ""))
    except ValueError:
        return MAX_BODY_BYTES


if __name__ == "__main__":
    sys.exit(main())
