"""The OpenAPI document of each door: that it is one, that it is true of what the door answers, and what it does not foresee.

Schemathesis makes requests from the document, hypothesis such that no document describes. Both are sent to the real `serve` and
to the development host of the Function; row H47 of the list of faults.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from model_code.container.server import Application
from model_code.inference import errors, openapi
from model_code.inference.codecs import DECODERS, ENCODERS
from model_code.inference.contract import Limits, ModelDescription, Request, Response
from model_code.inference.openapi import CONTAINER, FUNCTION, openapi_document
from model_code.inference.predictor import Predictor
from model_code.inference.respond import STATUS, preprocess, respond
from tests import http_faults, serving_models
from tests.exchanges import call
from tests.http_faults import CSV, GREY, JPEG, JSON, LINES, NPY, PNG, as_image, as_json, as_npy
from tests.serving_processes import LOOPBACK, START_SECONDS, Server, build_package, container, functions_host

MODELS: dict[str, Callable[[Path], ModelDescription]] = {
    "images": serving_models.write_model,
    "tables": serving_models.write_table_model,
    "colours": serving_models.write_colour_model,
}
every_model = pytest.mark.parametrize("model", MODELS)
FUNCTION_KEY = "function-key-of-this-test"
KEY = {"key": {"type": "apiKey", "in": "header", "name": "x-functions-key"}}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    folders = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    for name, folder in folders.items():
        MODELS[name](folder)
    return {name: Predictor.load(folder) for name, folder in folders.items()}


def document_of(predictor: Predictor, **options: Any) -> dict[str, Any]:
    return openapi_document(predictor.description, CONTAINER, **options)


def classify(document: dict[str, Any], door: openapi.Door = CONTAINER) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"][door.classify]["post"]
    return operation


def ask(predictor: Predictor, body: bytes, content_type: str, accept: str | None = None) -> Response:
    return respond(predictor, Request(body, content_type, accept, "request-1"))


# What the document is


@every_model
@pytest.mark.parametrize("preprocessing", [False, True])
@pytest.mark.parametrize("door", [CONTAINER, FUNCTION], ids=["container", "function"])
def test_the_document_is_openapi_3_1_and_its_schemas_are_schemas(
    predictors: dict[str, Predictor], model: str, door: openapi.Door, preprocessing: bool
) -> None:
    description = predictors[model].description
    document = openapi_document(description, door, preprocessing=preprocessing, security=KEY)
    assert document["openapi"].startswith("3.1.")
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    assert sum(1 for _ in schema.get_all_operations()) == len(document["paths"])
    found = list(schemas_in(document))
    assert len(found) > 10
    for each in found:
        jsonschema.Draft202012Validator.check_schema(each)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def schemas_in(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from [node["schema"]] if "schema" in node else []
        for value in node.values():
            yield from schemas_in(value)


@every_model
def test_both_doors_say_the_same_but_for_their_paths_and_how_a_body_arrives(
    predictors: dict[str, Predictor], model: str
) -> None:
    description = predictors[model].description
    container_, function = (openapi_document(description, door) for door in (CONTAINER, FUNCTION))
    assert {key: value for key, value in container_.items() if key != "paths"} == {
        key: value for key, value in function.items() if key != "paths"
    }
    ours, theirs = classify(container_), classify(function, FUNCTION)
    assert ours["requestBody"] == theirs["requestBody"]
    assert ours["responses"]["200"] == theirs["responses"]["200"]
    said = {status: codes(answer) for status, answer in ours["responses"].items() if status != "200"}
    of_function = {status: codes(answer) for status, answer in theirs["responses"].items() if status != "200"}
    for kind in CONTAINER.reads:
        said[str(status_of(kind))].remove(kind.code)
    assert {status: found for status, found in said.items() if found} == of_function
    assert container_["paths"][CONTAINER.document] == function["paths"][FUNCTION.document]


def codes(answer: dict[str, Any]) -> list[str]:
    found: list[str] = answer["content"][JSON]["schema"]["properties"]["error"]["properties"]["code"]["enum"]
    return [*found]


def status_of(kind: type[errors.InferenceError]) -> int:
    return next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)


def test_the_limits_of_a_batch_transform_are_those_that_its_document_tells(predictors: dict[str, Predictor]) -> None:
    document = document_of(predictors["tables"], limits=Limits(100 * 2**20, 100 * 2**20, 3600))
    data = classify(document)["requestBody"]["content"][JSON]["schema"]["oneOf"][0]["properties"]["data"]
    assert data["maxItems"] == 100 * 2**20
    assert "104857600 bytes" in document["info"]["description"]


def test_an_input_of_many_numbers_has_no_example_and_a_small_document(
    predictors: dict[str, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openapi, "MAX_EXAMPLE_VALUES", 783)
    assert len(json.dumps(document_of(predictors["images"]))) < 20_000


# What goes in


@every_model
def test_the_types_of_a_body_in_the_document_are_those_that_the_model_takes(
    predictors: dict[str, Predictor], model: str
) -> None:
    content = classify(document_of(predictors[model]))["requestBody"]["content"]
    taken = {media_type for media_type in DECODERS if ask(predictors[model], b"x", media_type).status != 415}
    assert set(content) == taken


@every_model
def test_every_example_is_answered_with_what_the_document_promises(
    predictors: dict[str, Predictor], model: str
) -> None:
    operation = classify(document_of(predictors[model]))
    promised = jsonschema.Draft202012Validator(operation["responses"]["200"]["content"][JSON]["schema"])
    golden = predictors[model].description.signature.golden
    examples = {
        media_type: media["examples"]["golden"]["value"]
        for media_type, media in operation["requestBody"]["content"].items()
        if "examples" in media
    }
    assert {JSON, LINES} <= set(examples)
    assert (CSV in examples) == (model == "tables")
    for media_type, example in examples.items():
        schema = operation["requestBody"]["content"][media_type]["schema"]
        jsonschema.validate(example, schema, jsonschema.Draft202012Validator)
        body = example.encode() if isinstance(example, str) else as_json(example)
        response = ask(predictors[model], body, media_type)
        assert response.status == 200
        document = json.loads(response.body)
        promised.validate(document)
        (label,) = document[predictors[model].description.signature.response_key]
        assert label == predictors[model].description.signature.labels[golden.outputs[0].argmax()]


def test_the_schema_of_a_line_is_true_of_lines(predictors: dict[str, Predictor]) -> None:
    document = document_of(predictors["images"])
    line = jsonschema.Draft202012Validator(document["components"]["schemas"]["Line"])
    example = classify(document)["requestBody"]["content"][LINES]["examples"]["golden"]["value"]
    line.validate(json.loads(example))
    for value in ([[[0.5] * 28] * 28], [[0.5] * 28] * 28):
        body = as_json({"images": value})
        assert (line.is_valid(json.loads(body)), ask(predictors["images"], body, LINES).status) == (True, 200)
    assert not line.is_valid({"data": [[[[0.5] * 28] * 28]]})


@pytest.mark.parametrize(
    ("model", "rows"), [("images", http_faults.IMAGES), ("tables", http_faults.TABLES)], ids=["images", "tables"]
)
def test_the_schema_refuses_what_the_core_refuses_and_foresees_its_status_and_code(
    predictors: dict[str, Predictor], model: str, rows: dict[str, http_faults.Faults]
) -> None:
    operation = classify(document_of(predictors[model]))
    schema = jsonschema.Draft202012Validator(operation["requestBody"]["content"][JSON]["schema"])
    judged = 0
    for name, fault in itertools.chain(*(faults.items() for faults in rows.values())):
        assert fault.code in codes(operation["responses"][str(fault.status)]), name
        # A document knows neither that a key came twice nor how a number was written, nor what the model makes of it.
        if fault.headers == (("Content-Type", JSON),) and fault.code in (
            "BAD_FIELD",
            "BAD_SHAPE",
            "BAD_DTYPE",
            "EMPTY_BATCH",
        ):
            assert not schema.is_valid(json.loads(fault.body)), name
            judged += 1
    assert judged > (50 if model == "images" else 0)


def test_every_code_of_the_document_is_one_that_a_request_can_get(predictors: dict[str, Predictor]) -> None:
    said = {
        code
        for status, answer in classify(document_of(predictors["images"]))["responses"].items()
        if status in ("400", "406", "413", "415")
        for code in codes(answer)
    }
    faults = [
        fault for rows in (http_faults.IMAGES, http_faults.TABLES) for row in rows.values() for fault in row.values()
    ]
    # That one is a connection that ends early, and not a request.
    assert said - {errors.BadLength.code} == {fault.code for fault in faults}


@pytest.mark.parametrize(
    "row", ["1,2,3,4", "+1.5e-3,.5,5.,-0\r\n0,0,0,0\n", "1,2,3", "1,2,3,4,", "1, 2,3,4", "a,b,c,d"]
)
def test_the_pattern_of_csv_takes_what_the_core_takes(predictors: dict[str, Predictor], row: str) -> None:
    schema = classify(document_of(predictors["tables"]))["requestBody"]["content"][CSV]["schema"]
    valid = jsonschema.Draft202012Validator(schema).is_valid(row)
    assert valid == (ask(predictors["tables"], row.encode(), CSV).status == 200)


# What comes out


@every_model
def test_the_answer_has_the_types_of_the_document_and_the_schema_of_json(
    predictors: dict[str, Predictor], model: str
) -> None:
    predictor = predictors[model]
    answer = classify(document_of(predictor))["responses"]["200"]
    assert set(answer["content"]) == set(ENCODERS)
    schema = jsonschema.Draft202012Validator(answer["content"][JSON]["schema"])
    inputs = predictor.description.signature.golden.inputs
    for probabilities in (True, False):
        response = ask(predictor, as_json({"data": inputs.tolist(), "probabilities": probabilities}), JSON)
        schema.validate(json.loads(response.body))
        for name, promised in answer["headers"].items():
            jsonschema.validate(response.headers[name], promised["schema"])
    assert not schema.is_valid({predictor.description.signature.response_key: ["no label"]})


@every_model
def test_preprocessing_answers_with_the_batch_that_its_document_describes(
    predictors: dict[str, Predictor], model: str
) -> None:
    description = predictors[model].description
    operation = classify(document_of(predictors[model], preprocessing=True))
    schema = jsonschema.Draft202012Validator(operation["responses"]["200"]["content"][JSON]["schema"])
    body = as_json({"data": description.signature.golden.inputs.tolist(), "probabilities": True})
    response = preprocess(description, Request(body, JSON, "text/xml", "request-1"))
    schema.validate(json.loads(response.body))
    assert "406" not in operation["responses"]
    assert "OUTPUT_NOT_FINITE" not in codes(operation["responses"]["400"])


# What the doors serve


@pytest.mark.parametrize("preprocessing", [False, True])
def test_the_container_serves_its_document_once_the_model_is_loaded(
    predictors: dict[str, Predictor], preprocessing: bool
) -> None:
    predictor = predictors["tables"]
    app = Application(lambda: predictor.description if preprocessing else predictor)

    async def before_and_after() -> list[tuple[int, dict[str, str], bytes]]:
        early = await call(app, "GET", "/openapi.json")
        await app.open()
        return [early, await call(app, "GET", "/openapi.json")]

    early, served = asyncio.run(before_and_after())
    assert (early[0], json.loads(early[2])["error"]["code"]) == (503, "NOT_READY")
    assert json.loads(served[2]) == document_of(predictor, preprocessing=preprocessing)


@dataclass(frozen=True)
class Served:
    """A running door in front of one model, and a request to it whose answer is known to be good."""

    server: Server
    door: openapi.Door
    health: str
    golden: bytes
    keys: Mapping[str, str]

    @property
    def document(self) -> dict[str, Any]:
        reply = self.server.ask("GET", self.door.document, headers=self.keys)
        assert (reply.status, reply.headers["content-type"]) == (200, JSON)
        document: dict[str, Any] = json.loads(reply.body)
        return document

    def answer(self) -> bytes:
        assert self.server.ask("GET", self.health).status == 200
        reply = self.server.ask("POST", self.door.classify, self.golden, {"Content-Type": JSON, **self.keys})
        assert reply.status == 200
        return reply.body


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    door, model = request.param
    with ExitStack() as stack:
        if door == "serve":
            base = tmp_path_factory.mktemp("ml")
            description = MODELS[model](base / "model")
            server, kind, health = stack.enter_context(container(base)), CONTAINER, "/ping"
            keys = {}
        else:
            package = build_package(tmp_path_factory.mktemp("package"))
            description = MODELS[model](package / "release")
            host = functions_host(package, FERRY_FUNCTION_KEY=FUNCTION_KEY)
            server, kind, health = stack.enter_context(host), FUNCTION, "/api/health"
            keys = {"x-functions-key": FUNCTION_KEY}
        inputs = description.signature.golden.inputs
        yield Served(server, kind, health, as_json({"data": inputs.tolist(), "probabilities": True}), keys)


every_door = pytest.mark.parametrize(
    "served",
    [
        ("serve", "tables"),
        ("host", "tables"),
        pytest.param(("serve", "colours"), marks=pytest.mark.slow),
        pytest.param(("host", "colours"), marks=pytest.mark.slow),
    ],
    ids="-".join,
    indirect=True,
)


@every_door
def test_a_door_serves_the_document_of_its_model(served: Served, predictors: dict[str, Predictor]) -> None:
    security: dict[str, Any] = served.document["components"]["securitySchemes"]
    documents = [
        openapi_document(predictor.description, served.door, security=security) for predictor in predictors.values()
    ]
    assert served.document in documents
    assert bool(security) == (served.door is FUNCTION)


# What a request that breaks the document's rules may get: schemathesis does not count a 413 among them by itself.
REFUSALS = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 406, 413, 415]}}}


# Requests that the document describes, and such that break its rules in one place


def _damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """The file itself, cut off, or with other bytes in some places."""

    def damage(changes: list[tuple[int, int]], length: int) -> bytes:
        body = bytearray(good)
        for place, value in changes:
            body[place] = value
        return bytes(body[:length])

    places = st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255))
    lengths = st.one_of(st.just(len(good)), st.integers(0, len(good)))
    return st.builds(damage, st.lists(places, max_size=4), lengths)


_COLOUR = np.random.default_rng(3).integers(0, 256, size=(4, 6, 3)).astype(np.uint8)
for _media_type, _files in {
    NPY: [as_npy(_COLOUR.transpose(2, 0, 1)[None]), as_npy(np.ones((2, 4), np.float32))],
    PNG: [as_image(_COLOUR)],
    JPEG: [as_image(_COLOUR, "JPEG")],
}.items():
    schemathesis.openapi.media_type(_media_type, st.one_of(*map(_damaged, _files), st.binary(max_size=64)))

_modes = pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
_examples = pytest.mark.parametrize("examples", [25, pytest.param(300, marks=pytest.mark.slow)])


def fuzzing(examples: int) -> settings:
    """The same examples in every run: what is found once is found again."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )


