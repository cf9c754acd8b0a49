"""The development host as a real process, held against what Azure's host and its Python worker do.

| what | source |
|---|---|
| search path, one FunctionApp | azure-functions-python-worker: utils/dependency.py, loader.py |
| routes without regard to case, prefix of host.json, 404 for another method | azure-functions-host: WebScriptHostHttpRoutesManager.cs (its routes carry an HttpMethodRouteConstraint, and a route that does not match is a 404) |
| keys and levels, the header before the query, 401 with an empty body | azure-functions-host: AuthenticationLevelHandler.cs, SecretManager.cs, AuthUtility.cs, FunctionInvocationMiddleware.cs |
| first the route, then the key, then the body | azure-functions-host: FunctionInvocationMiddleware.cs (the body is read when the function is executed) |
| limit of a body and the variable that moves it | azure-functions-host: HttpRequestBodySizeMiddleware.cs, ScriptConstants.cs |
| a body over it is 413 | ASP.NET Core's server, below the host; the host itself still makes a 500 of it (azure-functions-host issue 10519), on purpose not mirrored |
| a handler that raises is an empty 500 | azure-functions-host: ExceptionMiddleware.cs |
| homepage | azure-functions-host: HomepageMiddleware.cs |
| ping without a key | azure-functions-host: HostController.cs |
| number of threads | azure-functions-python-worker: dispatcher.py |
| no key is asked for on a developer's machine | azure-functions-core-tools: StartHostAction.cs (`--enableAuth` is off) |
"""

import http.client
import json
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ferry import functions_host as host_module
from tests import serving_models
from tests.serving_processes import LOOPBACK, Server, build_package, functions_host

IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
BODY = json.dumps({"data": IMAGES.tolist()}).encode()
ANSWER = {"digits": serving_models.log_probabilities(IMAGES).argmax(axis=1).tolist()}

FUNCTION_KEY, MASTER_KEY = "function-key-of-this-test", "master-key-of-this-test"

