"""The doors of a released model, on SageMaker and on Azure, as one kind of object that answers the same request."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
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
# SageMaker's own headers, by which a caller chooses where an endpoint holds several models or containers.
TARGET_MODEL = "X-Amzn-SageMaker-Target-Model"
TARGET_CONTAINER = "X-Amzn-SageMaker-Target-Container-Hostname"
_INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
_REQUEST_IDS = ("x-amzn-requestid", "x-request-id")


Sign = Callable[[str, str, bytes | None, dict[str, str]], dict[str, str]]


@dataclass(frozen=True)
class Question:
    """One request; the targets are for endpoints with several models, or several containers."""

    body: bytes
    content_type: str = _JSON
    target_model: str | None = None
    container: str | None = None


@dataclass(frozen=True)
class Reply:
    """What a door answered: the body, the release that made it and the request's id where the door tells them, seconds."""

    content: bytes
    release_id: str | None
    request_id: str | None
    seconds: float


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

    def ask(self, question: Question) -> Reply:
        """Send one request, for an answer in JSON. Raises FerryError with the door's own message."""

    def classify(self, body: bytes) -> Answer:
        """Send one JSON request that asks for probabilities. Raises FerryError with the door's own message."""


class NotServing(FerryError):
    """No release answers at a door, for a reason that may pass: it starts, it restarts, it is not reached."""


class HttpDoor:
    """A door with a URL of its own: both local ones, and the deployed app on Azure.

    `health` is the URL that says which release answers; `denied` says what to do about a 401 or 403; `sign` gives the headers
    that a POST of (URL, body, headers) is signed with.
    """

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        health: str,
        denied: str = "",
        sign: Sign | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.health = health
        self._headers = {"Content-Type": _JSON, **(headers or {})}
        self._denied = denied
        self._sign = sign
        # Never a redirect: the headers may carry a key or a token.
        self._pool = urllib3.PoolManager(timeout=_SECONDS, retries=False)

    def ask(self, question: Question) -> Reply:
        headers = {"Content-Type": question.content_type, "Accept": _JSON, _INFERENCE_ID: uuid.uuid4().hex}
        targets = {TARGET_MODEL: question.target_model, TARGET_CONTAINER: question.container}
        headers |= {name: value for name, value in targets.items() if value is not None}
        started = time.perf_counter()
        answer = self.post(question.body, headers)
        seconds = time.perf_counter() - started
        if answer.status != 200:
            raise FerryError(f"{self.name} at {self.url}: {_said(answer)}")
        told = (answer.headers.get(name) for name in _REQUEST_IDS)
        request_id = next(filter(None, told), headers[_INFERENCE_ID])
        return Reply(answer.data, answer.headers.get(RELEASE_ID_HEADER), request_id, seconds)

    def post(self, body: bytes, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a body to the door's URL; whatever it answers, but for a 401 or 403, comes back. Raises FerryError."""
        return self._ask("POST", self.url, body, headers)

    def classify(self, body: bytes) -> Answer:
        return _answer(self.name, self.ask(Question(body)))

    def release(self) -> str:
        """The id of the release that answers here. Raises NotServing, and FerryError where the door is closed to us."""
        answer = self._ask("GET", self.health)
        identifier = answer.headers.get(RELEASE_ID_HEADER)
        if answer.status != 200 or identifier is None:
            raise NotServing(f"{self.name} at {self.health}: {_said(answer)}")
        return identifier

    def _ask(
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        sent = {**self._headers, **(headers or {})}
        if self._sign is not None:
            sent = self._sign(method, url, body, sent)
        try:
            answer = self._pool.request(method, url, body=body, headers=sent)
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

    def ask(self, question: Question) -> Reply:
        targets = {"TargetModel": question.target_model, "TargetContainerHostname": question.container}
        started = time.perf_counter()
        try:
            answer = self._runtime.invoke_endpoint(
                EndpointName=self._endpoint,
                Body=question.body,
                ContentType=question.content_type,
                Accept=_JSON,
                **{name: value for name, value in targets.items() if value is not None},
            )
            content = answer["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise FerryError(f"{self.name}: endpoint {self._endpoint}: {_refused(error)}") from error
        seconds = time.perf_counter() - started
        # SageMaker hands on this one response header of a container; ours puts the release id there.
        released, request_id = answer.get("CustomAttributes"), answer["ResponseMetadata"].get("RequestId")
        return Reply(content, released, request_id, seconds)

    def classify(self, body: bytes) -> Answer:
        return _answer(self.name, self.ask(Question(body)))


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


def local_door(settings: Settings) -> HttpDoor:
    """The container on this machine's loopback. Raises Refused for an environment of real clouds."""
    aws.local_settings(settings)
    return _container(settings)


def _sagemaker_door(settings: Settings) -> Door:
    return EndpointDoor(settings) if settings.local is None else _container(settings)


def _container(settings: Settings) -> HttpDoor:
    assert settings.local is not None
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


def read_answer(door: str, content: bytes) -> tuple[list[int | str], NDArray[np.float64] | None]:
    """Labels and, where they were asked for, probabilities (n, classes) in a JSON answer. Raises FerryError."""
    try:
        document = json.loads(content)
        given = document.pop("probabilities", None)
        probabilities = None if given is None else np.asarray(given, np.float64)
        ((_, labels),) = document.items()
        if not isinstance(labels, list) or (probabilities is not None and len(probabilities) != len(labels)):
            raise ValueError("the probabilities are not one row a label")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        shown = content[:200].decode(errors="replace")
        raise FerryError(f"{door}: answers something else than labels and probabilities: {shown}") from error
    return labels, probabilities


def _answer(door: str, reply: Reply) -> Answer:
    labels, probabilities = read_answer(door, reply.content)
    if probabilities is None:
        raise FerryError(f"{door}: answers no probabilities: {reply.content[:200].decode(errors='replace')}")
    return Answer(labels, probabilities, reply.release_id, reply.seconds)


def _refused(error: ClientError | BotoCoreError) -> str:
    """What the runtime says, and what the container said where it was the container (ModelError)."""
    if not isinstance(error, ClientError) or error.response["Error"]["Code"] != "ModelError":
        return str(error)
    status, said = error.response.get("OriginalStatusCode"), error.response.get("OriginalMessage", "")
    return f"ModelError: the container answered HTTP {status}: {envelope(said.encode()) or said[:500]}"


def envelope(content: bytes) -> str | None:
    """`CODE: message (request id)` where a body is an error of the serving core, else None."""
    try:
        error = json.loads(content)["error"]
        return f"{error['code']}: {error['message']} (request {error['request_id']})"
    except (ValueError, TypeError, KeyError):
        return None


def _said(answer: urllib3.BaseHTTPResponse) -> str:
    return f"HTTP {answer.status}: {envelope(answer.data) or answer.data[:500].decode(errors='replace')}"
