"""The soak's clients: connections that are kept open and paced together, raw abuse beside them, and what came back."""

import asyncio
import json
import socket
import struct
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from bench.servers import LOOPBACK
from bench.soak_requests import NOT_SPOKEN, Ask, Requests, broken_http

# Longer than a server may take for anything.
ANSWER_SECONDS = 60
# How long one piece of abuse waits for what the server has to say about it.
ABUSE_SECONDS = 0.3
_SHOWN = 50


@dataclass
class Tally:
    """What came back: answers by status and code, those that should not have been, connections that were lost, latencies.

    `latencies` holds seconds by the minute in which the answer came; `lost` when it was, as time.monotonic() counts.
    """

    began: float = field(default_factory=time.monotonic)
    answers: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    latencies: "dict[int, array[float]]" = field(default_factory=lambda: defaultdict(lambda: array("f")))
    pings: list[float] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)

    def note(self, problem: str) -> None:
        if len(self.unexpected) < _SHOWN:
            self.unexpected.append(problem)


class Pace:
    """Lets so many through a second, or all of them; what was missed is not made up for in one burst."""

    def __init__(self, rate: float | None) -> None:
        self._step = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    async def wait(self) -> None:
        now = time.monotonic()
        self._next = max(self._next + self._step, now - 0.5)
        if self._next > now:
            await asyncio.sleep(self._next - now)


class Connection:
    """One connection that is opened again whenever the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Status and body. Raises OSError or EOFError where the connection was lost."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(LOOPBACK, self._port)
        reader, writer = self._streams
        try:
            with suppress(ConnectionError):  # a refusal may come before the end of a body
                writer.write(raw)
                await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or 0))
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return int(head.split(maxsplit=2)[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Clients:
    """`golden` holds the one right answer of each good request, by its name."""

    port: int
    path: str
    requests: Requests
    golden: dict[str, bytes] = field(default_factory=dict)

    async def remember(self) -> None:
        """Ask every good request once. Raises AssertionError where one is not answered with 200."""
        for ask, (status, body) in await self.ask_good():
            assert status == 200, f"{ask.name}: {status} {body[:200]!r}"
            self.golden[ask.name] = body

    async def ask_good(self) -> list[tuple[Ask, tuple[int, bytes]]]:
        connection = Connection(self.port)
        answers = [(ask, await connection.ask(ask.to_bytes(self.path))) for ask in self.requests.good]
        connection.close()
        return answers

    async def changed(self) -> list[str]:
        """The good requests that are not answered with the same bytes any more."""
        return [ask.name for ask, answer in await self.ask_good() if answer != (200, self.golden[ask.name])]

    async def run(self, tally: Tally, connections: int, pace: Pace, go_on: Callable[[], bool]) -> None:
        """Ask on so many connections until told to stop."""
        await asyncio.gather(*(self._ask_on(tally, pace, go_on) for _ in range(connections)))

    async def _ask_on(self, tally: Tally, pace: Pace, go_on: Callable[[], bool]) -> None:
        connection = Connection(self.port)
        while go_on():
            await pace.wait()
            ask = self.requests.pick()
            started = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    status, body = await connection.ask(ask.to_bytes(self.path))
            except TimeoutError:
                tally.note(f"{ask.name}: no answer within {ANSWER_SECONDS} seconds")
                continue
            except (OSError, EOFError):
                tally.lost.append(time.monotonic())
                await asyncio.sleep(0.05)  # nobody may listen for a moment
                continue
            ended = time.monotonic()
            tally.latencies[int((ended - tally.began) // 60)].append(ended - started)
            self._judge(tally, ask, status, body)
        connection.close()

    def _judge(self, tally: Tally, ask: Ask, status: int, body: bytes) -> None:
        tally.answers[f"{status} {_code(body)}" if status >= 400 else str(status)] += 1
        if status == 503:
            return
        if status not in ask.statuses:
            tally.note(f"{ask.name}: {status} {body[:120]!r}, expected {sorted(ask.statuses)}")
        elif ask.name in self.golden and body != self.golden[ask.name]:
            tally.note(f"{ask.name}: another answer than before, {body[:120]!r}")

    async def ping(self, tally: Tally, path: str, seconds: float, go_on: Callable[[], bool]) -> None:
        """Ask for the server's health every so many seconds, each time on a connection of its own as a platform does."""
        while go_on():
            connection = Connection(self.port)
            started = time.monotonic()
            try:
                status, _ = await connection.ask(f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode())
                tally.pings.append(time.monotonic() - started)
                if status != 200:
                    tally.note(f"{path}: {status}")
            except (OSError, EOFError):
                tally.lost.append(time.monotonic())
            connection.close()
            await asyncio.sleep(seconds)

    async def abuse(self, tally: Tally, random: Random, seconds: float, go_on: Callable[[], bool]) -> None:
        """Every so many seconds one connection that does what no client should."""
        while go_on():
            with suppress(OSError, TimeoutError):  # whatever the server does with it is right, but for a 5xx
                await self.abuse_once(tally, random)
            await asyncio.sleep(seconds)

    async def abuse_once(self, tally: Tally, random: Random) -> None:
        """Broken HTTP, a request that is given up in the middle, or one whose answer is never read. Raises OSError."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
        ask = random.choice(self.requests.good).to_bytes(self.path)
        kind = random.randrange(4)
        try:
            writer.write(
                broken_http(random, self.path) if kind < 2 else ask[: random.randrange(len(ask))] if kind == 2 else ask
            )
            if random.random() < 0.3:
                writer.write_eof()
            elif kind >= 2 and random.random() < 0.5:
                _reset_on_close(writer)
            await writer.drain()
            if kind < 2:
                _judge_broken(tally, await _read_for_a_while(reader))
            else:
                tally.broken["left"] += 1
        finally:
            writer.close()


def _judge_broken(tally: Tally, said: bytes) -> None:
    status = said.split(maxsplit=2)[1].decode("latin-1") if said.startswith(b"HTTP/") else "closed"
    tally.broken[status] += 1
    if status.startswith("5") and status != "503" and int(status) not in NOT_SPOKEN:
        tally.note(f"broken HTTP: {said[:200]!r}")


async def _read_for_a_while(reader: asyncio.StreamReader) -> bytes:
    said = b""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(ABUSE_SECONDS):
            while more := await reader.read(65536):
                said = (said + more)[:65536]
    return said


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Close with a reset and not with an orderly end (socket(7), SO_LINGER)."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return "without an envelope"
