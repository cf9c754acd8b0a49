"""AWS clients for one environment, and the wall between the emulator and real accounts."""

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config

from ferry.errors import Refused
from infra.settings import LocalSettings, Settings

# What `client` is: it gives the client of a service for an environment.
Connect = Callable[[Settings, str], Any]
_LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
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
    an endpoint override that points at this machine, so that neither side can be taken for the other. Raises Refused.
    """
    config = Config(region_name=settings.aws.region, retries={"mode": "standard", "max_attempts": 4}, connect_timeout=5)
    if settings.local is not None:
        session = boto3.Session(botocore_session=botocore.session.Session(session_vars=_NO_PROFILE))
        direct = config.merge(Config(proxies={}))
        return session.client(service, endpoint_url=emulator_url(settings), config=direct, **_EMULATOR_CREDENTIALS)
    real = boto3.client(service, config=config)
    if urlsplit(real.meta.endpoint_url).hostname in _LOOPBACK:
        raise Refused(
            f"AWS_ENDPOINT_URL or endpoint_url of the AWS profile is {real.meta.endpoint_url}, this machine, but "
            f"environment {settings.environment!r} stands for a real account; unset it, or use --env local"
        )
    return real


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
