"""The Azure Function: its handlers with real request objects, what it logs, and who it lets in."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import azure.functions as func
import numpy as np
import pytest
from azure.functions.http import HttpRequest
from PIL import Image

from ferry.wheels import read_pins
from infra.settings import ROOT
from model_code import environment
from model_code.inference.contract import MAX_BODY_BYTES, Limits
from tests import serving_models

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
    """function_app.py as a fresh worker imports it, once its load has ended: no test leaves a thread that reads its files."""
    module = start_app(source)
    for thread in loads():
        thread.join()
    return module


def loads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "load"]


def start_app(source: Path = SOURCE) -> ModuleType:
    """As `import_app`, while the model may still be loading."""
    spec = importlib.util.spec_from_file_location("function_app_under_test", source)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, name: str, body: bytes | str = b"", **headers: str) -> func.HttpResponse:
    answer: func.HttpResponse = getattr(module, name)(req=request(HttpRequest, body, **headers), context=Invocation())
    return answer


def request(kind: type[HttpRequest], body: bytes | str, **headers: str) -> HttpRequest:
    return kind(
        method="POST",
        url="https://example.com/api/classify",
        headers={header.replace("_", "-"): value for header, value in headers.items()},
        params={},
        route_params={},
        body_type="bytes",
        body=body,
    )


@pytest.fixture(autouse=True)
def _variable_that_the_function_sets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.BLAS_THREADS, "1")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    serving_models.write_model(tmp_path)
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    return import_app()


def test_classify_answers_with_the_release_id(app: ModuleType) -> None:
    response = call(app, "classify", BODY, content_type="application/json")
    assert (response.status_code, json.loads(response.get_body())) == (200, ANSWER)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-release-id"].startswith("mnist-")


def test_a_body_that_the_worker_hands_over_as_text_is_answered_too(app: ModuleType) -> None:
    assert call(app, "classify", BODY.decode()).status_code == 200


def as_image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, size=(28, 28)).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_h25_an_image_is_answered_and_one_that_came_as_text_is_refused_with_the_reason(
    app: ModuleType, kind: str
) -> None:
    """The host once handed images over as text, and what was no UTF-8 was lost (azure-functions-host, issue 4032)."""
    body, content_type = as_image(kind), f"image/{kind.lower()}"
    assert call(app, "classify", body, content_type=content_type).status_code == 200
    response = call(app, "classify", body.decode("utf-8", "replace"), content_type=content_type)
    error = json.loads(response.get_body())["error"]
    assert (response.status_code, error["code"]) == (400, "BAD_IMAGE")
    assert "taken for text" in error["message"]


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
    monkeypatch.setattr(module, "respond", functools.partial(module.respond, limits=Limits(seconds=0.3)))
    response = call(module, "classify", json.dumps({"data": serving_models.SLOW.tolist()}))
    assert (response.status_code, json.loads(response.get_body())["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    monkeypatch.undo()
    assert json.loads(call(module, "classify", BODY).get_body()) == ANSWER


def test_health_tells_the_release(app: ModuleType) -> None:
    response = call(app, "health")
    assert response.status_code == 200
    assert json.loads(response.get_body())["release_id"] == response.headers["x-release-id"]


def test_h44_classify_and_its_document_want_a_key_and_health_does_not(app: ModuleType) -> None:
    triggers = {function.get_function_name(): function.get_trigger() for function in app.app.get_functions()}
    said = {name: (t.route, [str(method) for method in t.methods], str(t.auth_level)) for name, t in triggers.items()}
    assert said == {
        "classify": ("classify", ["POST"], "FUNCTION"),
        "health": ("health", ["GET"], "ANONYMOUS"),
        "openapi": ("openapi.json", ["GET"], "FUNCTION"),
    }


def test_the_module_has_the_one_function_app_that_the_worker_looks_for(app: ModuleType) -> None:
    assert [type(value) for value in vars(app).values() if isinstance(value, func.FunctionRegister)] == [
        func.FunctionApp
    ]


def test_without_a_setting_the_model_is_the_release_beside_the_module(tmp_path: Path) -> None:
    (tmp_path / "function_app.py").write_bytes(SOURCE.read_bytes())
    serving_models.write_model(tmp_path / "release")
    assert call(import_app(tmp_path / "function_app.py"), "health").status_code == 200


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The lines of the function's own log about one kind of event."""
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "modelferry.function"]
    return [line for line in lines if line["event"] == event]


