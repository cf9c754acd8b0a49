"""What clients, signals and kills can do to the container's server, and what it still has to do then.

Each fault has a number, and each test begins with it. The real `serve` process over raw sockets, because an HTTP client would put
right what is wrong here. `impatient` is the same process with short times, where waiting for the usual ones would take too long.
"""

import asyncio
import http.client
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from bench.soak_client import Clients, Pace, Tally
from bench.soak_requests import NOT_SPOKEN, broken_http, make_requests
from ferry import processes
from infra.settings import ROOT
from model_code import environment
from model_code.container.worker import MAX_PENDING
from model_code.inference.contract import MAX_BODY_BYTES
from tests import serving_models
from tests.serving_processes import (
    LOOPBACK,
    SERVE,
    Reply,
    Server,
    accepts,
    build_package,
    container,
    container_variables,
    free_port,
    functions_host,
    read_all,
    wait_until,
)

JSON = {"content-type": "application/json"}
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
BODY = json.dumps({"data": IMAGES.tolist(), "probabilities": True}).encode()
SLOW = json.dumps({"data": serving_models.SLOW.tolist()}).encode()  # minutes
A_THIRD_OF_A_SECOND = json.dumps({"data": (serving_models.SLOW / 5e8 * 6e5).tolist()}).encode()
PING = b"GET /ping HTTP/1.1\r\nHost: test\r\n\r\n"

READ_SECONDS, HEADER_SECONDS, FEW_CONNECTIONS = 0.5, 1, 40
_IMPATIENT = f"""
import functools, sys
from model_code.container import launch
launch.Application = functools.partial(launch.Application, read_seconds={READ_SECONDS})
launch.HEADER_SECONDS, launch.MAX_CONNECTIONS = {HEADER_SECONDS}, {FEW_CONNECTIONS}
sys.exit(launch.main())
"""


