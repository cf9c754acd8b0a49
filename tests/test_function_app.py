"""The Azure Function: its handlers with real request objects, and the development host with real processes."""

import functools
import http.client
import importlib.metadata
import importlib.util
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as func
import numpy as np
import pytest
from azure.functions.http import HttpRequest

from ferry.wheels import read_pins
from infra.settings import ROOT
from model_code import environment
from tests import serving_models
from tests.serving_processes import LOOPBACK, Server, build_package, functions_host

SOURCE = ROOT / "function_app" / "function_app.py"
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
BODY = json.dumps({"data": IMAGES.tolist()}).encode()
ANSWER = {"digits": serving_models.log_probabilities(IMAGES).argmax(axis=1).tolist()}


class Invocation(func.Context):
    """The context of one call, as the worker makes it."""

    invocation_id = "invocation-1"
    function_name = "classify"
    function_directory = "/home/site/wwwroot"
    thread_local_storage = threading.local
    trace_context: Any = None
    retry_context: Any = None


def import_app(source: Path = SOURCE) -> ModuleType:
    """function_app.py as a fresh worker imports it."""
    spec = importlib.util.spec_from_file_location("function_app_under_test", source)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, name: str, body: bytes | str = b"", **headers: str) -> func.HttpResponse:
    request = HttpRequest(
        method="POST",
        url=f"https://example.com/api/{name}",
        headers={header.replace("_", "-"): value for header, value in headers.items()},
        params={},
        route_params={},
        body_type="bytes",
        body=body,
    )
    answer: func.HttpResponse = getattr(module, name)(req=request, context=Invocation())
    return answer


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    serving_models.write_model(tmp_path)
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    return import_app()


# The handlers


def test_classify_answers_with_the_release_id(app: ModuleType) -> None:
    response = call(app, "classify", BODY, content_type="application/json")
    assert (response.status_code, json.loads(response.get_body())) == (200, ANSWER)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-release-id"].startswith("mnist-")


def test_a_body_that_the_worker_hands_over_as_text_is_answered_too(app: ModuleType) -> None:
    assert call(app, "classify", BODY.decode()).status_code == 200


def test_the_invocation_id_is_the_request_id(app: ModuleType) -> None:
    response = call(app, "classify", b"{", Content_Type="application/json")
    assert response.status_code == 400
    assert json.loads(response.get_body())["error"]["request_id"] == "invocation-1"


def test_the_headers_of_the_caller_count(app: ModuleType) -> None:
    assert call(app, "classify", BODY, content_type="text/xml").status_code == 415
    assert call(app, "classify", BODY, accept="text/xml").status_code == 406


