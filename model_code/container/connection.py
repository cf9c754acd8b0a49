"""HTTP/1.1 on one connection: httptools parses it, and everything that a request may cost ends somewhere.

SageMaker has no proxy in front that would see to that. Requests that follow each other without waiting are answered in their
order, one after another. An answer that comes before the end of its request ends the connection, because nobody knows where the
next request would begin.
"""

import asyncio
import time
from collections import deque
from functools import partial
from http import HTTPStatus

import httptools

from model_code.container.balance import Balance
from model_code.container.exchange import Exchange, request_id
from model_code.container.room import NoRoom
from model_code.container.worker import Worker
from model_code.inference import errors
from model_code.inference.contract import RELEASE_ID_HEADER, Response
from model_code.inference.respond import check_body_size, error_response

# Request line and headers together, and what follows the last chunk; and the request's target alone.
MAX_HEADER_BYTES = 64 * 1024
MAX_TARGET_BYTES = 8 * 1024
# The one response header of a container that SageMaker hands on (botocore: InvokeEndpoint, CustomAttributes).
_CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connections:
    """The connections of one worker, `most` at a time; those that nobody waits for an answer on may be silent for `seconds`.

    That is before the first request, before the end of a request's headers, after an answer, and while the rest of a refused
    request is thrown away.
    """

    def __init__(self, most: int, seconds: float, balance: Balance) -> None:
        self.most = most
        self.balance = balance
        self._coming: set[Connection] = set()  # which were accepted, and are not open yet
        self._making: set[asyncio.Task[object]] = set()
        self._seconds = seconds
        self._open: set[Connection] = set()
        self._leaving: set[Connection] = set()  # which are open for an answer, and will never ask again
        self._silent: dict[Connection, float] = {}  # since when; the longest silent comes first
        self.ending = False
        self.date = _date()

    def __len__(self) -> int:
        return len(self._open)

    def make(self, connection: "Connection", making: "asyncio.Task[object]") -> None:
        """It has been accepted, and this task makes it."""
        self._coming.add(connection)
        self._making.add(making)
        making.add_done_callback(partial(self._made, connection))
        self._tell()

    def _made(self, connection: "Connection", making: "asyncio.Task[object]") -> None:
        self._making.discard(making)
        self._coming.discard(connection)  # where it was not opened
        self._tell()

    def _tell(self) -> None:
        self.balance.tell(len(self._coming) + len(self._open) - len(self._leaving))

    def opened(self, connection: "Connection") -> bool:
        """False where there is no place: all connections wait for an answer."""
        self._coming.discard(connection)  # or it would count twice until its task ends
        if len(self._open) >= self.most:
            if not self._silent:
                return False
            next(iter(self._silent)).close()
        self._open.add(connection)
        self._tell()
        return True

    def leaves(self, connection: "Connection") -> None:
        """It sends no more, and counts no more where workers compare how many they have."""
        if connection in self._open:
            self._leaving.add(connection)
            self._tell()

    def closed(self, connection: "Connection") -> None:
        self._open.discard(connection)
        self._leaving.discard(connection)
        self._tell()
        self._silent.pop(connection, None)

    def silent(self, connection: "Connection") -> None:
        self._silent.pop(connection, None)
        self._silent[connection] = time.monotonic()

    def asks(self, connection: "Connection") -> None:
        self._silent.pop(connection, None)

    def tick(self) -> None:
        """Several times a second: close each whose time is over."""
        self.date = _date()
        latest = time.monotonic() - self._seconds
        for connection in [connection for connection, since in self._silent.items() if since <= latest]:
            connection.close()

    def end(self) -> None:
        """Close those that nobody waits for an answer on, and the others after theirs."""
        self.ending = True
        for connection in list(self._silent):
            connection.close()