# Loading


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({environment.MODEL_DIR: "nowhere"}, "MODEL_INVALID"),
        ({environment.RELEASE_ID: "mnist-000000000000"}, "DIGEST_MISMATCH"),
        ({environment.MODEL_JSON_SHA256: "0" * 64}, "DIGEST_MISMATCH"),
    ],
    ids=["missing", "another-release", "another-description"],
)
def test_a_model_that_cannot_be_served_is_logged_and_every_answer_is_503(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    code: str,
) -> None:
    serving_models.write_model(tmp_path)
    for name, value in ({environment.MODEL_DIR: str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    module = import_app()
    (line,) = logged(caplog, "load")
    assert (line["code"], line["release_id"]) == (code, variables.get(environment.RELEASE_ID))
    assert line["message"].startswith("the model cannot be served: ")
    assert "Predictor.load" in line["traceback"]
    for name in ("classify", "health", "openapi"):
        response = call(module, name, BODY)
        assert response.status_code == 503
        assert json.loads(response.get_body())["error"]["code"] == "NOT_READY"
        assert str(tmp_path).encode() not in response.get_body()
    assert code in json.loads(call(module, "health").get_body())["error"]["message"]


@pytest.mark.parametrize(("digest", "status"), [(None, 200), ("0" * 64, 503)])
def test_the_release_beside_the_model_says_which_description_is_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str | None, status: int
) -> None:
    serving_models.write_model(tmp_path)
    found = hashlib.sha256((tmp_path / "model.json").read_bytes()).hexdigest()
    (tmp_path / "release.json").write_text(json.dumps({"model_json": {"sha256": digest or found}}))
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    assert call(import_app(), "health").status_code == status


def test_a_release_that_cannot_be_read_is_a_model_that_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serving_models.write_model(tmp_path)
    (tmp_path / "release.json").write_text("{}")
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    assert call(import_app(), "health").status_code == 503
    assert "model_json" in logged(caplog, "load")[0]["traceback"]


def test_the_load_of_a_model_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serving_models.write_model(tmp_path)
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    monkeypatch.setenv(environment.WORKER_THREADS, "2")
    caplog.set_level(logging.INFO)
    module = import_app()
    (line,) = logged(caplog, "load")
    assert line.pop("milliseconds") > 0
    assert line == {
        "event": "load",
        "release_id": call(module, "health").headers["x-release-id"],
        "inference_threads": 1,
        "worker_threads": "2",
    }


class HeldLoad:
    """An app whose load waits for its release.json, a pipe, until `go` writes that."""

    def __init__(self, model: Path) -> None:
        self._pipe = model / "release.json"
        self._sha256 = hashlib.sha256((model / "model.json").read_bytes()).hexdigest()
        os.mkfifo(self._pipe)
        self.app = start_app()

    def go(self, sha256: str | None = None) -> None:
        if loads():
            self._pipe.write_text(json.dumps({"model_json": {"sha256": sha256 or self._sha256}}))
        for thread in loads():
            thread.join()


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldLoad]:
    serving_models.write_model(tmp_path)
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    load = HeldLoad(tmp_path)
    yield load
    load.go()


@pytest.mark.parametrize(("sha256", "status"), [(None, 200), ("0" * 64, 503)], ids=["good", "bad"])
def test_requests_that_come_while_the_model_loads_wait_for_what_becomes_of_it(
    held: HeldLoad, sha256: str | None, status: int
) -> None:
    calls = [("classify", BODY), ("classify", BODY), ("health", b""), ("openapi", b"")]
    with ThreadPoolExecutor(len(calls)) as pool:
        waiting = [pool.submit(call, held.app, name, body) for name, body in calls]
        assert not wait(waiting, timeout=0.2).done
        held.go(sha256)
        answers = [one.result() for one in waiting]
    assert [answer.status_code for answer in answers] == [status] * len(calls)
    documents = [json.loads(answer.get_body()) for answer in answers]
    if status == 200:
        assert documents[:2] == [ANSWER, ANSWER]
    else:
        assert {document["error"]["code"] for document in documents} == {"NOT_READY"}
        assert "DIGEST_MISMATCH" in documents[2]["error"]["message"]


