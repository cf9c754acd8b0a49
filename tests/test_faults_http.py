"""Every wrong request of the list of faults, at every door, with the same status, the same code and the same envelope.

The doors are the core in this process, the container's `serve` and the development host of the Function as real processes, and
the Function's handler in this process. What a platform says itself, before a door is asked, is in the rows of its own: the
gateway's in test_infra_gateway_errors.py, the host's here.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import azure.functions as func
import numpy as np
import pytest
from azure.functions.http import HttpRequest

from infra.settings import ROOT
from model_code import environment
from model_code.inference.contract import MAX_BODY_BYTES, Request
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond
from tests import serving_models
from tests.http_faults import (
    CSV,
    GOOD_IMAGES,
    GOOD_PNG,
    GOOD_ROWS,
    GREY,
    IMAGES,
    JPEG,
    JSON,
    LINES,
    NPY,
    PNG,
    TABLES,
    Faults,
    Headers,
    as_image,
    as_npy,
    chunk,
    pixel,
    png,
)
from tests.serving_processes import LOOPBACK, START_SECONDS, Reply, Server, build_package, container, functions_host
from tests.test_function_app import Invocation, import_app

DOORS = ("core", "serve", "function", "host")
FUNCTION_KEY = "function-key-of-this-test"
Ask = Callable[[bytes, Headers], Reply]


@dataclass(frozen=True)
class Door:
    """One request for an answer, and whether the door is well."""

    ask: Ask
    is_healthy: Callable[[], bool]


def _core(model: Path) -> Door:
    predictor = Predictor.load(model)

    def ask(body: bytes, headers: Headers) -> Reply:
        request = Request(body, joined(headers, "Content-Type"), joined(headers, "Accept"), "request-1")
        response = respond(predictor, request)
        return Reply(response.status, response.headers, response.body)

    return Door(ask, lambda: True)


def joined(headers: Headers, name: str) -> str | None:
    """As both servers hand over a header that came more than once."""
    return ", ".join(value for key, value in headers if key == name) or None


def _process(server: Server, path: str, health: str) -> Door:
    return Door(
        lambda body, headers: send(server, "POST", path, body, headers),
        lambda: send(server, "GET", health).status == 200,
    )


def send(server: Server, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> Reply:
    """As `Server.ask`, with headers that may come twice and may be no ASCII."""
    with closing(HTTPConnection(LOOPBACK, server.port, timeout=START_SECONDS)) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(body)
        response = connection.getresponse()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def _function(model: Path) -> Door:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environment.MODEL_DIR, str(model))
        patch.setenv(environment.BLAS_THREADS, "1")
        module = import_app()

    def call(name: str, body: bytes, headers: Headers) -> Reply:
        request = HttpRequest(
            method="POST",
            url=f"https://example.com/api/{name}",
            headers={key: ",".join(value for other, value in headers if other == key) for key, _ in headers},
            params={},
            route_params={},
            body_type="bytes",
            body=body,
        )
        response: func.HttpResponse = getattr(module, name)(req=request, context=Invocation())
        return Reply(response.status_code, response.headers, response.get_body())

    return Door(lambda body, headers: call("classify", body, headers), lambda: call("health", b"", ()).status == 200)


@dataclass(frozen=True)
class Doors:
    """The doors in front of one model by their names, and the processes behind two of them."""

    by_name: dict[str, Door]
    serve: Server
    host: Server


def _open(stack: ExitStack, base: Path, package: Path, write: Callable[[Path], object]) -> Doors:
    write(base / "model")
    write(package / "release")
    serve = stack.enter_context(container(base))
    host = stack.enter_context(functions_host(package))
    by_name = {
        "core": _core(base / "model"),
        "serve": _process(serve, "/invocations", "/ping"),
        "function": _function(base / "model"),
        "host": _process(host, "/api/classify", "/api/health"),
    }
    return Doors(by_name, serve, host)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    package = build_package(tmp_path_factory.mktemp("package"))
    with ExitStack() as stack:
        yield _open(stack, tmp_path_factory.mktemp("ml"), package, serving_models.write_model)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    package = build_package(tmp_path_factory.mktemp("package"))
    with ExitStack() as stack:
        yield _open(stack, tmp_path_factory.mktemp("ml"), package, serving_models.write_table_model)


every_door = pytest.mark.parametrize("door", DOORS)


def expect_refusals(doors: Doors, door: str, faults: Faults, golden: bytes) -> None:
    """Each fault gets its status and code in the one envelope, and the good request before and after them the same bytes."""
    asked = doors.by_name[door]
    before = asked.ask(golden, (("Content-Type", JSON),))
    said = {name: refusal(asked.ask(fault.body, fault.headers)) for name, fault in faults.items()}
    assert faults
    assert said == {name: (fault.status, fault.code) for name, fault in faults.items()}
    assert asked.is_healthy()
    after = asked.ask(golden, (("Content-Type", JSON),))
    assert (before.status, after.status, after.body) == (200, 200, before.body)


def refusal(reply: Reply) -> tuple[int, str]:
    """Status and code of an error, once its form is seen to be right."""
    assert reply.headers["content-type"] == JSON
    document = strict_json(reply.body)
    assert list(document) == ["error"]
    error = document["error"]
    assert sorted(error) == ["code", "message", "request_id"]
    assert all(isinstance(value, str) and value for value in error.values())
    assert not re.search(r"Traceback|/work|/tmp|\.py\b|File \"", error["message"])
    return reply.status, error["code"]


def strict_json(body: bytes) -> dict[str, dict[str, str]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document: dict[str, dict[str, str]] = json.loads(body.decode("utf-8"), parse_constant=refuse)
    return document


def message(reply: Reply) -> str:
    return strict_json(reply.body)["error"]["message"]


# What is wrong in a body


@every_door
def test_h1_an_empty_body_is_said_to_be_empty(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h1"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h1"], GOOD_ROWS)


@every_door
def test_h2_what_is_not_of_its_type_is_refused_and_json_with_the_place(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h2"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h2"], GOOD_ROWS)
    trailing = images.by_name[door].ask(GOOD_IMAGES + b" x", ())
    assert f"at character {len(GOOD_IMAGES) + 1}" in message(trailing)


@every_door
def test_h3_what_is_not_utf_8_is_refused_with_the_place(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h3"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h3"], GOOD_ROWS)
    assert "not UTF-8 at byte 10" in message(images.by_name[door].ask(b'{"data": "\xff"}', ()))


@every_door
def test_h4_a_byte_order_mark_and_any_other_encoding_are_refused(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h4"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h4"], GOOD_ROWS)


@every_door
def test_h5_a_number_that_is_not_finite_is_refused_in_every_spelling(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h5"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h5"], GOOD_ROWS)


@every_door
@pytest.mark.parametrize(
    "text",
    ["-0", "-0.0", "1e-400", "-1e-400", "1E-45", "1E+2", "1e+02", "0e999999999", "18446744073709551615", "3.4e38"],
)
def test_h5_a_finite_number_is_taken_in_every_spelling_and_answered_in_strict_json(
    images: Doors, door: str, text: str
) -> None:
    reply = images.by_name[door].ask(pixel(text), ())
    assert reply.status == 200
    assert list(strict_json(reply.body)) == ["digits"]


@every_door
def test_h8_a_key_that_comes_twice_is_refused_however_it_is_written(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h8"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h8"], GOOD_ROWS)


@every_door
def test_h10_any_other_shape_is_refused_and_the_right_one_named(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h10"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h10"], GOOD_ROWS)
    assert message(images.by_name[door].ask(b'{"data":[1]}', ())) == "data: expected shape [n, 1, 28, 28]"


@every_door
def test_h11_what_is_no_number_is_no_pixel(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h11"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h11"], GOOD_ROWS)


@every_door
def test_h12_a_number_out_of_its_range_is_refused(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h12"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h12"], GOOD_ROWS)


@every_door
def test_h13_a_batch_of_nothing_is_refused(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h13"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h13"], GOOD_ROWS)


@every_door
def test_h14_an_instance_more_than_the_limit_is_413(images: Doors, tables: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h14"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h14"], GOOD_ROWS)


@every_door
def test_h15_a_body_is_taken_up_to_the_limit_and_413_past_it(images: Doors, door: str) -> None:
    for size in (MAX_BODY_BYTES - 1, MAX_BODY_BYTES):
        assert images.by_name[door].ask(GOOD_IMAGES.ljust(size), (("Content-Type", JSON),)).status == 200
    expect_refusals(images, door, IMAGES["h15"], GOOD_IMAGES)


@every_door
def test_h25_a_file_that_is_not_one_plain_image_is_refused_before_it_is_decoded(images: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h25"], GOOD_IMAGES)


@every_door
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (GOOD_PNG, PNG),
        (png(28, 28, (8, 0, 0, 0, 1)), PNG),
        (as_image(np.stack([GREY] * 3, axis=2)), f"{PNG}; charset=utf-8"),
        (as_image(GREY, "JPEG", progressive=True), "Image/JPEG"),
        (as_image(np.stack([GREY] * 3, axis=2), "JPEG"), JPEG),
    ],
    ids=["png", "interlaced", "colour", "progressive", "colour-jpeg"],
)
def test_h25_a_plain_image_is_answered(images: Doors, door: str, body: bytes, content_type: str) -> None:
    assert images.by_name[door].ask(body, (("Content-Type", content_type),)).status == 200


def test_h25_exif_that_cannot_be_read_writes_nothing_into_the_log_that_is_no_record(images: Doors) -> None:
    body = png(28, 28, before=chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"))
    assert images.by_name["serve"].ask(body, (("Content-Type", PNG),)).status in (200, 400)
    for line in images.serve.log.read_text().splitlines():
        json.loads(line)


# What is wrong in a header


@every_door
def test_h21_a_body_without_a_content_type_is_json(images: Doors, tables: Doors, door: str) -> None:
    for doors, golden in ((images, GOOD_IMAGES), (tables, GOOD_ROWS)):
        declared = doors.by_name[door].ask(golden, (("Content-Type", JSON),))
        for headers in ((), (("Content-Type", ""),)):
            assert doors.by_name[door].ask(golden, headers).body == declared.body
        assert refusal(doors.by_name[door].ask(b"1,2,3,4", ())) == (400, "BAD_JSON")


@every_door
def test_h22_another_content_type_is_415_and_the_supported_ones_are_listed(
    images: Doors, tables: Doors, door: str
) -> None:
    expect_refusals(images, door, IMAGES["h22"], GOOD_IMAGES)
    expect_refusals(tables, door, TABLES["h22"], GOOD_ROWS)
    said = message(images.by_name[door].ask(GOOD_IMAGES, (("Content-Type", "text/xml"),)))
    assert [kind for kind in (JSON, NPY, CSV, LINES, PNG, JPEG) if kind not in said] == []


@every_door
@pytest.mark.parametrize(
    "content_type",
    [JSON, "APPLICATION/Json", f"{JSON};charset=UTF-8", f'{JSON} ; charset="utf-8"', f"{JSON};", f"{JSON};;version=1"],
)
def test_h22_a_content_type_counts_in_any_case_and_with_other_parameters(
    images: Doors, door: str, content_type: str
) -> None:
    assert images.by_name[door].ask(GOOD_IMAGES, (("Content-Type", content_type),)).status == 200


@every_door
def test_h23_an_answer_that_the_caller_does_not_accept_is_406(images: Doors, door: str) -> None:
    expect_refusals(images, door, IMAGES["h23"], GOOD_IMAGES)


@every_door
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ((), JSON),
        (("",), JSON),
        ((" , ,",), JSON),
        (("*/*",), JSON),
        ((f"{NPY}, {JSON}",), JSON),
        (("text/html", f"{NPY}"), NPY),
        ((f"{JSON};q=0.1", f"{NPY};q=0.2"), NPY),
        ((f"{JSON};q=0, */*",), NPY),
        (("text/*",), CSV),
        ((f"APPLICATION/X-NPY; Q=1.000, {JSON};q=0.999",), NPY),
        ((f'text/xml;x="y", {LINES}',), LINES),
    ],
    ids=str,
)
def test_h23_the_answer_has_the_type_that_the_caller_prefers(
    images: Doors, door: str, accept: tuple[str, ...], media_type: str
) -> None:
    headers = (("Content-Type", NPY), *(("Accept", value) for value in accept))
    reply = images.by_name[door].ask(as_npy(GREY[None]), headers)
    assert (reply.status, reply.headers["content-type"]) == (200, media_type)


@every_door
def test_h29_headers_that_a_platform_may_add_change_nothing(images: Doors, door: str) -> None:
    plain = images.by_name[door].ask(GOOD_IMAGES, (("Content-Type", JSON),))
    added = (
        ("Content-Type", JSON),
        ("X-Amzn-SageMaker-Target-Variant", "blue"),
        ("X-Amzn-SageMaker-Unheard-Of", "1"),
        ("X-Amzn-SageMaker-Unheard-Of", "2"),
        ("X-Amzn-SageMaker-Custom-Attributes", "c0ff\xe9e"),
        ("X-Amzn-SageMaker-Session-Id", "NEW_SESSION"),
        ("X-ARR-LOG-ID", "1"),
        ("X-Forwarded-For", "\xff"),
        ("Content-Encoding", "identity"),
    )
    reply = images.by_name[door].ask(GOOD_IMAGES, added)
    assert (reply.status, reply.body) == (200, plain.body)


# Methods and paths


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "TRACE", "PATCH", "OPTIONS", "QUERY"])
def test_h26_the_container_answers_another_method_with_405_and_what_is_allowed(images: Doors, method: str) -> None:
    reply = send(images.serve, method, "/invocations")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert method == "HEAD" or refusal(reply) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("method", ["BREW", "post", "P\tOST"])
def test_h26_a_method_that_http_does_not_have_is_400(images: Doors, method: str) -> None:
    reply = images.serve.tell(f"{method} /invocations HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 400")
    assert b'"BAD_HTTP"' in reply


@pytest.mark.parametrize("path", ["/ping", "/execution-parameters", "/openapi.json"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE"])
def test_h26_what_is_read_is_not_written(images: Doors, method: str, path: str) -> None:
    reply = send(images.serve, method, path)
    assert (reply.status, reply.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, "/api/classify") for method in ("GET", "PUT", "DELETE", "TRACE", "BREW")]
    + [(method, path) for method in ("POST", "PUT", "TRACE") for path in ("/api/health", "/api/openapi.json")],
)
def test_h26_azures_host_knows_no_function_for_another_method(images: Doors, method: str, path: str) -> None:
    """Its routes carry the method (WebScriptHostHttpRoutesManager.cs): the platform's empty 404, and not the list's 405."""
    reply = send(images.host, method, path)
    assert (reply.status, reply.body) == (404, b"")


STRANGE_PATHS = (
    b"/invocations/../ping",
    b"/../../etc/passwd",
    b"/%2e%2e/ping",
    b"/invocations/%2e%2e/ping",
    b"/invocations%2f..%2fping",
    b"/..%5cping",
    b"//ping",
    b"//models",
    b"/ping/",
    b"/ping%00",
    b"/ping%0d%0aX-Injected:%201",
    b"/ping;x=y",
    b"/Ping",
    b"/models",
    b"/models/mnist/invoke",
    b"/openapi.json/..",
    b"/opt/ml/model/model.json",
    b"/%ff",
    b"/%",
    b"/%zz",
    b"/" + b"a" * 8000,
)


@pytest.mark.parametrize("path", STRANGE_PATHS, ids=lambda path: path[:40].decode())
def test_h27_a_path_that_means_another_one_is_404_at_the_container(images: Doors, path: bytes) -> None:
    answer = images.serve.tell(b"GET " + path + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0].split()[1] == b"404"
    assert b"x-injected" not in head.lower()
    assert json.loads(body)["error"]["code"] == "NOT_FOUND"
    assert images.by_name["serve"].is_healthy()


@pytest.mark.parametrize("path", [b"/\0", b"/ping\0", b"/p\x01ng", b"/p ing", b"/p\xffng", b"ping", b"*"], ids=repr)
def test_h27_a_path_that_http_does_not_know_is_refused_and_harms_nothing(images: Doors, path: bytes) -> None:
    answer = images.serve.tell(b"GET " + path + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert answer == b"" or answer.split()[1] in (b"400", b"404")
    assert images.by_name["serve"].is_healthy()


@pytest.mark.parametrize(
    "path",
    [
        b"/api/classify/../health",
        b"/api/%2e%2e/api/health",
        b"//api/health",
        b"//[",
        b"http://[",
        b"/api//health",
        b"/api/health%00",
        b"/api%5chealth",
        b"/api/release/model.json",
        b"/function_app.py",
        b"/%ff",
    ],
    ids=repr,
)
def test_h27_a_path_that_means_another_one_is_404_at_the_functions_host(images: Doors, path: bytes) -> None:
    """Azure's own server takes dot segments out first (Kestrel, PathNormalizer.cs): there the first two may be a 200."""
    answer = images.host.tell(b"GET " + path + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    assert answer.split()[1] == b"404"
    assert images.by_name["host"].is_healthy()


# Who may ask


@pytest.mark.parametrize("path", ["/api/classify", "/api/openapi.json"])
@pytest.mark.parametrize(
    "key",
    [None, "", "wrong", FUNCTION_KEY.upper(), FUNCTION_KEY[:-1], f"{FUNCTION_KEY} ", f"{FUNCTION_KEY},x", "\xe9"],
    ids=repr,
)
def test_h44_without_the_right_key_it_is_401_and_the_handler_is_not_entered(
    keyed: Server, path: str, key: str | None
) -> None:
    entered = keyed.log.read_text().count('"event": "request"')
    headers = (("x-functions-key", key),) if key is not None else ()
    method = "POST" if path.endswith("classify") else "GET"
    reply = send(keyed, method, path, GOOD_IMAGES, headers)
    expected = 200 if key is not None and key.strip() == FUNCTION_KEY else 401
    assert (reply.status, reply.body == b"") == (expected, expected == 401)
    assert keyed.log.read_text().count('"event": "request"') == entered + (expected == 200)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    package = build_package(tmp_path_factory.mktemp("package"))
    serving_models.write_model(package / "release")
    with functions_host(package, FERRY_FUNCTION_KEY=FUNCTION_KEY) as host:
        yield host


# What fails on our side

# What the first value of a batch makes the model raise, from this number on.
BREAKING = 1000
BROKEN = f"""
from model_code.inference.predictor import Predictor
ERRORS = (SystemExit, RecursionError, MemoryError, ZeroDivisionError, UnicodeError, OSError, StopIteration, AssertionError)
good = Predictor.run
def run(self, inputs, **options):
    number = int(inputs.flat[0]) - {BREAKING}
    if 0 <= number < len(ERRORS):
        raise ERRORS[number]("secret /opt/ml/model")
    return good(self, inputs, **options)
Predictor.run = run
"""
ERRORS = 8


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    base = tmp_path_factory.mktemp("ml")
    script = base / "serve.py"
    script.write_text(f"import sys\n{BROKEN}\nfrom model_code.container import launch\nsys.exit(launch.main())\n")
    source = (ROOT / "function_app" / "function_app.py").read_text()
    package = build_package(tmp_path_factory.mktemp("package"), f"{BROKEN}\n{source}")
    serving_models.write_model(base / "model")
    serving_models.write_model(package / "release")
    patch = pytest.MonkeyPatch()
    patch.setattr(Predictor, "run", Predictor.run)  # what the next line replaces is put back
    exec(BROKEN, {})
    with container(base, command=(sys.executable, str(script))) as serve, functions_host(package) as host:
        by_name = {
            "core": _core(base / "model"),
            "serve": _process(serve, "/invocations", "/ping"),
            "function": _function(base / "model"),
            "host": _process(host, "/api/classify", "/api/health"),
        }
        yield Doors(by_name, serve, host)
    patch.undo()


@every_door
@pytest.mark.parametrize("number", range(ERRORS))
def test_h46_whatever_a_model_raises_is_a_500_in_the_envelope_and_the_next_request_is_answered(
    broken: Doors, door: str, number: int
) -> None:
    body = as_npy(np.full((1, 1, 28, 28), BREAKING + number, np.float32))
    reply = broken.by_name[door].ask(body, (("Content-Type", NPY),))
    assert refusal(reply) == (500, "INTERNAL")
    assert b"secret" not in reply.body
    assert broken.by_name[door].ask(GOOD_IMAGES, (("Content-Type", JSON),)).status == 200
    assert broken.by_name[door].is_healthy()
