"""The two doors of a released model, SageMaker and Azure, as one kind of object that answers the same request."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from numpy.typing import NDArray

from ferry import aws, azure
from ferry.errors import FerryError, Refused
from infra.settings import Settings
from model_code.inference.contract import RELEASE_ID_HEADER

FUNCTION_KEY = "FERRY_FUNCTION_KEY"
DOORS = ("sagemaker", "azure")
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


class NotServing(FerryError):
    """No release answers at a door, for a reason that may pass: it starts, it restarts, it is not reached."""


class HttpDoor:
    """A door with a URL of its own: both local ones, and the deployed app on Azure.

    `health` is the URL that says which release answers; `denied` says what to do about a 401 or 403.
    """

    def __init__(
        self, name: str, url: str, headers: Mapping[str, str] | None = None, *, health: str, denied: str = ""
    ) -> None:
        self.name = name
        self.url = url
        self.health = health
        self._headers = {"Content-Type": _JSON, **(headers or {})}
        self._denied = denied
        # Never a redirect: the headers may carry a key or a token.
        self._pool = urllib3.PoolManager(timeout=_SECONDS, retries=False)

    def classify(self, body: bytes) -> Answer:
        started = time.perf_counter()
        answer = self._ask("POST", self.url, body)
        seconds = time.perf_counter() - started
        if answer.status != 200:
            raise FerryError(f"{self.name} at {self.url}: {_said(answer)}")
        return _answer(self.name, answer.data, answer.headers.get(RELEASE_ID_HEADER), seconds)

    def release(self) -> str:
        """The id of the release that answers here. Raises NotServing, and FerryError where the door is closed to us."""
        answer = self._ask("GET", self.health)
        identifier = answer.headers.get(RELEASE_ID_HEADER)
        if answer.status != 200 or identifier is None:
            raise NotServing(f"{self.name} at {self.health}: {_said(answer)}")
        return identifier

    def _ask(self, method: str, url: str, body: bytes | None = None) -> urllib3.BaseHTTPResponse:
        try:
            answer = self._pool.request(method, url, body=body, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise NotServing(f"{self.name} at {url}: {error}") from error
        if answer.status in (401, 403):
            raise FerryError(f"{self.name} at {url}: {_said(answer)}{f'; {self._denied}' if self._denied else ''}")
        return answer


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


def doors(
    settings: Settings, names: Sequence[str] = DOORS, credential: azure.Credential | None = None
) -> tuple[Door, ...]:
    """The named doors of one environment, in that order.

    `credential` is asked for a token where Entra guards the door on Azure; None is whoever this machine is signed in as.
    Raises Refused where a key or an address is needed and not given.
    """
    return tuple(azure_door(settings, credential) if name == "azure" else _sagemaker_door(settings) for name in names)


def azure_door(settings: Settings, credential: azure.Credential | None = None) -> HttpDoor:
    """The door on Azure, with what `settings.azure.door` asks for in its headers. Raises Refused and FerryError."""
    base = azure.app_url(settings)
    headers, denied = _permission(settings, credential)
    if settings.local is None and settings.azure.hosting == "container":
        return HttpDoor("azure", f"{base}/invocations", headers, health=f"{base}/ping", denied=denied)
    return HttpDoor("azure", f"{base}/api/classify", headers, health=f"{base}/api/health", denied=denied)


def _sagemaker_door(settings: Settings) -> Door:
    if settings.local is None:
        return EndpointDoor(settings)
    base = f"http://127.0.0.1:{settings.local.sagemaker_port}"
    return HttpDoor("sagemaker", f"{base}/invocations", health=f"{base}/ping")


def _permission(settings: Settings, credential: azure.Credential | None) -> tuple[dict[str, str], str]:
    """The headers that open the door on Azure, and what to do when they do not."""
    if settings.local is not None:
        key = settings.local.function_key
        return ({"x-functions-key": key} if key else {}), "local.function_key says which key opens it"
    network = (
        "azure.network says from where the app may be called"
        if settings.azure.network.allowed_cidrs or settings.azure.network.private_endpoints
        else "a stopped app answers 403, too"
    )
    if settings.azure.entra is not None:
        audience = settings.azure.entra.audiences[0]
        return (
            azure.bearer(credential or azure.signed_in(), audience),
            f"the token is for {audience}, azure.entra says what is taken; whoever is signed in has to be in tenant "
            f"{settings.azure.entra.tenant_id} and allowed to use the app registration; {network}",
        )
    if settings.azure.door != "function-key":
        return {}, network
    show = (
        f"az functionapp keys list --name {settings.function_app} --resource-group {settings.resource_group} "
        "shows the key"
    )
    key = os.environ.get(FUNCTION_KEY)
    if not key:
        raise Refused(f"{FUNCTION_KEY} is not set: {show}")
    return {"x-functions-key": key}, f"{FUNCTION_KEY} is none of the app's keys: {show}; {network}"


def request_body(values: NDArray[Any], key: str = "data") -> bytes:
    """A JSON request for probabilities of `values` (n, ...): `data` is what the model takes, `images` are raw pixels."""
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


def _said(answer: urllib3.BaseHTTPResponse) -> str:
    return f"HTTP {answer.status}: {answer.data[:500].decode(errors='replace')}"