def post(*headers: bytes, path: bytes = b"/invocations") -> bytes:
    return b"\r\n".join(
        [b"POST " + path + b" HTTP/1.1", b"Host: test", b"Content-Type: application/json", *headers, b"\r\n"]
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers, which no test may kill and no request may."""
    base = tmp_path_factory.mktemp("ml")
    serving_models.write_model(base / "model")
    with container(base, FERRY_WORKERS="2") as running:
        wait_until(lambda: running.log.read_text().count("this worker is ready") == 2)
        pids = workers(running)
        yield running
        assert workers(running) == pids
        assert running.ask("GET", "/ping").status == 200


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("ml")
    serving_models.write_model(base / "model")
    with container(base, command=(sys.executable, "-c", _IMPATIENT)) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker with a model that takes as long as the request says, and one second for an answer."""
    base = tmp_path_factory.mktemp("ml")
    serving_models.write_slow_model(base / "model")
    with container(base, **{environment.DEADLINE: "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The Function in its development host."""
    package = build_package(tmp_path_factory.mktemp("package"))
    serving_models.write_model(package / "release")
    with functions_host(package) as running:
        yield running


@pytest.fixture(scope="module")
def golden(server: Server) -> bytes:
    return classify(server).body


def classify(server: Server) -> Reply:
    return server.ask("POST", "/invocations", BODY, JSON)


def serves(server: Server, golden: bytes) -> bool:
    """Whether /ping is 200 within two seconds and the golden request gets the same bytes as ever."""
    started = time.monotonic()
    ping = server.ask("GET", "/ping")
    return ping.status == 200 and time.monotonic() - started < 2 and classify(server).body == golden


def workers(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def descriptors(server: Server) -> int:
    return sum(psutil.Process(pid).num_fds() for pid in workers(server))


def memory(server: Server) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in workers(server))


def answer(connection: socket.socket) -> Reply:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def code(reply: Reply) -> str:
    return str(json.loads(reply.body)["error"]["code"])


# Bodies


def test_h16_a_body_that_stops_half_way_is_408_and_ends_its_connection_while_others_are_answered(
    impatient: Server,
) -> None:
    expected = classify(impatient).body
    starts = (
        post(b"Content-Length: 50") + b"{",
        post(b"Content-Length: 50"),
        post(b"Transfer-Encoding: chunked") + b"5\r\n{",
    )
    stalled = [impatient.connect() for _ in starts]
    for connection, start in zip(stalled, starts, strict=True):
        connection.sendall(start)
    assert serves(impatient, expected)
    for connection in stalled:
        with connection:
            reply = answer(connection)
            assert (reply.status, code(reply), reply.headers["connection"]) == (408, "READ_TIMEOUT", "close")
            assert connection.recv(1) == b""


def test_h16_a_body_that_comes_byte_by_byte_has_no_longer_than_one_that_stops(impatient: Server) -> None:
    with impatient.connect() as connection:
        connection.sendall(post(b"Content-Length: 1000000"))
        connection.settimeout(0.01)
        reply = b""
        while not reply:
            with suppress(TimeoutError):
                connection.sendall(b" ")
                reply = connection.recv(1000)
    assert reply.startswith(b"HTTP/1.1 408")


def test_h17_an_endless_body_in_chunks_is_413_at_the_limit_and_takes_no_more_memory_than_that(
    server: Server, golden: bytes
) -> None:
    before = memory(server)
    with server.connect() as connection:
        assert endless(connection, 100_000) < 10 * MAX_BODY_BYTES
        with suppress(ConnectionResetError):  # then the refusal was lost together with what was under way
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert memory(server) - before < 10 * MAX_BODY_BYTES
    assert serves(server, golden)


def test_h17_an_endless_body_in_chunks_of_one_byte_ends_in_time_and_takes_little_memory(impatient: Server) -> None:
    before = memory(impatient)
    with impatient.connect() as connection:
        assert endless(connection, 1) < 100 * MAX_BODY_BYTES
    assert memory(impatient) - before < 10 * MAX_BODY_BYTES
    assert impatient.ask("GET", "/ping").status == 200


def endless(connection: socket.socket, size: int) -> int:
    """Send chunks of this size until the server has closed the connection, and say how many bytes that were."""
    chunks = (b"%x\r\n%s\r\n" % (size, bytes(size))) * (100_000 // size)
    connection.sendall(post(b"Transfer-Encoding: chunked"))
    sent = 0
    with suppress(OSError):
        while sent < 100 * MAX_BODY_BYTES:
            connection.sendall(chunks)
            sent += len(chunks)
    return sent


# RFC 9112, section 6.3: these are no lengths.
NO_LENGTHS = [b"-1", b"1e3", b"+5", b"0x5", b"5, 6", b"5,5", b"", b"5 5", b"9" * 30, b"18446744073709551616", b"\xb2"]


@pytest.mark.parametrize("length", NO_LENGTHS)
@pytest.mark.parametrize("door", ["server", "host"])
def test_h19_a_content_length_that_is_none_is_400_and_ends_the_connection(
    door: str, length: bytes, request: pytest.FixtureRequest
) -> None:
    reply = request.getfixturevalue(door).tell(post(b"Content-Length: " + length, path=path(door)) + b"hello" + PING)
    assert reply.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))  # 413: the host sees that so many digits are too many
    assert b"connection: close" in reply.lower()
    assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("door", ["server", "host"])
def test_h19_two_lengths_that_differ_are_400_and_end_the_connection(door: str, request: pytest.FixtureRequest) -> None:
    two = post(b"Content-Length: 5", b"Content-Length: 6", path=path(door))
    reply = request.getfixturevalue(door).tell(two + b"hello" + PING)
    assert reply.startswith(b"HTTP/1.1 400")
    assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "headers",
    [(b"Transfer-Encoding: chunked", b"Content-Length: 5"), (b"Content-Length: 5", b"Transfer-Encoding: chunked")],
)
def test_h19_a_length_beside_chunks_lets_nothing_be_smuggled_in_behind(
    server: Server, host: Server, headers: tuple[bytes, ...]
) -> None:
    chunks = b"2\r\n{}\r\n0\r\n\r\n"
    for reply in (
        server.tell(post(*headers) + chunks + PING),
        host.tell(post(*headers, path=path("host")) + chunks + PING),
    ):
        assert reply.startswith(b"HTTP/1.1 400")
        assert b"connection: close" in reply.lower()
        assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "encoding",
    [b"gzip", b"chunked, gzip", b"xchunked", b"identity", b"\x0bchunked", b"chunked\r\nTransfer-Encoding: identity"],
)
def test_h19_a_transfer_encoding_whose_end_nobody_knows_is_400_and_ends_the_connection(
    server: Server, encoding: bytes
) -> None:
    reply = server.tell(post(b"Transfer-Encoding: " + encoding) + b"2\r\n{}\r\n0\r\n\r\n" + PING)
    assert reply.startswith(b"HTTP/1.1 400")
    assert reply.count(b"HTTP/1.1") == 1


