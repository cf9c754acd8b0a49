"""The two doors of a released model, SageMaker and Azure, as one kind of object that answers the same request."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from numpy.typing import NDArray

from ferry import aws
from ferry.errors import FerryError, Refused
from infra.settings import Settings
from model_code.inference.contract import RELEASE_ID_HEADER

FUNCTION_KEY = "FERRY_FUNCTION_KEY"
_JSON = "application/json"
_SECONDS = 30


@dataclass(frozen=True)
class Answer:
    """Labels, probabilities float64 (n, classes), the release that answered, and the seconds it took."""

    labels: list[int | str]
    probabilities: NDArray[np.float64]
    release_id: str | None
    seconds: float


class Door(Protocol):
    """One way to reach the released model."""

    name: str
    url: str

    def classify(self, body: bytes) -> Answer:
        """Send one JSON request that asks for probabilities. Raises FerryError with the door's own message."""


class HttpDoor:
    """A door with a URL of its own: both local ones, and the deployed Function."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.url = url
        self._headers = {"Content-Type": _JSON, **(headers or {})}
        self._pool = urllib3.PoolManager(timeout=_SECONDS, retries=False)

    def classify(self, body: bytes) -> Answer:
        started = time.perf_counter()
        try:
            answer = self._pool.request("POST", self.url, body=body, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise FerryError(f"{self.name} at {self.url}: {error}") from error
        seconds = time.perf_counter() - started
        if answer.status != 200:
            raise FerryError(
                f"{self.name} at {self.url}: HTTP {answer.status}: {answer.data[:500].decode(errors='replace')}"
            )
        return _answer(self.name, answer.data, answer.headers.get(RELEASE_ID_HEADER), seconds)


class EndpointDoor:
    """A deployed SageMaker endpoint, through the runtime API with the caller's own credentials."""

    def __init__(self, settings: Settings) -> None:
        self.name = "sagemaker"
        self.url = f"sagemaker://{settings.aws.region}/{settings.endpoint}"
        self._endpoint = settings.endpoint
        self._runtime = aws.client(settings, "sagemaker-runtime")

    def classify(self, body: bytes) -> Answer:
        started = time.perf_counter()
        try:
            answer = self._runtime.invoke_endpoint(
                EndpointName=self._endpoint, Body=body, ContentType=_JSON, Accept=_JSON
            )
            content = answer["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise FerryError(f"{self.name}: endpoint {self._endpoint}: {error}") from error
        seconds = time.perf_counter() - started
        # SageMaker hands on this one response header of a container; ours puts the release id there.
        return _answer(self.name, content, answer.get("CustomAttributes"), seconds)


def doors(settings: Settings) -> tuple[Door, Door]:
    """SageMaker's door and Azure's door of one environment. Raises Refused where the Function's key is not given."""
    if settings.local is not None:
        return (
            HttpDoor("sagemaker", f"http://127.0.0.1:{settings.local.sagemaker_port}/invocations"),
            HttpDoor("azure", f"http://127.0.0.1:{settings.local.azure_port}/api/classify"),
        )
    key = os.environ.get(FUNCTION_KEY)
    if not key:
        raise Refused(
            f"{FUNCTION_KEY} is not set: az functionapp keys list --name {settings.function_app} "
            f"--resource-group {settings.resource_group} shows the key"
        )
    url = f"https://{settings.function_app}.azurewebsites.net/api/classify"
    return EndpointDoor(settings), HttpDoor("azure", url, {"x-functions-key": key})


def request_body(values: NDArray[Any], key: str = "data") -> bytes:
    """A JSON request for probabilities; `data` holds normalised floats, `images` raw pixels, both (n, 1, rows, columns)."""
    return json.dumps({key: values.tolist(), "probabilities": True}, separators=(",", ":")).encode()


def _answer(door: str, content: bytes, release_id: str | None, seconds: float) -> Answer:
    try:
        document = json.loads(content)
        probabilities = np.asarray(document.pop("probabilities"), np.float64)
        ((_, labels),) = document.items()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        shown = content[:200].decode(errors="replace")
        raise FerryError(f"{door}: answers something else than labels and probabilities: {shown}") from error
    return Answer(labels, probabilities, release_id, seconds)
