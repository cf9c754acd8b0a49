"""HTTP/1.1 as the container's server speaks it, with a worker in this process: order, ends, and what a client may leave out."""

import asyncio
import contextlib
import email.utils
import errno
import json
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pytest
import uvloop
from numpy.typing import NDArray

from model_code.container import http_server
from model_code.container.balance import Balance
from model_code.container.connection import Connections
from model_code.container.server import Application
from model_code.inference.contract import DEADLINE_SECONDS
from model_code.inference.predictor import Predictor
from tests import serving_models
from tests.exchanges import Answer, connect, few, read_answer

IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
BODY = json.dumps({"data": IMAGES.tolist()}).encode()
DIGITS = {"digits": serving_models.log_probabilities(IMAGES).argmax(axis=1).tolist()}
T = TypeVar("T")
PING = b"GET /ping HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    serving_models.write_model(tmp_path)
    return tmp_path


def post(*headers: bytes, path: bytes = b"/invocations", body: bytes = BODY) -> bytes:
    head = [b"POST " + path + b" HTTP/1.1", b"Host: test", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def run(model: Path, conversation: Callable[[Application], Awaitable[T]]) -> T:
    """What the conversation gets from a worker whose model infers on the event loop."""

    async def scenario() -> T:
        app = Application(lambda: Predictor.load(model, timed=True))
        await app.open()
        return await conversation(app)

    return asyncio.run(scenario())


def say(model: Path, content: bytes, answers: int) -> tuple[list[Answer], bytes]:
    """The answers to all that is sent on one connection, and what follows them until the server ends it or is told the end."""

    async def conversation(app: Application) -> tuple[list[Answer], bytes]:
        reader, writer = await connect(app, few(1))
        writer.write(content)
        given = [await read_answer(reader) for _ in range(answers)]
        writer.write_eof()
        rest = await reader.read()
        writer.close()
        return given, rest

    return run(model, conversation)


def test_requests_that_do_not_wait_are_answered_in_their_order(model: Path) -> None:
    answers, rest = say(model, PING + post() + post(body=b"{") + PING + post(path=b"/nothing") + post(), 6)
    assert [status for status, _, _ in answers] == [200, 200, 400, 200, 404, 200]
    assert json.loads(answers[1][2]) == json.loads(answers[5][2]) == DIGITS
    assert rest == b""


def test_thousands_of_requests_at_once_are_all_answered(model: Path) -> None:
    answers, _ = say(model, PING * 5000, 5000)
    assert {status for status, _, _ in answers} == {200}


def test_every_answer_has_a_date_and_a_length(model: Path) -> None:
    (answer,), _ = say(model, PING, 1)
    assert email.utils.parsedate_to_datetime(answer[1]["date"]).tzname() == "UTC"
    assert answer[1]["content-length"] == "0"


def test_head_gets_the_headers_alone(model: Path) -> None:
    async def conversation(app: Application) -> tuple[Answer, Answer]:
        reader, writer = await connect(app, few(1))
        writer.write(b"HEAD /ping HTTP/1.1\r\nHost: test\r\n\r\n" + PING)
        first = await read_answer(reader, has_body=False)
        second = await read_answer(reader)
        writer.close()
        return first, second

    first, second = run(model, conversation)
    assert (first[0], second[0]) == (405, 200)
    assert int(first[1]["content-length"]) > 0


def test_a_target_may_be_a_whole_url(model: Path) -> None:
    answers, _ = say(model, b"GET http://test:8080/ping?a=b HTTP/1.1\r\nHost: test\r\n\r\n", 1)
    assert answers[0][0] == 200


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.0\r\nConnection: keep-alive"])
def test_an_older_client_gets_one_answer_and_the_end(model: Path, version: bytes) -> None:
    answers, rest = say(model, b"GET /ping " + version + b"\r\n\r\n" + PING, 1)
    assert (answers[0][0], answers[0][1]["connection"], rest) == (200, "close", b"")


def test_what_follows_a_request_that_ends_the_connection_is_not_answered(model: Path) -> None:
    answers, rest = say(model, post(b"Connection: close") + PING, 1)
    assert (answers[0][0], answers[0][1]["connection"], rest) == (200, "close", b"")


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_an_upgrade_is_not_made_and_a_body_behind_it_is_refused(model: Path, protocol: bytes) -> None:
    upgrade = b"Connection: upgrade\r\nUpgrade: " + protocol
    (ping,), _ = say(model, PING[:-2] + upgrade + b"\r\n\r\n", 1)
    (refused,), rest = say(model, post(upgrade) + PING, 1)
    assert (ping[0], ping[1]["connection"]) == (200, "close")
    assert (refused[0], json.loads(refused[2])["error"]["code"]) == (400, "BAD_HTTP")
    assert rest == b""


def test_what_follows_the_last_chunk_is_no_header(model: Path) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%s\r\n0\r\nContent-Type: text/plain\r\nAccept: text/plain\r\n\r\n" % (len(BODY), BODY)
    answers, _ = say(model, head + chunks + PING, 2)
    assert [status for status, _, _ in answers] == [200, 200]


def test_who_waits_for_leave_to_send_gets_it_or_the_refusal(model: Path) -> None:
    async def conversation(app: Application) -> tuple[bytes, Answer, Answer]:
        reader, writer = await connect(app, few(1))
        head, _, body = post(b"Expect: 100-continue").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        leave = await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        answer = await read_answer(reader)
        writer.write(post(b"Expect: 100-continue", path=b"/nothing").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        refusal = await read_answer(reader)
        assert await reader.read() == b""  # nobody knows whether the body still comes
        writer.close()
        return leave, answer, refusal

    leave, answer, refusal = run(model, conversation)
    assert leave == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (answer[0], json.loads(answer[2])) == (200, DIGITS)
    assert (refusal[0], refusal[1]["connection"]) == (404, "close")


def test_a_body_in_small_pieces_takes_no_more_memory_than_it_has_bytes(model: Path) -> None:
    pieces = 300_000

    async def conversation(app: Application) -> tuple[Answer, int]:
        reader, writer = await connect(app, few(1))
        writer.write(b"POST /invocations HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        tracemalloc.start()
        try:
            for _ in range(100):
                writer.write(b"2\r\n{ \r\n" * (pieces // 100))
                await writer.drain()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        writer.write(b"0\r\n\r\n")
        answer = await read_answer(reader)
        writer.close()
        return answer, peak

    answer, peak = run(model, conversation)
    assert answer[0] == 400
    assert peak < 8 * 2 * pieces  # an object for each piece takes 43 bytes, and its place in a list


def test_bodies_that_were_refused_do_not_end_a_connection_that_goes_on(model: Path) -> None:
    async def conversation(app: Application) -> set[int]:
        reader, writer = await connect(app, few(1))
        statuses = set()
        for _ in range(1500):  # more, together, than twice the largest body
            writer.write(post(path=b"/nothing", body=bytes(10_000)))
            statuses.add((await read_answer(reader))[0])
        writer.write(PING)
        statuses.add((await read_answer(reader))[0])
        writer.close()
        return statuses

    assert run(model, conversation) == {404, 200}


def held(model: Path, gate: threading.Event, entered: threading.Event) -> Application:
    """Its inferences, which are in threads, tell that they have begun, and wait for the gate."""

    class Gated(Predictor):
        def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
            if len(inputs) == len(IMAGES):  # not the golden inference
                entered.set()
                gate.wait()
            return super().run(inputs, seconds=seconds)

    return Application(lambda: Gated.load(model))


def test_where_all_connections_wait_for_answers_another_one_is_503_and_a_silent_one_makes_room(model: Path) -> None:
    gate, entered = threading.Event(), threading.Event()

    async def scenario() -> None:
        app, connections = held(model, gate, entered), few(2)
        await app.open()
        silent, _ = await connect(app, connections)
        one, writer = await connect(app, connections)
        writer.write(post())
        await asyncio.to_thread(entered.wait)
        another, another_writer = await connect(app, connections)
        assert await silent.read() == b""
        another_writer.write(post())
        await until_pending(app, 2)
        refused, _ = await connect(app, connections)
        status, headers, _ = await read_answer(refused)
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        gate.set()
        assert (await read_answer(one))[0] == (await read_answer(another))[0] == 200

    asyncio.run(scenario())


def test_a_client_that_will_not_ask_again_is_none_of_those_that_workers_deal_evenly(model: Path) -> None:
    """Else a load that begins while requests of a broken one are still answered is dealt by how many those are."""
    gate, entered = threading.Event(), threading.Event()

    async def scenario() -> None:
        one, other = Balance.of(2)
        one.listen()
        other.listen()
        app, connections = held(model, gate, entered), Connections(8, 60, one)
        await app.open()
        clients = [await connect(app, connections) for _ in range(3)]
        assert other.share(1) == 2
        for _, writer in clients:
            writer.write(post())
        for _, writer in clients[:2]:
            writer.write_eof()
        async with asyncio.timeout(10):
            while other.share(1) != 1:
                await asyncio.sleep(0.01)
        gate.set()
        assert [(await read_answer(reader))[0] for reader, _ in clients] == [200, 200, 200]

    asyncio.run(scenario())


async def until_pending(app: Application, requests: int) -> None:
    while app.pending < requests:
        await asyncio.sleep(0.01)


class NoFiles(socket.socket):
    """It listens in a process that can open no more files."""

    def accept(self) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_worker_that_can_open_no_file_in_its_last_moment_leaves_nothing_behind_to_fail(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_NO_FILES_SECONDS", 0.01)
    failed: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
        with NoFiles() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            acceptor = http_server._Acceptor(Application(lambda: Predictor.load(model)), listener, few(1))
            acceptor.start()
            acceptor.stop()
        await asyncio.sleep(0.1)

    uvloop.run(scenario())
    assert failed == []


class Told(Balance):
    """It keeps what a worker tells the others."""

    def __init__(self, number: int, counts: "memoryview[int]") -> None:
        super().__init__(number, counts)
        self.told: list[int] = []

    def tell(self, connections: int) -> None:
        self.told.append(connections)
        super().tell(connections)


@contextlib.asynccontextmanager
async def accepting(model: Path, balance: Balance) -> AsyncIterator[tuple[Connections, Callable[[int], None]]]:
    """The connections of a worker that accepts them from a socket, and what makes so many clients connect to it."""
    connections = Connections(64, 60, balance)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as clients:
        listener.setblocking(False)
        acceptor = http_server._Acceptor(Application(lambda: Predictor.load(model)), listener, connections)
        acceptor.start()

        def arrive(count: int) -> None:
            for _ in range(count):
                clients.enter_context(socket.create_connection(listener.getsockname()))

        async with asyncio.timeout(10):
            yield connections, arrive
        acceptor.stop()


async def until_there_are(connections: Connections, count: int) -> None:
    while len(connections) < count:
        await asyncio.sleep(0.001)


def test_a_worker_tells_the_others_of_each_connection_once_also_while_it_is_made(model: Path) -> None:
    """Else the others take its share of a load that begins: 32 connections were dealt 18 to 14."""
    shared = memoryview(bytearray(8)).cast("I")
    one, other = Told(0, shared), Balance(1, shared)
    other.listen()

    async def scenario() -> None:
        async with accepting(model, one) as (connections, arrive):
            arrive(8)
            await until_there_are(connections, 8)
            await asyncio.sleep(0.01)
            assert one.told == sorted(one.told)
            assert one.told[-1] == 8

    uvloop.run(scenario())


def test_a_worker_that_gives_way_takes_its_share_of_what_arrives_meanwhile(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_GIVE_WAY_SECONDS", 3600)
    one, other = Balance.of(2)
    other.listen()

    async def scenario() -> None:
        async with accepting(model, one) as (connections, arrive):
            arrive(1)
            await until_there_are(connections, 1)
            arrive(1)  # which is the other's, as far as it knows
            await asyncio.sleep(0.01)
            arrive(2)
            await until_there_are(connections, 2)
            await asyncio.sleep(0.01)
            assert len(connections) == 2

    uvloop.run(scenario())


def test_what_the_others_do_not_take_is_taken_a_little_later(model: Path) -> None:
    one, stuck = Balance.of(2)
    stuck.listen()

    async def scenario() -> None:
        async with accepting(model, one) as (connections, arrive):
            arrive(5)
            await until_there_are(connections, 5)

    uvloop.run(scenario())


def test_each_worker_takes_its_share_of_what_arrives() -> None:
    one, other, starting = Balance.of(3)
    one.listen()
    other.listen()
    one.tell(5)
    other.tell(2)
    assert (one.share(1), other.share(1)) == (-1, 2)
    assert (one.share(5), other.share(5)) == (1, 4)
    starting.listen()
    assert [worker.share(5) for worker in (one, other, starting)] == [-1, 2, 4]
    other.leave()
    other.tell(0)
    assert (one.share(1), starting.share(1)) == (-2, 3)
