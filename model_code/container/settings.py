"""What the environment tells the serving process, read once and in full before anything else happens."""

import ipaddress
import os
from dataclasses import dataclass

from model_code import environment
from model_code.container import memory
from model_code.inference.contract import DEADLINE_SECONDS, MAX_BODY_BYTES, MAX_INSTANCES, Limits

ALL_INTERFACES = "0.0.0.0"  # what SageMaker needs inside its container; a local run binds loopback
# InvocationsTimeoutInSeconds of a transform job and InvocationTimeoutSeconds of an asynchronous endpoint, at most.
_MAX_DEADLINE_SECONDS = 3600
# CreateTransformJob, MaxPayloadInMB.
_MAX_PAYLOAD_MB = 100
# What is left to the operating system, to requests and to the first answer of a model.
_MODEL_SHARE = 0.8
_MEGABYTE = 2**20


class SettingError(ValueError):
    """A variable of the environment cannot be used; the message names it, what was found and what is allowed."""


@dataclass(frozen=True)
class ServeSettings:
    """`workers` are processes, or the threads of the one process of a multi-model container.

    `model_bytes` is what that process may take with its models.
    """

    address: str
    port: int
    workers: int
    stage: str
    multi_model: bool
    dynamic_batch: int
    limits: Limits
    model_bytes: int

    @classmethod
    def from_environment(cls) -> "ServeSettings":
        """Raises SettingError."""
        settings = cls(
            address=_address(),
            port=_whole_number(environment.BIND_TO_PORT, environment.DEFAULT_PORT, 1, 65535),
            workers=_whole_number(environment.WORKERS, os.cpu_count() or 1, 1, 256),
            stage=_one_of(environment.STAGE, environment.STAGES),
            multi_model=_flag(environment.MULTI_MODEL),
            dynamic_batch=_whole_number(
                environment.DYNAMIC_BATCH, environment.DEFAULT_DYNAMIC_BATCH, 1, environment.MAX_DYNAMIC_BATCH
            ),
            limits=_limits(),
            model_bytes=_model_bytes(),
        )
        if settings.multi_model:
            _check_multi_model(settings)
        return settings


def _limits() -> Limits:
    """Those of the contract, but for a batch transform: nobody waits for its answers, and it fills a request with as many
    records as its bytes hold. A body of any size, which SageMaker sends in chunks, still ends somewhere."""
    if not _flag(environment.BATCH):
        return Limits(seconds=_whole_number(environment.DEADLINE, int(DEADLINE_SECONDS), 1, _MAX_DEADLINE_SECONDS))
    megabytes = _whole_number(environment.MAX_PAYLOAD, MAX_BODY_BYTES // _MEGABYTE, 0, _MAX_PAYLOAD_MB)
    body_bytes = (megabytes or _MAX_PAYLOAD_MB) * _MEGABYTE
    seconds = _whole_number(environment.DEADLINE, _MAX_DEADLINE_SECONDS, 1, _MAX_DEADLINE_SECONDS)
    return Limits(body_bytes, instances=max(body_bytes, MAX_INSTANCES), seconds=seconds)


def _model_bytes() -> int:
    default = int(memory.container_bytes() * _MODEL_SHARE)
    return _whole_number(environment.MODEL_MEMORY, default // _MEGABYTE, 1, 999_999_999) * _MEGABYTE


def _check_multi_model(settings: ServeSettings) -> None:
    if settings.stage != "predict":
        raise SettingError(
            f"{environment.STAGE}: found {settings.stage!r} and {environment.MULTI_MODEL}=true; the models of a multi-model "
            "container predict. Take one of both away"
        )
    for name in (environment.RELEASE_ID, environment.MODEL_JSON_SHA256):
        if name in os.environ:
            raise SettingError(
                f"{name}: found {os.environ[name]!r} and {environment.MULTI_MODEL}=true; a pin of one model cannot hold for "
                "many. Take it away"
            )


def _address() -> str:
    text = os.environ.get(environment.BIND_ADDRESS, ALL_INTERFACES)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise SettingError(f"{environment.BIND_ADDRESS}: found {text!r}; allowed: an IP address") from error


def _one_of(name: str, allowed: tuple[str, ...]) -> str:
    text = os.environ.get(name, allowed[0])
    if text not in allowed:
        raise SettingError(f"{name}: found {text!r}; allowed: {', '.join(allowed)}")
    return text


def _flag(name: str) -> bool:
    return _one_of(name, ("false", "true")) == "true"


def _whole_number(name: str, default: int, lowest: int, highest: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and lowest <= int(text[:9]) <= highest):
        raise SettingError(f"{name}: found {text!r}; allowed: a whole number from {lowest} to {highest}")
    return int(text)
