"""HTTP/1.1 for one worker: uvicorn, httptools and uvloop, with limits that uvicorn leaves to a proxy in front.

SageMaker has none there. So what is no HTTP gets our envelope, request lines and headers end somewhere, and a connection that
asks nothing is closed in time, or sooner where another one needs its place.
"""

import asyncio
import socket
import uuid
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model_code.container.worker import Worker
from model_code.inference import errors
from model_code.inference.respond import error_response

# Request line and headers together, and what follows the last chunk; and the request's target alone.
MAX_HEADER_BYTES = 64 * 1024
MAX_TARGET_BYTES = 8 * 1024
# How long a client may leave what it is sent unread.
_UNREAD_SECONDS = 20
# How long after SIGTERM a connection that nobody has asked on is still read.
_GRACE_SECONDS = 0.2
# Connections closes silent ones; uvicorn does not have to.
_NEVER = 10**6  # seconds


class Connections:
    """The connections of one worker, `most` at a time, that nobody waits for an answer on; the longest silent comes first.

    Each may be silent for `seconds`: before its first request, before the end of a request's headers, and after an answer.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most = most
        self._seconds = seconds
        self._silent: dict[Connection, float] = {}

    def silent(self, connection: "Connection") -> None:
        self._silent.pop(connection, None)
        self._silent[connection] = connection.loop.time()

    def asks(self, connection: "Connection") -> None:
        self._silent.pop(connection, None)

    def make_room(self) -> bool:
        """Close the one that has been silent longest; False where all of them wait for an answer."""
        if not self._silent:
            return False
        self._close(next(iter(self._silent)))
        return True

    async def watch(self) -> None:
        """Close each in its time, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._seconds / 10)
            latest = loop.time() - self._seconds
            for connection in [connection for connection, since in self._silent.items() if since <= latest]:
                self._close(connection)

    def _close(self, connection: "Connection") -> None:
        del self._silent[connection]
        # What a client does not read would keep it open.
        if connection.transport.get_write_buffer_size():
            connection.transport.abort()
        else:
            connection.transport.close()


class Connection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, silent: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._silent = silent
        self._unparsed = 0
        self._wrong: errors.InferenceError = errors.BadHttp("this is no HTTP request; nothing more is read here")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._silent.most and not self._silent.make_room():
            self._refuse(errors.Overloaded(f"{self._silent.most} connections wait for answers already; try again"))
        else:
            self._silent.silent(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silent.asks(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEADER_BYTES:
            self._refuse(errors.HeadersTooLarge(f"request line and headers have at most {MAX_HEADER_BYTES} bytes"))

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: whoever has asked still waits for an answer. True keeps the connection for it."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        self._refuse(errors.BadLength("the body ended early"))
        return True

    def shutdown(self) -> None:
        """At SIGTERM: a request that has arrived and was not read yet is one that was accepted."""
        self.loop.call_later(_GRACE_SECONDS, super().shutdown)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._wrong = errors.UriTooLong(f"the path and its query have at most {MAX_TARGET_BYTES} bytes")
            raise self._wrong  # which the parser turns into an error of its own

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        self._silent.asks(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and not self.transport.is_closing():
            self._silent.silent(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._wrong)

    def _unsupported_upgrade_warning(self) -> None:
        """A server may ignore the header (RFC 9110, 7.8)."""

    def _refuse(self, error: errors.InferenceError) -> None:
        """Say what was wrong and end the connection, after the answer to a whole request that came before it."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_raw(error))
        self.transport.close()


def _raw(error: errors.InferenceError) -> bytes:
    response = error_response(error, uuid.uuid4().hex)
    headers = {**response.headers, "content-length": str(len(response.body)), "connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body


def serve(worker: Worker, address: str, port: int, connections: Connections, *, drain_seconds: int) -> None:
    """Answer until SIGTERM or SIGINT: then it stops listening, answers what it has accepted, and the signal ends the process.

    A worker that replaces another one listens once its model is loaded; the first ones listen at once, and say so while they
    load. Raises what loading raises.
    """
    uvloop.run(_serve(worker, address, port, connections, drain_seconds))


async def _serve(worker: Worker, address: str, port: int, connections: Connections, drain_seconds: int) -> None:
    opening = asyncio.ensure_future(worker.open())
    if worker.replaces_another:
        await opening
    server = uvicorn.Server(_config(worker, connections, drain_seconds))
    opening.add_done_callback(partial(_stop_if_failed, server))
    watching = asyncio.ensure_future(connections.watch())
    await server.serve(sockets=[_listener(address, port)])
    watching.cancel()
    await opening


def _config(worker: Worker, connections: Connections, drain_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        worker,
        http=partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_NEVER,
        timeout_graceful_shutdown=drain_seconds,
    )


def _stop_if_failed(server: uvicorn.Server, opening: "asyncio.Future[None]") -> None:
    if opening.exception() is not None:
        server.should_exit = True


def _listener(address: str, port: int) -> socket.socket:
    """Each worker has its own: of connections that arrive, the system gives each as many (SO_REUSEPORT in socket(7))."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # A client that never reads its answer would keep it, and its connection, for ever (tcp(7)); accepted connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_SECONDS * 1000)
    listener.bind((address, port))
    return listener