def path(door: str) -> bytes:
    return b"/api/classify" if door == "host" else b"/invocations"


# Paths


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"/invocations/../ping", 404),
        (b"/invocations/%2e%2e/ping", 404),
        (b"/%2e%2e/%2e%2e/etc/passwd", 404),
        (b"//models", 404),
        (b"//ping", 404),
        (b"/ping/", 404),
        (b"/ping;x", 404),
        (b"/ping%00", 404),
        (b"/%ff", 404),
        (b"/ping\\..", 404),
        (b"/PING", 404),
        (b"*", 404),
        # These are no paths (RFC 9112, section 3.2).
        ("/é".encode(), 400),
        (b"ping", 400),
        (b"/ping\0", 400),
        (b"/pi ng", 400),
        (b"/" + b"a" * 70_000, 414),
    ],
)
def test_h27_a_path_that_there_is_not_is_no_other_one_written_differently(
    server: Server, raw: bytes, status: int
) -> None:
    reply = server.tell(b"GET " + raw + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 %d" % status)
    assert set(json.loads(reply.partition(b"\r\n\r\n")[2])["error"]) == {"code", "message", "request_id"}


# Many clients


def test_h31_five_hundred_slow_clients_keep_neither_ping_nor_a_new_one_waiting(server: Server, golden: bytes) -> None:
    before = descriptors(server)
    starts = [
        b"",
        b"POST /invocations HTTP/1.1\r\nHost",
        post(b"Content-Length: 9999"),
        post(b"Transfer-Encoding: chunked"),
    ]
    rest = [b"P", b"X", b"[", b"1\r\n[\r\n"]
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(500)]
        for number, client in enumerate(clients):
            client.sendall(starts[number % len(starts)])
        assert serves(server, golden)
        for number, client in enumerate(clients):
            with suppress(OSError):  # closed by now, where this machine is very slow
                client.sendall(rest[number % len(rest)])
        assert serves(server, golden)
    wait_until(lambda: descriptors(server) <= before)
    assert serves(server, golden)


def test_h31_of_connections_that_come_at_once_each_worker_gets_as_many(server: Server) -> None:
    def shares() -> list[int]:
        return [
            sum(link.laddr.port == server.port and bool(link.raddr) for link in psutil.Process(pid).net_connections())
            for pid in workers(server)
        ]

    wait_until(lambda: sum(shares()) == 0)
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(server.connect())
        wait_until(lambda: sum(shares()) == 40)
        assert max(shares()) <= 22


def test_h31_slow_clients_keep_nobody_waiting_at_the_function(host: Server) -> None:
    expected = host.ask("POST", "/api/classify", BODY, JSON).body
    starts = [b"", b"POST /api/classify HTTP/1.1\r\nHost", post(b"Content-Length: 9999", path=path("host"))]
    with ExitStack() as stack:
        for number in range(200):
            stack.enter_context(host.connect()).sendall(starts[number % len(starts)])
        assert host.ask("GET", "/api/health").status == 200
        assert host.ask("POST", "/api/classify", BODY, JSON).body == expected


def test_h31_five_hundred_clients_that_never_read_their_answers_keep_nobody_waiting(
    server: Server, golden: bytes
) -> None:
    before = descriptors(server)
    request = post(b"Content-Length: %d" % len(BODY)) + BODY
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(480)]
        for client in clients:
            client.sendall(request)
        # And some to whom nothing can be sent any more: their own buffers are full.
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect((LOOPBACK, server.port))
            client.sendall(PING * 500)
        started = time.monotonic()
        assert server.ask("GET", "/ping").status == 200
        assert time.monotonic() - started < 2
        wait_until(lambda: classify(server).body == golden)  # 503 as long as so many requests wait before it
    wait_until(lambda: descriptors(server) <= before)
    assert serves(server, golden)


def test_h31_clients_that_send_nothing_are_closed_and_whoever_waits_behind_them_is_answered(impatient: Server) -> None:
    # As many as a worker takes: with them, even /ping waits in the listening queue until the first of them is closed.
    with ExitStack() as stack:
        idle = [stack.enter_context(impatient.connect()) for _ in range(FEW_CONNECTIONS + 10)]
        assert impatient.ask("GET", "/ping").status == 200
        assert read_all(idle[0]) == b""
    with impatient.connect() as connection:
        connection.sendall(PING)
        assert read_all(connection).startswith(b"HTTP/1.1 200")  # and the end: idle after an answer counts alike


