"""AWS clients for one environment, and the wall between the emulator and real accounts."""

import functools
import ipaddress
import json
import os
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config

from ferry.aws_errors import Unreadable
from ferry.errors import Refused
from infra.settings import LocalSettings, Settings

# What `client` is: it gives the client of a service for an environment.
Connect = Callable[[Settings, str], Any]
# A throttled or failed call is repeated up to four times, after at most 1, 2, 4 and 8 seconds.
_PATIENT = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=5)
# For questions whose answer is worth a few seconds only: one repetition, and no long silence.
QUICK = Config(retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=2, read_timeout=4)
# boto3's sessions are not safe between threads, the clients that they make are.
_MAKING = threading.Lock()
# The emulator signs nothing; these say what they are wherever they turn up in a log.
_EMULATOR_CREDENTIALS = {"aws_access_key_id": "emulator", "aws_secret_access_key": "emulator"}
# botocore's table of (configuration key, environment variable, default, cast): the caller's profile is not looked at.
_NO_PROFILE = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


def local_settings(settings: Settings) -> LocalSettings:
    """The [local] table. Raises Refused for an environment without one, which stands for real clouds."""
    if settings.local is None:
        raise Refused(
            f"environment {settings.environment!r} has no [local] table, so it stands for real clouds; "
            "this command works on one machine only: use --env local"
        )
    return settings.local


def emulator_url(settings: Settings) -> str:
    """The emulator's endpoint. It must say localhost: the emulator finds CloudFormation template URLs by that name."""
    return f"http://localhost:{local_settings(settings).emulator_port}"


def client(settings: Settings, service: str) -> Any:
    """A boto3 client for the environment's account and region.

    A local environment reaches the emulator with fixed credentials and reads no others. Any other environment refuses
    an endpoint override that points at this machine, so that neither side can be taken for the other. An S3 client says
    whose the environment's buckets have to be. Raises Refused.
    """
    with _MAKING:
        return _client(settings, service, _PATIENT)


def quick_client(settings: Settings, service: str) -> Any:
    """The same with QUICK's patience, for `ferry preflight` and `ferry status`."""
    with _MAKING:
        return _client(settings, service, QUICK)


def shared(connect: Connect) -> Connect:
    """`connect` for several threads: each service's client is made once, one client at a time."""
    made: dict[str, Any] = {}
    making = threading.Lock()

    def shared_client(settings: Settings, service: str) -> Any:
        with making:
            if service not in made:
                made[service] = connect(settings, service)
            return made[service]

    return shared_client


def _client(settings: Settings, service: str, patience: Config) -> Any:
    config = patience.merge(Config(region_name=settings.aws.region))
    if settings.local is not None:
        direct = config.merge(Config(proxies={}))
        made = _emulator_session().client(
            service, endpoint_url=emulator_url(settings), config=direct, **_EMULATOR_CREDENTIALS
        )
        return refuse_unreadable(expect_owner(settings, made))
    real = boto3.client(service, config=config)
    if _this_machine(urlsplit(real.meta.endpoint_url).hostname or ""):
        raise Refused(
            f"AWS_ENDPOINT_URL or endpoint_url of the AWS profile is {real.meta.endpoint_url}, this machine, but "
            f"environment {settings.environment!r} stands for a real account; unset it, or use --env local"
        )
    return refuse_unreadable(expect_owner(settings, real))


@functools.cache
def _emulator_session() -> boto3.Session:
    """One for all clients, as boto3 has for those of real accounts: every session reads the descriptions of services anew."""
    return boto3.Session(botocore_session=botocore.session.Session(session_vars=_NO_PROFILE))


def refuse_unreadable(client: Any) -> Any:
    """Make `client` raise Unreadable for an answer that is not in its service's protocol, or only half of one.

    botocore passes a well-formed page of somebody else's as an answer without members.
    """

    def look(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
        body, shape = response_dict["body"], operation_model.output_shape
        payload = shape.serialization.get("payload") if shape else None
        if not body or (payload and shape.members[payload].type_name != "structure"):
            return
        protocol = operation_model.service_model.resolved_protocol
        if not _readable(protocol, int(response_dict["status_code"]), body):
            beginning = " ".join(body[:80].decode(errors="replace").split())
            raise Unreadable(operation=operation_model.name, endpoint=client.meta.endpoint_url, beginning=beginning)

    client.meta.events.register("before-parse", look, unique_id="refuse-unreadable")
    return client


def _readable(protocol: str, status: int, body: bytes) -> bool:
    """Whether an answer can be one of the service's; botocore itself knows what a failing service may say."""
    try:
        if protocol in ("query", "ec2", "rest-xml") and status < 500:
            root = ElementTree.fromstring(body).tag.rpartition("}")[2]
            return protocol != "query" or root.endswith("Response")
        if protocol in ("json", "rest-json") and status < 300:
            return isinstance(json.loads(body), dict)
    except (ValueError, ElementTree.ParseError):
        return False
    return True


def _this_machine(host: str) -> bool:
    """Whether a host is this one by its name, or by any of its loopback addresses; names are not looked up."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", "localhost.localstack.cloud"))
    return address.is_loopback or address.is_unspecified


def expect_owner(settings: Settings, client: Any) -> Any:
    """Make an S3 `client` name the owner of the environment's buckets in every call; S3 answers 403 where it is another.

    A bucket's name is free again once it was deleted, and whoever takes it would get our data, or give us theirs (S3 User
    Guide, "Verifying bucket ownership with bucket owner condition"). Clients of other services stay as they are.
    """
    if client.meta.service_model.service_name != "s3":
        return client
    own = (settings.data_bucket, settings.artifact_bucket, settings.log_bucket)

    def name_the_owner(params: dict[str, Any], model: Any, **_: Any) -> None:
        if params.get("Bucket") in own and "ExpectedBucketOwner" in model.input_shape.members:
            params.setdefault("ExpectedBucketOwner", settings.aws.account)

    client.meta.events.register("before-parameter-build.s3", name_the_owner)
    return client


def emulator_environment(settings: Settings) -> dict[str, str]:
    """Process environment for tools that deploy into the emulator: nothing of a real account is left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))}
    return kept | {
        "AWS_ENDPOINT_URL": emulator_url(settings),
        "AWS_ACCESS_KEY_ID": _EMULATOR_CREDENTIALS["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": _EMULATOR_CREDENTIALS["aws_secret_access_key"],
        "AWS_REGION": settings.aws.region,
        "AWS_DEFAULT_REGION": settings.aws.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "localhost,127.0.0.1",
        "no_proxy": "localhost,127.0.0.1",
        "CDK_DISABLE_CLI_TELEMETRY": "true",
    }
