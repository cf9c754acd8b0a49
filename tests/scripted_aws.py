"""AWS services that a scripted server plays, in the shapes of their protocols: botocore signs, parses and pages as ever."""

import datetime
import json
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from xml.sax.saxutils import escape

import boto3
import botocore.session
from botocore.config import Config
from botocore.validate import ParamValidator

from infra.settings import Settings
from tests.scripted_server import Reply, Server

Connect = Callable[[Settings, str], Any]
_TYPE = {"Content-Type": "application/x-amz-json-1.1"}
_MAKING = threading.Lock()  # a boto3 session is not safe between threads


def connect_to(server: Server | str, config: Config | None = None) -> Connect:
    """Clients of the real kind that reach one server, whatever the service."""
    url = server if isinstance(server, str) else server.url

    def connect(settings: Settings, service: str) -> Any:
        given = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": settings.aws.region}
        with _MAKING:
            return boto3.client(service, endpoint_url=url, config=config, **given)

    return connect


def answer(document: Mapping[str, Any]) -> Reply:
    return Reply(200, json.dumps(document).encode(), _TYPE)


def refusal(code: str, message: str) -> Reply:
    return Reply(400, json.dumps({"__type": code, "message": message}).encode(), _TYPE)


@cache
def _model(service: str) -> Any:
    return botocore.session.get_session().get_service_model(service)


def says(service: str, operation: str, document: Mapping[str, Any]) -> Reply:
    """What a service of the JSON or the query protocol answers, held against botocore's description of that answer."""
    output = _model(service).operation_model(operation).output_shape
    report = ParamValidator().validate(dict(document), output)
    assert not report.has_errors(), report.generate_report()
    if _model(service).metadata["protocol"] == "json":
        return Reply(200, json.dumps(document, default=_seconds).encode(), _TYPE)
    inside = "".join(_element(name, output.members[name], value) for name, value in document.items())
    wrapper = output.serialization["resultWrapper"]
    body = f"<{operation}Response><{wrapper}>{inside}</{wrapper}></{operation}Response>"
    return Reply(200, body.encode(), {"Content-Type": "text/xml"})


def refuses(
    service: str, code: str, message: str, status: int = 400, headers: Mapping[str, str] | None = None
) -> Reply:
    """An error of a service of either protocol."""
    if _model(service).metadata["protocol"] == "json":
        return Reply(status, json.dumps({"__type": code, "message": message}).encode(), {**_TYPE, **(headers or {})})
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></ErrorResponse>"
    return Reply(status, body.encode(), {"Content-Type": "text/xml", **(headers or {})})


def _seconds(moment: Any) -> float:
    assert isinstance(moment, datetime.datetime)
    return moment.timestamp()


def _element(name: str, shape: Any, value: Any) -> str:
    if shape.type_name == "list":
        value = "".join(_element("member", shape.member, each) for each in value)
    elif shape.type_name == "structure":
        value = "".join(_element(each, shape.members[each], inner) for each, inner in value.items())
    elif isinstance(value, datetime.datetime):
        value = value.isoformat()
    else:
        value = escape(str(value).lower() if isinstance(value, bool) else str(value))
    return f"<{name}>{value}</{name}>"


def sent(server: Server, operation: str) -> list[dict[str, Any]]:
    """The bodies of the requests for one operation."""
    return [
        json.loads(asked.body)
        for asked in server.asked
        if asked.headers.get("X-Amz-Target", "").rpartition(".")[2] == operation
    ]


def make_bucket(s3: Any, name: str) -> None:
    """A bucket that other tests may have made: moto's servers share one account in a process."""
    if name not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