@every_door
@_modes
@_examples
def test_h47_whatever_is_made_from_the_document_is_answered_as_the_document_says(
    served: Served, mode: schemathesis.GenerationMode, examples: int
) -> None:
    before = served.answer()
    schema = schemathesis.openapi.from_dict(served.document, config=schemathesis.Config.from_dict(REFUSALS))
    strategy = schema[served.door.classify]["POST"].as_strategy(generation_mode=mode)
    seen = set()
    with requests.Session() as session:

        @fuzzing(examples)
        @given(case=strategy)
        def run(case: schemathesis.Case[Any]) -> None:
            base = f"http://{LOOPBACK}:{served.server.port}"
            response = case.call(base_url=base, session=session, headers=dict(served.keys))
            assert response.status_code < 500 or response.status_code == 503
            # A schema cannot say what a file holds, nor which numbers are past the model's arithmetic.
            case.validate_response(response, excluded_checks=[positive_data_acceptance], headers=dict(served.keys))
            seen.add(response.status_code)

        run()
    assert (200 if mode is schemathesis.GenerationMode.POSITIVE else 400) in seen
    assert served.answer() == before


# Requests that no document describes

_names = st.sampled_from(["Content-Type", "Accept", "X-Amzn-SageMaker-Inference-Id", "Expect", "Host", "Range"])
_types = st.sampled_from([JSON, NPY, CSV, LINES, PNG, JPEG, "*/*", "application/json; charset=utf-8"])
_values = st.one_of(_types, st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40))
_paths = st.one_of(
    st.sampled_from(["/ping", "/invocations", "/openapi.json", "/api/classify", "/api/health", "/models/x/invoke"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map("/{}".format),
)
_methods = st.one_of(
    st.sampled_from(["POST", "POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"]),
    st.text(st.characters(min_codepoint=65, max_codepoint=90), min_size=1, max_size=12),
)
_bodies = st.one_of(
    _damaged(as_json({"data": [[1.5, -2, 3e-4, 0]], "probabilities": True})),
    _damaged(as_npy(np.ones((2, 4), np.float32))),
    _damaged(as_image(GREY[:4, :6])),
    _damaged(b"1,2,3,4\n5,6,7,8\n"),
    st.binary(max_size=200),
)


@every_door
@pytest.mark.parametrize("examples", [100, pytest.param(5_000, marks=pytest.mark.slow)])
def test_h47_whatever_comes_over_http_gets_an_answer_and_the_door_stays_well(served: Served, examples: int) -> None:
    before = served.answer()

    @fuzzing(examples)
    @given(method=_methods, path=_paths, headers=st.lists(st.tuples(_names, _values), max_size=4), body=_bodies)
    def run(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
        with closing(HTTPConnection(LOOPBACK, served.server.port, timeout=START_SECONDS)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in (*served.keys.items(), *headers, ("Content-Length", str(len(body)))):
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(body)
            response = connection.getresponse()
            said = response.read()
        assert response.status < 500 or response.status == 503
        if response.getheader("content-type") == JSON and response.status >= 400 and method != "HEAD":
            assert list(json.loads(said)) == ["error"]

    run()
    assert served.answer() == before