def test_h31_bodies_that_stop_half_way_take_no_more_memory_than_there_is_room_for(tmp_path: Path) -> None:
    # 6 MiB each: without a limit they would be as many as connections, 12 GiB in a worker.
    room, clients = 8, 24
    serving_models.write_model(tmp_path / "model")
    little_room = f"from model_code.container import launch, worker\nworker.MAX_PENDING = {room}\nlaunch.main()"
    with container(tmp_path, command=(sys.executable, "-c", little_room)) as server, ExitStack() as stack:
        expected, before = classify(server).body, memory(server)
        stalled = []
        for _ in range(clients):
            stalled.append(stack.enter_context(server.connect()))
            stalled[-1].sendall(post(b"Content-Length: %d" % MAX_BODY_BYTES) + bytes(MAX_BODY_BYTES - 1))
        wait_until(lambda: len(select.select(stalled, [], [], 0)[0]) >= clients - room)
        for connection in select.select(stalled, [], [], 0)[0]:
            reply = answer(connection)
            assert (reply.status, code(reply), reply.headers["retry-after"]) == (503, "OVERLOADED", "1")
            assert reply.headers["connection"] == "close"
        assert memory(server) - before < 2 * room * MAX_BODY_BYTES
        for connection in stalled:
            connection.close()
        wait_until(lambda: classify(server).body == expected)  # once it has noticed that they are gone
        assert server.ask("GET", "/ping").status == 200


def test_h32_past_the_queue_a_request_is_503_with_retry_after_and_ping_stays_quick(slow: Server) -> None:
    request = post(b"Content-Length: %d" % len(A_THIRD_OF_A_SECOND)) + A_THIRD_OF_A_SECOND
    with ExitStack() as stack:
        clients = [stack.enter_context(slow.connect()) for _ in range(MAX_PENDING + 40)]
        for client in clients:
            client.sendall(request)
        started = time.monotonic()
        assert slow.ask("GET", "/ping").status == 200
        assert time.monotonic() - started < 2
        replies = [answer(client) for client in clients]
    refused = [reply for reply in replies if reply.status == 503]
    assert {reply.status for reply in replies} <= {200, 503, 504}
    assert len(refused) > 20
    assert {(code(reply), reply.headers["retry-after"]) for reply in refused} == {("OVERLOADED", "1")}
    assert {code(reply) for reply in replies if reply.status == 504} == {"DEADLINE_EXCEEDED"}
    assert classify(slow).status == 200


def test_h34_an_inference_past_its_deadline_is_ended_and_answered_504_by_the_same_worker(slow: Server) -> None:
    pids = workers(slow)
    reply = slow.ask("POST", "/invocations", SLOW, JSON)
    assert (reply.status, code(reply)) == (504, "DEADLINE_EXCEEDED")
    assert classify(slow).status == 200
    assert workers(slow) == pids


# Kills and signals


