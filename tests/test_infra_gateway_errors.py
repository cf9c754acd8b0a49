"""What every answer of SageMaker becomes at the gateway: the templates themselves, interpreted, and the tables that tell of it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from infra.aws import gateway_errors
from infra.aws.gateway_health import DECLARED_STATUSES, MIXED_STATUSES, health_template
from infra.settings import ROOT
from model_code.inference import contract, errors
from model_code.inference.contract import Request
from model_code.inference.predictor import Predictor
from model_code.inference.respond import error_response, respond
from tests import http_faults, serving_models
from tests.gateway_stacks import VARIANTS, gateway_settings
from tests.velocity import REQUEST_ID, Mapped, run

ACCOUNT = "111122223333"
LOG = f"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/modelferry-dev-mnist"


def model_error(status: int | None, message: str | None) -> str:
    """As SageMaker writes it (aws/sagemaker-tensorflow-serving-container, issue 109)."""
    said = f'Received client error ({status}) from primary with message "{message}". See {LOG} in account {ACCOUNT}.'
    document = {"ErrorCode": "CLIENT_ERROR_FROM_MODEL", "LogStreamArn": LOG, "Message": said}
    return json.dumps(document | {"OriginalMessage": message, "OriginalStatusCode": status})


def validation_error(message: str) -> str:
    return json.dumps({"ErrorCode": "VALIDATION_ERROR", "Message": message})


def core_error(error: errors.InferenceError) -> str:
    return error_response(error, "11-22").body.decode()


@dataclass(frozen=True)
class Case:
    """What SageMaker answers with which status, in words of docs/gateway.md."""

    what: str
    status: int
    body: str
    variant: str = "default"
    content_length: int = 100


TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for each "
    "container in Amazon CloudWatch, resolve the issue, and try again."
)
NO_ENDPOINT = f"Endpoint modelferry-dev-mnist of account {ACCOUNT} not found."
NO_MODEL = (
    "Failed to download model data (bucket: modelferry-dev-artifacts, key: releases/x/model.tar.gz). Please ensure that there "
    "is an object located at the URL and that the role passed to CreateModel has permissions to download the model."
)
CASES = (
    Case(
        "`ModelError` around an error of the core, for example its 415",
        424,
        model_error(415, core_error(errors.UnsupportedMediaType("'text/html' is no type of a request"))),
    ),
    Case(
        "`ModelError` around a 4xx that is no envelope of ours, for example 422",
        424,
        model_error(422, '{"detail": "no such column"}'),
    ),
    Case(
        "`ModelError` around a 5xx that is no envelope of ours", 424, model_error(502, "<h1>502 Bad Gateway</h1>\r\n")
    ),
    Case("`ModelError`: the invocation timed out", 424, model_error(0, TIMED_OUT)),
    Case("`ModelNotReadyException`", 429, json.dumps({"Message": "Model is not ready for inference."})),
    Case("`ThrottlingException`, as 400", 400, json.dumps({"message": "Rate exceeded"})),
    Case("`ThrottlingException`, as 429", 429, json.dumps({"message": "Rate exceeded"})),
    Case(
        "`ValidationError`: the body is too large",
        400,
        validation_error("1 validation error detected"),
        content_length=6291457,
    ),
    Case("`ValidationError`: nothing under the target model", 400, validation_error(NO_MODEL), "multi-model"),
    Case(
        "`ValidationError`: no container of that hostname",
        400,
        validation_error("Target container hostname third does not exist."),
        "multi-container",
    ),
    Case("`ValidationError`: the endpoint is not there", 400, validation_error(NO_ENDPOINT)),
    Case("`ValidationError`, any other", 400, validation_error("Invalid header Accept")),
    Case("`InternalFailure` (500)", 500, json.dumps({"Message": "An internal failure occurred."})),
    Case("`InternalDependencyException` (530)", 530, json.dumps({"Message": "internal dependency"})),
    Case("`ServiceUnavailable` (503)", 503, json.dumps({"Message": "Try your call again."})),
    Case(
        "`AccessDeniedException` (403): the gateway's role",
        403,
        json.dumps({"Message": f"User: arn:aws:sts::{ACCOUNT}:assumed-role/gateway is not authorized"}),
    ),
)


def answer(case: Case) -> tuple[int, Mapped, gateway_errors.IntegrationError]:
    """Status and body as API Gateway picks and maps them: the first pattern that matches the whole status, else the default."""
    errors_ = gateway_errors.invocation_errors(gateway_settings(case.variant))
    matching = [each for each in errors_ if each.pattern and re.fullmatch(each.pattern, str(case.status))]
    (error,) = matching or [each for each in errors_ if each.pattern is None]
    mapped = run(error.template, case.body, {"content-length": str(case.content_length)})
    return mapped.status or int(error.status), mapped, error


def envelope_of(text: str) -> dict[str, Any]:
    document = json.loads(text)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"code", "message", "request_id"}
    table: dict[str, Any] = document["error"]
    return table


def table_of_the_docs(first_column: str) -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs" / "gateway.md").read_text()
    rows = text.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {what: (status, code.strip("`")) for what, status, code in cells}


def test_the_error_table_of_the_docs_is_what_the_templates_answer() -> None:
    said = {}
    for case in CASES:
        status, mapped, _ = answer(case)
        said[case.what] = (str(status), envelope_of(mapped.body)["code"])
    assert table_of_the_docs("what SageMaker says") == said


def test_the_table_of_api_gateways_own_answers_is_what_the_stack_declares() -> None:
    said = {}
    for response in gateway_errors.own_responses(gateway_settings("default")):
        code = envelope_of(response.template.replace("$context.error.messageString", '"Forbidden"'))["code"]
        named = code == "$context.error.responseType"
        said[f"`{response.type}`"] = (response.status or "its own", "the response type" if named else code)
    assert table_of_the_docs("response type") == said


def test_the_limits_of_the_docs_are_those_of_the_code() -> None:
    limits = {f"`{mode}`": str(limit) for mode, limit in gateway_errors.MAX_BODY_BYTES.items()}
    assert {mode: limit for mode, (limit, _) in table_of_the_docs("`hosting.mode`").items()} == limits


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_no_answer_tells_the_account_or_what_sagemaker_said(case: Case) -> None:
    _, mapped, _ = answer(case)
    assert ACCOUNT not in mapped.body
    assert "arn:aws" not in mapped.body
    assert envelope_of(mapped.body)["request_id"] in (REQUEST_ID, "11-22")


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_what_a_retry_can_help_says_when(case: Case) -> None:
    status, mapped, error = answer(case)
    declared = {"Retry-After": "1"} if error.retry else {}
    assert bool(declared | mapped.headers) == (status in (429, 503))


MESSAGES = (
    "plain",
    'it says "no"',
    "it's a 'word'",
    "a \\ and a \\n that is none",
    "line\nfeed, tab\t, bell\x07",
    "é, 数, 😀",
    "$context.requestId #set($x = 1) #end",
    '"}}{"error":{"code":"X"',
    "100 % of %22 and + signs",
)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("escaped", [0, 1, 2], ids=["once", "escaped again", "a text of JSON"])
def test_an_error_of_the_core_arrives_as_it_was_whatever_its_message_holds(message: str, escaped: int) -> None:
    said = core_error(errors.BadField(message))
    wrapped = {0: said, 1: json.dumps(said)[1:-1], 2: json.dumps(said)}[escaped]
    status, mapped, _ = answer(Case("", 424, model_error(400, wrapped)))
    assert status == 400
    assert json.loads(mapped.body) == json.loads(said)


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize(
    "pattern",
    [
        "{}",
        '{{"error": "{}"}}',
        '{{"error": {{"code": "X", "message": "{}", "request_id": "r"}}}}',
        '{{"error": {{"code": "X", "message": "a"b", "request_id": "{}"}}}}',
        '{{"error": {{"code": "X", "message": "{}", "request_id": "r"}}, "trace": []}}',
    ],
)
def test_what_another_image_says_never_breaks_the_envelope(message: str, pattern: str) -> None:
    """Only what is an envelope, character by character, goes on; the body is valid JSON in every case."""
    status, mapped, _ = answer(Case("", 424, model_error(400, pattern.format(message))))
    assert status == 400
    assert envelope_of(mapped.body)["code"] in ("X", "BAD_REQUEST")


def test_an_error_of_another_image_that_is_too_long_to_look_at_is_replaced() -> None:
    said = core_error(errors.BadField("x" * gateway_errors.MAX_ERROR_CHARACTERS))
    _, mapped, _ = answer(Case("", 424, model_error(400, said)))
    assert envelope_of(mapped.body)["code"] == "BAD_REQUEST"


@pytest.mark.parametrize(
    ("status", "message"), [(None, None), (500, None), (None, ""), (0, ""), (200, "{}"), (600, "x")]
)
def test_a_model_error_without_what_it_should_hold_is_a_503(status: int | None, message: str | None) -> None:
    assert answer(Case("", 424, model_error(status, message)))[0] == 503


def container_refusals(folder: Path) -> Iterator[tuple[str, int, str]]:
    """What the container's core says to every wrong request of the list of faults: its name, the status and the body."""
    for write, rows in (
        (serving_models.write_model, http_faults.IMAGES),
        (serving_models.write_table_model, http_faults.TABLES),
    ):
        write(folder)
        predictor = Predictor.load(folder)
        for row, faults in rows.items():
            for name, fault in faults.items():
                content_type, accept = (dict(fault.headers).get(header) for header in ("Content-Type", "Accept"))
                response = respond(predictor, Request(fault.body, content_type, accept, "11-22"))
                yield f"{row} {name}", response.status, response.body.decode()