def test_a_request_waits_no_longer_for_the_model_than_for_its_answer(
    held: HeldLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(held.app._wait_for_the_load, "__defaults__", (0.05,))
        patch.setattr(held.app, "_HEALTH_SECONDS", 0.05)
        for name in ("classify", "health", "openapi"):
            answer = call(held.app, name, BODY)
            assert (answer.status_code, json.loads(answer.get_body())["error"]["code"]) == (503, "NOT_READY")
        assert "being loaded" in json.loads(call(held.app, "health").get_body())["error"]["message"]
    held.go()
    assert json.loads(call(held.app, "classify", BODY).get_body()) == ANSWER


def in_a_fresh_process(script: str) -> str:
    """What it prints, without any variable of this process."""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, env={}
    )
    return finished.stdout


def test_the_function_itself_brings_no_library_but_those_of_the_core() -> None:
    script = (
        "import sys, azure.functions, numpy, onnxruntime\n"
        "def libraries(): return {name.split('.')[0] for name in sys.modules}\n"
        "before = libraries()\n"
        "import function_app.function_app\n"
        "print(*libraries() - before)"
    )
    assert set(in_a_fresh_process(script).split()) - set(sys.stdlib_module_names) == {"function_app", "model_code"}


def test_a_cold_start_sets_no_thread_of_numpy_to_work_and_leaves_the_garbage_collector_on() -> None:
    script = (
        "import gc, os, function_app.function_app; print(gc.isenabled(), gc.get_freeze_count() > 0, dict(os.environ))"
    )
    said = in_a_fresh_process(script)
    assert said.startswith("True True ")
    assert "'OPENBLAS_NUM_THREADS': '1'" in said


def test_a_cold_start_imports_no_development_server_and_who_asks_for_it_gets_it() -> None:
    script = (
        "import sys, function_app.function_app, werkzeug\n"
        "print('werkzeug.http' in sys.modules, 'werkzeug.serving' in sys.modules, 'http.server' in sys.modules)\n"
        "from werkzeug import formparser, run_simple, Request\n"
        "print(run_simple.__module__, Request.__module__, formparser.__name__, hasattr(werkzeug, 'missing'))\n"
        "print(werkzeug.Response is sys.modules['werkzeug.wrappers'].Response)"
    )
    assert in_a_fresh_process(script).splitlines() == [
        "True False False",
        "werkzeug.serving werkzeug.wrappers.request werkzeug.formparser False",
        "True",
    ]


def test_what_the_worker_has_imported_already_stays_as_it_is() -> None:
    script = (
        "import werkzeug\n"
        "before = dict(vars(werkzeug))\n"
        "import function_app.function_app\n"
        "print(all(vars(werkzeug)[name] is value for name, value in before.items()), '__getattr__' in vars(werkzeug))"
    )
    assert in_a_fresh_process(script) == "True False\n"


# Limits


def test_a_body_over_the_limit_of_the_core_is_413(app: ModuleType) -> None:
    response = call(app, "classify", b" " * (MAX_BODY_BYTES + 1))
    assert (response.status_code, json.loads(response.get_body())["error"]["code"]) == (413, "BODY_TOO_LARGE")