def test_a_slow_inference_is_504_and_the_next_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving_models.write_slow_model(tmp_path)
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    module = import_app()
    monkeypatch.setattr(module, "respond", functools.partial(module.respond, seconds=0.3))
    response = call(module, "classify", json.dumps({"data": serving_models.SLOW.tolist()}))
    assert (response.status_code, json.loads(response.get_body())["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    monkeypatch.undo()
    assert json.loads(call(module, "classify", BODY).get_body()) == ANSWER


def test_health_tells_the_release(app: ModuleType) -> None:
    response = call(app, "health")
    assert response.status_code == 200
    assert json.loads(response.get_body())["release_id"] == response.headers["x-release-id"]


def test_classify_wants_a_key_and_health_does_not(app: ModuleType) -> None:
    triggers = {function.get_function_name(): function.get_trigger() for function in app.app.get_functions()}
    said = {name: (t.route, [str(method) for method in t.methods], str(t.auth_level)) for name, t in triggers.items()}
    assert said == {"classify": ("classify", ["POST"], "FUNCTION"), "health": ("health", ["GET"], "ANONYMOUS")}


def test_the_module_has_the_one_function_app_that_the_worker_looks_for(app: ModuleType) -> None:
    assert [type(value) for value in vars(app).values() if isinstance(value, func.FunctionRegister)] == [
        func.FunctionApp
    ]


def test_without_a_setting_the_model_is_the_release_beside_the_module(tmp_path: Path) -> None:
    (tmp_path / "function_app.py").write_bytes(SOURCE.read_bytes())
    serving_models.write_model(tmp_path / "release")
    assert call(import_app(tmp_path / "function_app.py"), "health").status_code == 200


@pytest.mark.parametrize(
    "variables",
    [
        {environment.MODEL_DIR: "nowhere"},
        {environment.RELEASE_ID: "mnist-000000000000"},
        {environment.MODEL_JSON_SHA256: "0" * 64},
    ],
    ids=["missing", "another-release", "another-description"],
)
def test_a_model_that_cannot_be_served_is_logged_and_every_answer_is_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str]
) -> None:
    serving_models.write_model(tmp_path)
    for name, value in ({environment.MODEL_DIR: str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    module = import_app()
    assert "the model cannot be served" in caplog.text
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True]
    for name in ("classify", "health"):
        response = call(module, name, BODY)
        assert response.status_code == 503
        assert json.loads(response.get_body())["error"]["code"] == "NOT_READY"
        assert str(tmp_path).encode() not in response.get_body()


def test_host_json_keeps_the_route_and_a_limit_below_the_load_balancers() -> None:
    settings = json.loads((ROOT / "function_app" / "host.json").read_text())
    assert settings["version"] == "2.0"
    assert settings["extensions"]["http"]["routePrefix"] == "api"
    assert settings["functionTimeout"] < "00:03:50"  # Azure's load balancer gives up after 230 seconds


@pytest.mark.parametrize("path", ["function_app/requirements.txt", "model_code/container/requirements.txt"])
def test_what_is_deployed_is_what_is_tested(path: str) -> None:
    pins = read_pins(ROOT / path, f"{sys.version_info.major}.{sys.version_info.minor}")
    assert {name: importlib.metadata.version(name) for name in pins} == pins


# The development host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    package = build_package(tmp_path_factory.mktemp("package"))
    serving_models.write_model(package / "release")
    with functions_host(package) as running:
        yield running


def test_the_package_answers_with_nothing_but_its_own_libraries(host: Server) -> None:
    reply = host.ask("POST", "/api/classify", BODY, {"Content-Type": "application/json"})
    assert (reply.status, json.loads(reply.body)) == (200, ANSWER)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/classify"), ("POST", "/api/health"), ("HEAD", "/api/health"), ("GET", "/"), ("POST", "/classify")],
)
def test_what_no_function_takes_is_an_empty_404(host: Server, method: str, path: str) -> None:
    reply = host.ask(method, path)
    assert (reply.status, reply.body) == (404, b"")


def test_one_connection_serves_several_requests(host: Server) -> None:
    with closing(http.client.HTTPConnection(LOOPBACK, host.port, timeout=10)) as connection:
        for path, status in [("/api/health", 200), ("/none", 404), ("/api/health", 200)]:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == status


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


RAISING = """
import azure.functions as func
app = func.FunctionApp()
@app.route(route="raise", methods=["GET"])
def fails(req: func.HttpRequest) -> func.HttpResponse:
    raise SystemExit("no envelope here") if "exit" in req.params else ZeroDivisionError
"""


def test_a_handler_that_raises_is_an_empty_500_and_the_host_goes_on(tmp_path: Path) -> None:
    with functions_host(build_package(tmp_path, RAISING)) as host:
        for path in ("/api/raise", "/api/raise?exit=1", "/api/raise"):
            reply = host.ask("GET", path)
            assert (reply.status, reply.body) == (500, b"")
        host.process.send_signal(signal.SIGTERM)
        assert host.process.wait(10) == 0
        assert "ZeroDivisionError" in host.log.read_text()


def test_a_package_with_two_function_apps_is_refused(tmp_path: Path) -> None:
    package = build_package(tmp_path, RAISING + "\nother = func.FunctionApp()\n")
    with pytest.raises(AssertionError, match="2 top-level FunctionApp"), functions_host(package):
        pass
