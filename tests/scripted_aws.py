"""AWS services that a scripted server plays, in the shapes of their JSON protocols: botocore signs, parses and pages as ever."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import boto3

from infra.settings import Settings
from tests.scripted_server import Reply, Server

Connect = Callable[[Settings, str], Any]
_TYPE = {"Content-Type": "application/x-amz-json-1.1"}


def connect_to(server: Server | str) -> Connect:
    """Clients of the real kind that reach one server, whatever the service."""
    url = server if isinstance(server, str) else server.url

    def connect(settings: Settings, service: str) -> Any:
        given = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": settings.aws.region}
        return boto3.client(service, endpoint_url=url, **given)

    return connect


def answer(document: Mapping[str, Any]) -> Reply:
    return Reply(200, json.dumps(document).encode(), _TYPE)


def refusal(code: str, message: str) -> Reply:
    return Reply(400, json.dumps({"__type": code, "message": message}).encode(), _TYPE)


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