def test_h45_every_refusal_of_the_container_leaves_the_gateway_with_its_status_and_its_envelope(tmp_path: Path) -> None:
    seen = set()
    for name, status, said in container_refusals(tmp_path):
        if (status, said) not in seen:
            mapped_status, mapped, _ = answer(Case(name, 424, model_error(status, said)))
            assert (mapped_status, json.loads(mapped.body)) == (status, json.loads(said)), name
        seen.add((status, said))
    assert {status for status, _ in seen} == {400, 406, 413, 415}
    assert len({json.loads(said)["error"]["code"] for _, said in seen}) > 15


def test_an_overloaded_container_tells_when_to_try_again() -> None:
    said = core_error(errors.Overloaded("32 requests wait"))
    status, mapped, _ = answer(Case("", 424, model_error(503, said)))
    assert (status, mapped.headers) == (503, {"Retry-After": "1"})


@pytest.mark.parametrize("variant", ["default", "serverless", "async"])
def test_a_body_is_too_large_by_the_limit_of_its_mode(variant: str) -> None:
    limit = gateway_errors.MAX_BODY_BYTES[gateway_settings(variant).hosting.mode]
    said = validation_error("the value is not valid")
    largest, over, tenfold = (
        answer(Case("", 400, said, variant, content_length)) for content_length in (limit, limit + 1, 10 * limit)
    )
    assert (largest[0], over[0], tenfold[0]) == (400, 413, 413)
    assert f"larger than {limit} bytes" in over[1].body