def test_h35_a_killed_worker_takes_only_its_own_requests_with_it_and_comes_back(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    head = post(b"Content-Length: %d" % len(BODY), b"Expect: 100-continue")
    with container(tmp_path, FERRY_WORKERS="2") as server, ThreadPoolExecutor(4) as pool:
        wait_until(lambda: server.log.read_text().count("this worker is ready") == 2)
        expected = classify(server).body
        victim = psutil.Process(min(workers(server)))
        stop = threading.Event()
        load = [pool.submit(keep_asking, server, body, stop) for body in (BODY, b"{", b'{"data": NaN}', b"\xff")]
        in_flight = [server.connect() for _ in range(20)]
        for connection in in_flight:
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 100")  # a worker has it and waits for the body
        its_own = {link.raddr.port for link in victim.net_connections() if link.raddr}
        victim.kill()
        victim.wait()
        spared = [connection for connection in in_flight if connection.getsockname()[1] not in its_own]
        assert 0 < len(spared) < len(in_flight)
        for connection in spared:
            connection.sendall(BODY)
            assert answer(connection).body == expected
        assert again(lambda: server.ask("GET", "/ping")).status == 200
        assert again(lambda: classify(server)).body == expected
        wait_until(lambda: server.log.read_text().count("this worker is ready") == 3)
        stop.set()
        assert [one.result() for one in load] == [{200}, {400}, {400}, {400}]
        for connection in in_flight:
            connection.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def keep_asking(server: Server, body: bytes, stop: threading.Event) -> set[int]:
    """The statuses of all answers; a connection that is lost, to the killed worker, is none."""
    statuses: set[int] = set()
    while not (stop.is_set() and statuses):
        with suppress(OSError, http.client.HTTPException):
            statuses.add(server.ask("POST", "/invocations", body, JSON).status)
    return statuses


def again(ask: Callable[[], Reply]) -> Reply:
    """The answer within two seconds, where one connection or another is still one that the dead worker had accepted."""
    deadline = time.monotonic() + 2
    while True:
        try:
            return ask()
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < deadline


def test_h35_workers_that_are_all_killed_at_once_all_come_back(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    with container(tmp_path, FERRY_WORKERS="2") as server:
        wait_until(lambda: server.log.read_text().count("this worker is ready") == 2)
        expected = classify(server).body
        for pid in workers(server):
            os.kill(pid, signal.SIGKILL)
        assert classify(server).body == expected  # whoever comes meanwhile waits
        wait_until(lambda: server.log.read_text().count("this worker is ready") == 4)
        assert serves(server, expected)


def test_h35_a_killed_parent_leaves_no_worker_that_keeps_the_port(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    with container(tmp_path, FERRY_WORKERS="2") as server:
        wait_until(lambda: server.log.read_text().count("this worker is ready") == 2)
        orphans = [psutil.Process(pid) for pid in workers(server)]
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not accepts(server.port))
        wait_until(lambda: not any(lives(orphan) for orphan in orphans))


def lives(process: psutil.Process) -> bool:
    """A zombie does not: it has ended, and only nobody has asked how."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_h37_neither_half_a_body_nor_a_second_signal_keeps_the_server_from_ending_with_0(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "model")
    with container(tmp_path, command=(sys.executable, "-c", _IMPATIENT), FERRY_WORKERS="2") as server:
        half = [server.connect() for _ in range(10)]
        for connection in half:
            connection.sendall(post(b"Content-Length: %d" % len(BODY), b"Expect: 100-continue"))
            assert connection.recv(100).startswith(b"HTTP/1.1 100")
            connection.sendall(BODY[:100])
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: not accepts(server.port))
        server.process.send_signal(signal.SIGTERM)
        for connection in half[:5]:
            connection.sendall(BODY[100:])
        for connection, status in zip(half, [200] * 5 + [408] * 5, strict=True):
            with connection:
                assert answer(connection).status == status
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("idle", [False, True], ids=["new", "kept"])
def test_h37_a_request_that_has_just_arrived_when_sigterm_comes_is_answered(tmp_path: Path, idle: bool) -> None:
    serving_models.write_model(tmp_path / "model")
    with container(tmp_path, FERRY_WORKERS="2") as server, ExitStack() as stack:
        expected = classify(server).body
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            client.sendall(PING)
            assert answer(client).status == 200
        if not idle:
            clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            client.sendall(post(b"Content-Length: %d" % len(BODY)) + BODY)
        server.process.send_signal(signal.SIGTERM)
        assert {answer(client).body for client in clients} == {expected}
        assert server.process.wait(30) == 0


def test_h19_half_a_connection_is_enough_for_an_answer(server: Server, golden: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(post(b"Content-Length: %d" % len(BODY)) + BODY)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).endswith(golden)


def test_h38_ping_and_a_request_are_503_until_the_model_has_answered_its_golden_inputs(tmp_path: Path) -> None:
    content = hold_back(tmp_path)
    with starting(tmp_path) as server:
        wait_until(lambda: accepts(server.port))
        for method, path, body in (("GET", "/ping", None), ("POST", "/invocations", BODY)):
            reply = server.ask(method, path, body, JSON)
            assert (reply.status, code(reply), reply.headers["retry-after"]) == (503, "NOT_READY", "1")
        (tmp_path / "model" / environment.MODEL_FILE).write_bytes(content)
        statuses = []
        while 200 not in statuses:
            statuses.append(server.ask("GET", "/ping").status)
        assert set(statuses) <= {503, 200}
        assert classify(server).status == 200


def test_h38_after_a_failed_load_the_process_ends_with_1_and_one_reason(tmp_path: Path) -> None:
    content = hold_back(tmp_path)
    with starting(tmp_path) as server:
        wait_until(lambda: accepts(server.port))
        assert server.ask("GET", "/ping").status == 503
        (tmp_path / "model" / environment.MODEL_FILE).write_bytes(content[:-1])
        assert server.process.wait(30) == 1
        assert not accepts(server.port)
        assert server.log.read_text().count("size of model.onnx is") == 1


def hold_back(base: Path) -> bytes:
    """A model whose largest file is there but cannot be read before somebody writes it, as on a slow disk; its content."""
    serving_models.write_model(base / "model")
    file = base / "model" / environment.MODEL_FILE
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    return content


@contextmanager
def starting(base: Path) -> Iterator[Server]:
    """The container from its first moment."""
    port = free_port()
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(str(SERVE), env=container_variables(base, port), stdout=log, stderr=log)
    try:
        yield Server(process, port, base / "server.log")
    finally:
        process.terminate()
        assert process.wait(30) in (0, 1)


# Anything at all


@pytest.mark.parametrize("seed", range(4))
def test_h47_bytes_that_are_no_http_end_no_worker_and_get_no_5xx(server: Server, golden: bytes, seed: int) -> None:
    answers = throw(server, b"/invocations", seed)
    statuses = {int(said.split(maxsplit=2)[1]) for said in answers if said.startswith(b"HTTP/1.1 ")}
    assert {200, 400} <= statuses
    assert max(statuses) < 500
    assert all(said == b"" or said.startswith(b"HTTP/1.1 ") for said in answers)
    assert serves(server, golden)


def throw(server: Server, door: bytes, seed: int) -> list[bytes]:
    """Send bytes of every broken kind, and return what was said to them where somebody waited for it."""
    random, answers = Random(seed), []
    for _ in range(150):
        with server.connect() as connection, suppress(OSError):
            connection.sendall(broken_http(random, door.decode()))
            if random.random() < 0.8:  # else it hangs up without waiting
                connection.shutdown(socket.SHUT_WR)
                answers.append(connection.recv(65536))
    return answers


def test_h47_bytes_that_are_no_http_do_not_end_the_functions_host_either(host: Server) -> None:
    expected = host.ask("POST", "/api/classify", BODY, JSON).body
    statuses = {
        int(said.split(maxsplit=2)[1]) for said in throw(host, path("host"), 0) if said.startswith(b"HTTP/1.1 ")
    }
    # The standard library's server says 501 and 505 to a method and to a version that it does not know.
    assert {400} <= {status for status in statuses if status < 500}
    assert {status for status in statuses if status >= 500} <= NOT_SPOKEN
    assert host.ask("POST", "/api/classify", BODY, JSON).body == expected


def test_h48_thousands_of_good_and_bad_requests_leave_memory_descriptors_and_answers_as_they_were(
    server: Server, tmp_path: Path
) -> None:
    requests = make_requests(serving_models.write_model(tmp_path).signature, seed=1)
    clients, tally = Clients(server.port, "/invocations", requests), Tally()

    async def scenario() -> tuple[int, int]:
        await clients.remember()
        await clients.run(Tally(), 8, Pace(None), lambda: next(asked) < 1500)
        before = memory(server)
        await asyncio.gather(
            clients.run(tally, 8, Pace(None), lambda: next(asked) < 6000),
            clients.abuse(tally, Random(1), 0.01, lambda: next(asked) < 6000),
        )
        assert await clients.changed() == []
        return before, memory(server)

    asked, open_before = itertools.count(), descriptors(server)
    before, after = asyncio.run(scenario())
    assert (tally.unexpected, tally.lost) == ([], [])
    assert after - before < 24 * 2**20
    wait_until(lambda: descriptors(server) <= open_before)


@pytest.mark.slow
def test_h48_the_soak_finds_every_promise_kept_and_leaves_no_process(tmp_path: Path) -> None:
    release = tmp_path / "release"
    serving_models.write_release(release)
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.3", str(release)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every promise held: yes" in ended.stdout
    assert "| golden answers bit for bit as at the start | yes |" in ended.stdout


@pytest.mark.slow
def test_h48_an_interrupted_soak_ends_with_130_and_its_own_processes_with_it(tmp_path: Path) -> None:
    release = tmp_path / "release"
    serving_models.write_release(release)
    command = [sys.executable, "-m", "bench.soak", "--minutes", "5", str(release)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as soak:
        assert soak.stdout is not None
        assert "as many requests as it takes" in soak.stdout.readline()
        started = processes.find(f"bench-{soak.pid}-container")
        assert len(started) > 1
        soak.send_signal(signal.SIGINT)
        assert soak.wait(60) == 130
    assert processes.find(f"bench-{soak.pid}-container") == []