def test_the_deadline_counts_from_the_arrival_of_a_request(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowBody(HttpRequest):
        def get_body(self) -> bytes:
            time.sleep(0.02)
            return BODY

    monkeypatch.setattr(app, "respond", functools.partial(app.respond, limits=Limits(seconds=0.01)))
    response = app.classify(req=request(SlowBody, b""), context=Invocation())
    assert (response.status_code, json.loads(response.get_body())["error"]["code"]) == (504, "DEADLINE_EXCEEDED")


# Who may call


@pytest.mark.parametrize(
    ("authorization", "platform", "level"),
    [
        (None, None, "FUNCTION"),
        ("", None, "FUNCTION"),
        ("function-key", None, "FUNCTION"),
        ("function-key", "True", "FUNCTION"),
        ("anonymous", None, "ANONYMOUS"),
        ("entra", "True", "ANONYMOUS"),
        ("entra", "true", "ANONYMOUS"),
        ("entra", None, "FUNCTION"),
        ("entra", "False", "FUNCTION"),
        ("entra", "1", "FUNCTION"),
        ("Anonymous", None, "FUNCTION"),
        ("internal", "True", "FUNCTION"),
    ],
)
def test_h44_classify_is_open_only_where_the_settings_and_the_platform_say_so(
    app: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    authorization: str | None,
    platform: str | None,
    level: str,
) -> None:
    for name, value in [(environment.AUTHORIZATION, authorization), (environment.PLATFORM_AUTHENTICATION, platform)]:
        if value is not None:
            monkeypatch.setenv(name, value)
    caplog.clear()
    triggers = {each.get_function_name(): each.get_trigger() for each in import_app().app.get_functions()}
    assert {name: str(trigger.auth_level) for name, trigger in triggers.items()} == {
        "classify": level,
        "health": "ANONYMOUS",
        "openapi": level,
    }
    wanted = authorization in (None, "", "function-key")
    lines = logged(caplog, "authorization")
    assert len(lines) == (0 if wanted or level == "ANONYMOUS" else 1)
    for line in lines:
        assert repr(authorization) in line["message"]


@pytest.mark.parametrize(
    ("authorization", "platform", "schemes"),
    [
        (None, None, {"key", "keyInQuery"}),
        ("entra", None, {"key", "keyInQuery"}),
        ("entra", "True", {"token"}),
        ("anonymous", None, set()),
    ],
)
def test_the_document_says_how_callers_show_who_they_are(
    app: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    authorization: str | None,
    platform: str | None,
    schemes: set[str],
) -> None:
    for name, value in [(environment.AUTHORIZATION, authorization), (environment.PLATFORM_AUTHENTICATION, platform)]:
        if value is not None:
            monkeypatch.setenv(name, value)
    response = call(import_app(), "openapi")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    document = json.loads(response.get_body())
    assert set(document["components"]["securitySchemes"]) == schemes
    for path, method in (("/api/classify", "post"), ("/api/openapi.json", "get")):
        operation = document["paths"][path][method]
        assert {name for alternative in operation["security"] for name in alternative} == schemes
        assert ("401" in operation["responses"]) == bool(schemes)
    assert document["paths"]["/api/health"]["get"]["security"] == []


# What is logged


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "level"),
    [
        (BODY, {}, 200, None, logging.INFO),
        (b"{", {}, 400, "BAD_JSON", logging.INFO),
        (BODY, {"content_type": "text/xml"}, 415, "UNSUPPORTED_MEDIA_TYPE", logging.INFO),
    ],
)
def test_each_request_is_one_line_with_its_invocation_its_release_and_its_outcome(
    app: ModuleType,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
    headers: dict[str, str],
    status: int,
    code: str | None,
    level: int,
) -> None:
    caplog.set_level(logging.INFO)
    release_id = call(app, "health").headers["x-release-id"]
    caplog.clear()
    call(app, "classify", body, **headers)
    assert [record.levelno for record in caplog.records] == [level]
    (line,) = logged(caplog, "request")
    assert line.pop("milliseconds") > 0
    assert line == {
        "event": "request",
        "function": "classify",
        "invocation_id": "invocation-1",
        "release_id": release_id,
        "status": status,
        "code": code,
    }


def test_a_request_that_fails_on_our_side_is_logged_as_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(environment.MODEL_DIR, str(tmp_path))
    module = import_app()
    caplog.clear()
    call(module, "classify", BODY)
    (line,) = logged(caplog, "request")
    assert (line["status"], line["code"], line["release_id"]) == (503, "NOT_READY", None)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_line_is_written_by_the_thread_of_the_handler_by_which_the_worker_knows_the_invocation(
    app: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(1, thread_name_prefix="handler") as pool:
        pool.submit(call, app, "classify", BODY).result()
    assert {record.threadName for record in caplog.records} == {"handler_0"}


def test_neither_bodies_nor_headers_are_logged(app: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for body in (b'{"data": "BODYMARK"}', b"BODYMARK", BODY):
        call(app, "classify", body, x_functions_key="KEYMARK", authorization="KEYMARK", accept="text/plain;KEYMARK")
    assert logged(caplog, "request")
    assert "MARK" not in caplog.text


# What is deployed


def test_host_json_keeps_the_route_and_a_limit_below_the_load_balancers() -> None:
    settings = json.loads((ROOT / "function_app" / "host.json").read_text())
    assert settings["version"] == "2.0"
    assert settings["extensions"]["http"]["routePrefix"] == "api"
    assert settings["functionTimeout"] < "00:03:50"  # Azure's load balancer gives up after 230 seconds


@pytest.mark.parametrize(
    "path",
    [
        "function_app/requirements.txt",
        "model_code/container/requirements.txt",
        "model_code/native/requirements.txt",
    ],
)
def test_what_is_deployed_is_what_is_tested(path: str) -> None:
    pins = read_pins(ROOT / path, f"{sys.version_info.major}.{sys.version_info.minor}")
    assert {name: importlib.metadata.version(name) for name in pins} == pins