def test_the_gateway_and_the_core_agree_on_the_largest_body() -> None:
    assert gateway_errors.MAX_BODY_BYTES["realtime"] == contract.MAX_BODY_BYTES


def test_an_async_endpoint_has_no_errors_of_the_model() -> None:
    patterns = [each.pattern for each in gateway_errors.invocation_errors(gateway_settings("async"))]
    assert "424" not in patterns


@pytest.mark.parametrize("variant", VARIANTS)
def test_api_gateway_keeps_one_answer_for_each_status(variant: str) -> None:
    statuses = [each.status for each in gateway_errors.invocation_errors(gateway_settings(variant))]
    assert len(statuses) == len(set(statuses))


# Health


def described(status: str) -> str:
    """What DescribeEndpoint answers, with what must not get out."""
    arn = f"arn:aws:sagemaker:eu-west-1:{ACCOUNT}:endpoint/modelferry-dev-mnist"
    return json.dumps({"EndpointName": "modelferry-dev-mnist", "EndpointArn": arn, "EndpointStatus": status})


@pytest.mark.parametrize("status", DECLARED_STATUSES)
def test_an_endpoint_that_serves_what_was_declared_is_healthy_by_the_releases_name(status: str) -> None:
    mapped = run(health_template("mnist-0f0f0f0f0f0f"), described(status))
    assert mapped.status is None
    assert json.loads(mapped.body) == {"status": status, "release_id": "mnist-0f0f0f0f0f0f"}


@pytest.mark.parametrize("status", MIXED_STATUSES)
def test_an_endpoint_between_two_releases_is_healthy_and_names_none(status: str) -> None:
    mapped = run(health_template("mnist-0f0f0f0f0f0f"), described(status))
    assert mapped.status is None
    assert json.loads(mapped.body) == {"status": status, "release_id": None}


@pytest.mark.parametrize("status", ["Creating", "Deleting", "Failed", "OutOfService", 'In"Service', ""])
def test_any_other_status_is_a_503_in_the_envelope(status: str) -> None:
    mapped = run(health_template("mnist-0f0f0f0f0f0f"), described(status))
    assert (mapped.status, mapped.headers) == (503, {"Retry-After": "1"})
    assert envelope_of(mapped.body)["code"] == "UNAVAILABLE"
    assert ACCOUNT not in mapped.body
    assert status not in ("Creating", "Failed") or f"its status is {status}" in mapped.body


def test_every_status_that_sagemaker_knows_is_judged() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    unhealthy = {"OutOfService", "Creating", "Deleting", "Failed"}
    assert {*DECLARED_STATUSES, *MIXED_STATUSES, *unhealthy} == set(model.shape_for("EndpointStatus").enum)