LEVELS = """
import os, threading
import azure.functions as func
app = func.FunctionApp()
@app.route(route="anonymous", auth_level=func.AuthLevel.ANONYMOUS)
def anonymous(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(threading.current_thread().name + " " + " ".join(os.environ))
@app.route(route="function", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def function(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(str(len(req.get_body())))
@app.route(route="admin", methods=["GET"], auth_level=func.AuthLevel.ADMIN)
def admin(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("admin")
@app.route(route="raise", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def fails(req: func.HttpRequest) -> func.HttpResponse:
    raise SystemExit("no envelope here") if "exit" in req.params else ZeroDivisionError
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Our own package, no keys."""
    package = build_package(tmp_path_factory.mktemp("package"))
    serving_models.write_model(package / "release")
    with functions_host(package) as running:
        yield running


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Functions of every level, both keys, and a limit of 10 bytes for a body."""
    variables = {
        host_module.FUNCTION_KEY: FUNCTION_KEY,
        host_module.MASTER_KEY: MASTER_KEY,
        host_module.BODY_LIMIT: "10",
        host_module.THREADS: "1",
    }
    with functions_host(build_package(tmp_path_factory.mktemp("package"), LEVELS), **variables) as running:
        yield running


# Functions, routes and methods


def test_the_package_answers_with_nothing_but_its_own_libraries(host: Server) -> None:
    reply = host.ask("POST", "/api/classify", BODY, {"Content-Type": "application/json"})
    assert (reply.status, json.loads(reply.body)) == (200, ANSWER)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/classify"),
        ("POST", "/api/health"),
        ("HEAD", "/api/health"),
        ("OPTIONS", "/api/health"),
        ("BREW", "/api/health"),
        ("POST", "/classify"),
        ("POST", "/api"),
        ("GET", "/admin/host/status"),
        ("PUT", "/admin/host/ping"),
    ],
)
def test_what_no_function_takes_is_an_empty_404(host: Server, method: str, path: str) -> None:
    reply = host.ask(method, path)
    assert (reply.status, reply.body) == (404, b"")


@pytest.mark.parametrize("path", ["/API/Health", "/api/health/", "/api/%68ealth", "/api/health?code=x"])
def test_a_route_matches_in_any_case_and_with_a_slash_behind_it(host: Server, path: str) -> None:
    assert host.ask("GET", path).status == 200


@pytest.mark.parametrize("method", ["GET", "DELETE", "BREW"])
def test_a_function_without_methods_takes_them_all(levels: Server, method: str) -> None:
    assert levels.ask(method, "/api/anonymous").status == 200


@pytest.mark.parametrize(("prefix", "path"), [("", "/admin"), ("v1/models", "/v1/models/admin")])
def test_the_prefix_of_the_routes_comes_from_host_json(tmp_path: Path, prefix: str, path: str) -> None:
    package = build_package(tmp_path, LEVELS)
    (package / "host.json").write_text(json.dumps({"extensions": {"http": {"routePrefix": prefix}}}))
    with functions_host(package) as host:
        assert (host.ask("GET", path).status, host.ask("GET", "/api/admin").status) == (200, 404)


def test_a_route_with_a_parameter_is_refused_at_the_start(tmp_path: Path) -> None:
    package = build_package(tmp_path, LEVELS.replace('route="admin"', 'route="admin/{id}"'))
    with pytest.raises(AssertionError, match="admin: only HTTP triggers without route parameters"):
        start(package)


def test_a_package_with_two_function_apps_is_refused(tmp_path: Path) -> None:
    package = build_package(tmp_path, LEVELS + "\nother = func.FunctionApp()\n")
    with pytest.raises(AssertionError, match="2 top-level FunctionApp"):
        start(package)


def start(package: Path) -> None:
    with functions_host(package):
        pass


# Keys


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/api/anonymous", None, 200),
        ("GET", "/api/anonymous", "wrong", 200),
        ("POST", "/api/function", None, 401),
        ("POST", "/api/function", "", 401),
        ("POST", "/api/function", "wrong", 401),
        ("POST", "/api/function", FUNCTION_KEY.upper(), 401),
        ("POST", "/api/function", FUNCTION_KEY, 200),
        ("POST", "/api/function", MASTER_KEY, 200),
        ("GET", "/api/admin", None, 401),
        ("GET", "/api/admin", FUNCTION_KEY, 401),
        ("GET", "/api/admin", MASTER_KEY, 200),
    ],
)
@pytest.mark.parametrize("place", ["header", "query"])
def test_each_level_asks_for_its_key_and_the_master_key_opens_all(
    levels: Server, place: str, method: str, path: str, key: str | None, status: int
) -> None:
    headers = {"X-Functions-Key": key} if place == "header" and key is not None else {}
    query = f"?code={key}" if place == "query" and key is not None else ""
    reply = levels.ask(method, path + query, headers=headers)
    assert reply.status == status
    assert status == 200 or reply.body == b""


def test_the_header_counts_and_not_the_query_where_a_caller_gives_both(levels: Server) -> None:
    both = f"/api/function?code={FUNCTION_KEY}"
    assert levels.ask("POST", both, headers={"x-functions-key": "wrong"}).status == 401
    assert levels.ask("POST", both, headers={"x-functions-key": ""}).status == 401
    assert levels.ask("POST", "/api/function?code=wrong", headers={"x-functions-key": FUNCTION_KEY}).status == 200


def test_a_function_key_alone_opens_no_admin_function(tmp_path: Path) -> None:
    with functions_host(build_package(tmp_path, LEVELS), **{host_module.FUNCTION_KEY: FUNCTION_KEY}) as host:
        assert host.ask("GET", f"/api/admin?code={FUNCTION_KEY}").status == 401
        assert host.ask("POST", f"/api/function?code={FUNCTION_KEY}").status == 200


def test_without_a_key_none_is_asked_for(tmp_path: Path) -> None:
    with functions_host(build_package(tmp_path, LEVELS)) as host:
        assert [host.ask("POST", "/api/function").status, host.ask("GET", "/api/admin").status] == [200, 200]


def test_no_key_reaches_the_package_or_the_log(levels: Server) -> None:
    levels.ask("POST", f"/api/function?code={FUNCTION_KEY}")
    seen = levels.ask("GET", "/api/anonymous").body.decode() + levels.log.read_text()
    assert host_module.THREADS in seen
    assert [name for name in (host_module.FUNCTION_KEY, FUNCTION_KEY, MASTER_KEY) if name in seen] == []


def test_our_own_function_asks_for_its_key_and_its_health_does_not(tmp_path: Path) -> None:
    package = build_package(tmp_path)
    serving_models.write_model(package / "release")
    with functions_host(package, **{host_module.FUNCTION_KEY: FUNCTION_KEY}) as host:
        assert host.ask("GET", "/api/health").status == 200
        assert host.ask("POST", "/api/classify", BODY).status == 401
        reply = host.ask("POST", "/api/classify", BODY, {"x-functions-key": FUNCTION_KEY})
        assert (reply.status, json.loads(reply.body)) == (200, ANSWER)


# Bodies


@pytest.mark.parametrize("parts", [1, 3])
def test_a_chunked_body_is_put_together(host: Server, parts: int) -> None:
    step = -(-len(BODY) // parts)
    with closing(http.client.HTTPConnection(LOOPBACK, host.port, timeout=10)) as connection:
        chunks = (BODY[start : start + step] for start in range(0, len(BODY), step))
        connection.request("POST", "/api/classify", chunks, encode_chunked=True)
        assert json.loads(connection.getresponse().read()) == ANSWER


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 104857601", 413),
        (b"Content-Length: 99999999999999999999", 413),
        (b"Content-Length: -1", 400),
        (b"Content-Length: 1\r\nContent-Length: 2", 400),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: gzip", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n-5", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFF", 413),
    ],
)
def test_a_body_that_cannot_be_read_ends_the_connection(host: Server, headers: bytes, status: int) -> None:
    reply = host.tell(b"POST /api/classify HTTP/1.1\r\nHost: test\r\n" + headers + b"\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 %d" % status)
    assert reply.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "first", [b"GARBAGE", b"GET / x HTTP/1.1", b"GET /api/health HTTP/9.9", b"GET /" + b"x" * 70_000 + b" HTTP/1.1"]
)
def test_a_first_line_that_is_none_is_refused_and_the_next_request_answered(host: Server, first: bytes) -> None:
    answer = host.tell(first + b"\r\nHost: test\r\n\r\n")
    assert answer.split()[1] in (b"400", b"414", b"505")
    assert host.ask("GET", "/api/health").status == 200


@pytest.mark.parametrize("target", ["http://elsewhere.example/api/health", "HTTP://[/api/health?code=x"])
def test_a_target_in_absolute_form_is_its_path(host: Server, target: str) -> None:
    assert host.ask("GET", target).status == 200


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413)])
def test_a_variable_moves_the_limit_of_a_body(levels: Server, size: int, status: int) -> None:
    assert levels.ask("POST", f"/api/function?code={FUNCTION_KEY}", b"x" * size).status == status


def test_a_limit_that_is_no_number_leaves_the_usual_one(tmp_path: Path) -> None:
    with functions_host(build_package(tmp_path, LEVELS), **{host_module.BODY_LIMIT: "10 MB"}) as host:
        assert host.ask("POST", "/api/function", b"x" * 11).body == b"11"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST /api/nowhere", 404),
        (b"POST /api/function", 401),
        (b"POST /api/function?code=" + FUNCTION_KEY.encode(), 413),
    ],
)
def test_the_route_is_looked_at_before_the_key_and_the_key_before_the_body(
    levels: Server, line: bytes, status: int
) -> None:
    reply = levels.tell(line + b" HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 %d" % status)


# The rest of the host


def test_one_connection_serves_several_requests(host: Server) -> None:
    with closing(http.client.HTTPConnection(LOOPBACK, host.port, timeout=10)) as connection:
        for path, status in [("/api/health", 200), ("/none", 404), ("/api/health", 200)]:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == status


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_ping_of_the_host_is_an_empty_200_without_a_key(levels: Server, method: str) -> None:
    reply = levels.ask(method, "/admin/host/ping")
    assert (reply.status, reply.body) == (200, b"")


def test_the_homepage_says_that_the_host_runs(host: Server) -> None:
    reply = host.ask("GET", "/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html")
    assert b"up and running" in reply.body


def test_a_variable_takes_the_homepage_away(tmp_path: Path) -> None:
    with functions_host(build_package(tmp_path, LEVELS), **{host_module.DISABLE_HOMEPAGE: "True"}) as host:
        reply = host.ask("GET", "/")
        assert (reply.status, reply.body) == (204, b"")


def test_a_handler_that_raises_is_an_empty_500_and_the_host_goes_on(tmp_path: Path) -> None:
    with functions_host(build_package(tmp_path, LEVELS)) as host:
        for path in ("/api/raise", "/api/raise?exit=1", "/api/raise"):
            reply = host.ask("GET", path)
            assert (reply.status, reply.body) == (500, b"")
        host.process.send_signal(signal.SIGTERM)
        assert host.process.wait(10) == 0
        assert "ZeroDivisionError" in host.log.read_text()


def test_handlers_run_in_as_many_threads_as_the_variable_says(levels: Server) -> None:
    names = {levels.ask("GET", "/api/anonymous").body.split()[0] for _ in range(5)}
    assert names == {b"function_0"}