class Connection(asyncio.Protocol):
    """One connection to one worker."""

    def __init__(self, worker: Worker, connections: Connections) -> None:
        self._worker = worker
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        # Requests whose answers are due, in the order of both, and the last of them as long as its body arrives.
        self._line: deque[Exchange] = deque()
        self._arriving: Exchange | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._unparsed = 0
        self._thrown_away = 0
        self._wrong: errors.InferenceError = errors.BadHttp("this is no HTTP request; nothing more is read here")
        # Nothing is read any more; the client sends no more; its answers do not leave; it is not read; the line is being
        # looked at.
        self._deaf = False
        self._half_closed = False
        self._stuck = False
        self._paused = False
        self._advancing = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if self._connections.opened(self):
            self._connections.silent(self)
            return
        self._deaf = True
        error = errors.Overloaded(f"{self._connections.most} connections wait for answers already; try again")
        response = error_response(error, request_id())
        transport.write(self._head(response, keep_alive=False) + response.body)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._connections.closed(self)
        self._forget_arriving()
        self._line.clear()
        del self._parser  # it refers to this connection too

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._throw_away(len(data))
            return
        self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after(self._line[-1])
        except httptools.HttpParserError:
            self._refuse_rest(self._wrong)
        if self._unparsed > MAX_HEADER_BYTES and not self._deaf:
            self._refuse_rest(errors.HeadersTooLarge(f"request line and headers have at most {MAX_HEADER_BYTES} bytes"))
        self._advance()

    def eof_received(self) -> bool:
        """The client sends no more: whoever has asked still waits for an answer. True keeps the connection for it."""
        self._half_closed = True
        self._connections.leaves(self)
        if self._arriving is not None and not self._deaf:
            self._refuse_rest(errors.BadLength("the body ended early"))
            self._advance()
        return bool(self._line)

    def pause_writing(self) -> None:
        self._stuck = True

    def resume_writing(self) -> None:
        self._stuck = False
        self._advance()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > MAX_TARGET_BYTES:
            self._wrong = errors.UriTooLong(f"the path and its query have at most {MAX_TARGET_BYTES} bytes")
            raise self._wrong  # which the parser turns into an error of its own

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._arriving is not None:
            return  # it follows the last chunk, and says nothing that would be asked for
        name = name.lower()
        known = self._headers.get(name)
        self._headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        self._connections.asks(self)
        parser = self._parser
        exchange = Exchange(
            parser.get_method().decode("ascii"),
            self._url if self._url.startswith(b"/") else _origin_form(self._url),
            self._headers,
            self._advance,
            keep_alive=parser.should_keep_alive() and parser.get_http_version() == "1.1",
        )
        self._arriving = exchange
        self._line.append(exchange)
        try:
            exchange.route = self._worker.route(exchange)
            # The parser has seen to it that a length is one.
            check_body_size(int(self._headers.get(b"content-length", 0)), exchange.route.most_bytes)
        except Exception as error:
            _refuse(exchange, error)

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        exchange = self._arriving
        if exchange is None or exchange.route is None or exchange.response is not None:
            self._throw_away(len(body))
            return
        exchange.waits_for_leave = False
        # Mostly it is there at once. Many small pieces, each an object of its own, would take many times what they hold.
        if exchange.received and isinstance(exchange.received, bytes):
            exchange.received = bytearray(exchange.received)
        exchange.received += body
        try:
            check_body_size(len(exchange.received), exchange.route.most_bytes)
        except errors.BodyTooLarge as error:
            exchange.received = b""
            _refuse(exchange, error)

    def on_message_complete(self) -> None:
        self._unparsed = self._thrown_away = 0
        exchange = self._arriving
        if exchange is not None:
            exchange.complete = True
            exchange.body, exchange.received = bytes(exchange.received), b""
            self._forget_arriving()

    # The line.

    def close(self) -> None:
        """Nobody waits for an answer."""
        self._deaf = True
        self._connections.closed(self)
        # What a client does not read would keep it open.
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def _advance(self) -> None:
        """Answer whoever's turn it is, as far as the answers are known and the client takes them."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._line and not self._stuck and self._has_answer(self._line[0]):
                self._write(self._line.popleft())
        finally:
            self._advancing = False
        if self._transport.is_closing():
            return
        if self._arriving is not None and self._arriving.response is None:
            self._wait_for_body(self._arriving)
        # Who sends more than it waits for is not read until it has got what it asked for.
        if self._paused != (len(self._line) > 1 or self._stuck):
            self._paused = not self._paused
            if self._paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _has_answer(self, exchange: Exchange) -> bool:
        if exchange.route is not None and exchange.response is None and exchange.complete and not exchange.handled:
            exchange.handled = True
            try:
                exchange.route.handle(exchange)
            except Exception as error:
                _refuse(exchange, error)
        return exchange.response is not None

    def _write(self, exchange: Exchange) -> None:
        response = exchange.response
        assert response is not None
        last = not self._line and (self._connections.ending or self._half_closed)
        keep_alive = exchange.keep_alive and exchange.complete and not last
        head = self._head(response, keep_alive)
        self._transport.write(head if exchange.method == "HEAD" else head + response.body)
        if keep_alive:
            if not self._line:
                self._connections.silent(self)
            return
        self._deaf = True
        self._line.clear()
        if exchange.complete or self._half_closed:
            self._connections.asks(self)
            self._transport.close()
        else:
            # A client that is still sending would see a reset, and not its answer.
            self._forget_arriving()
            self._transport.write_eof()
            self._connections.silent(self)

    def _head(self, response: Response, keep_alive: bool) -> bytes:
        """Status line and headers."""
        headers = response.headers
        lines = [_STATUS_LINES[response.status]]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if RELEASE_ID_HEADER in headers:
            lines.append(f"{_CUSTOM_ATTRIBUTES}: {headers[RELEASE_ID_HEADER]}\r\n")
        lines.append(f"date: {self._connections.date}\r\ncontent-length: {len(response.body)}\r\n")
        lines.append("\r\n" if keep_alive else "connection: close\r\n\r\n")
        return "".join(lines).encode("latin-1")

    def _wait_for_body(self, exchange: Exchange) -> None:
        """Where it did not come at once: the room that it takes so far, and the time that it has left."""
        try:
            self._worker.room.take(len(exchange.received) - exchange.held)
        except NoRoom as error:
            _refuse(exchange, error)
            self._advance()
            return
        exchange.held = len(exchange.received)
        if exchange is not self._line[0]:
            return
        if exchange.waits_for_leave:
            exchange.waits_for_leave = False
            self._transport.write(_CONTINUE)
        if self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._worker.read_seconds, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._arriving is not None:
            seconds = self._worker.read_seconds
            _refuse(self._arriving, errors.ReadTimeout(f"the body did not arrive within {seconds:g} seconds"))
            self._advance()

    def _forget_arriving(self) -> None:
        """Its body is complete, or nobody waits for it any more."""
        if self._arriving is not None:
            self._worker.room.give_back(self._arriving.held)
            self._arriving = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse_rest(self, error: errors.InferenceError) -> None:
        """Say what was wrong after the answers to the whole requests that came before it; nothing more is read."""
        self._deaf = True
        if self._arriving is None:
            exchange = Exchange("", b"", {}, self._advance, keep_alive=False)
            self._connections.asks(self)
            self._line.append(exchange)
        else:
            exchange = self._arriving
        _refuse(exchange, error)

    def _end_after(self, exchange: Exchange) -> None:
        """An upgrade was asked for, which a server may ignore (RFC 9110, section 7.8); but the parser reads no further then."""
        self._deaf = True
        exchange.keep_alive = False
        if exchange.headers.keys() & {b"content-length", b"transfer-encoding"}:
            _refuse(
                exchange,
                errors.BadHttp("Upgrade: nothing but HTTP/1.1 is spoken here; send a body without this header"),
            )

    def _throw_away(self, size: int) -> None:
        self._thrown_away += size
        if self._thrown_away > 2 * self._worker.limits.body_bytes:
            self.close()


def _refuse(exchange: Exchange, error: Exception) -> None:
    exchange.response = error_response(error, exchange.request_id)


def _origin_form(target: bytes) -> bytes:
    """Path and query of a target that is a whole URL, which a server has to take too (RFC 9112, section 3.2.2)."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return target
    return (url.path or target) + (b"?" + url.query if url.query else b"")


def _date() -> str:
    # RFC 9110, section 5.6.7; no locale is ever set here.
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
