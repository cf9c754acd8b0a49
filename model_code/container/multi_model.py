"""The container with many models: SageMaker loads, lists, asks and unloads them over HTTP.

The contract is that of the Developer Guide, "Custom Containers Contract for Multi-Model Endpoints". One process with several
threads, because a model that one process has loaded is unknown to all others, and SageMaker asks whichever it reaches. ONNX
Runtime computes without holding Python's lock: a request costs as much CPU time as with several processes (measured with 1 and
16 images), and every model is in memory once. Dropped: a table that processes share, where each would load every model.
"""

import asyncio
import json
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote

from model_code.container.body import Receive, read_body
from model_code.container.loaded_models import LoadedModel, LoadedModels
from model_code.container.readiness import Readiness
from model_code.container.worker import READ_SECONDS, Scope, Worker, check_method, header
from model_code.inference import errors
from model_code.inference.codecs import JSON
from model_code.inference.contract import DEFAULT_LIMITS, Limits, Response
from model_code.inference.respond import respond_together

_MAX_ORDER_BYTES = 64 * 1024
_PATHS = "/ping, /models, /models/{model_name} and /models/{model_name}/invoke"

T = TypeVar("T")


class MultiModelApplication(Worker):
    """The one worker of a multi-model container; `models` belong to it alone."""

    def __init__(
        self,
        models: LoadedModels,
        *,
        threads: int,
        limits: Limits = DEFAULT_LIMITS,
        read_seconds: float = READ_SECONDS,
        readiness: Readiness | None = None,
    ) -> None:
        super().__init__(threads=threads, limits=limits, read_seconds=read_seconds, readiness=readiness)
        self._models = models
        self._changes: set[asyncio.Task[Any]] = set()

    async def _open(self) -> None:
        await self._models.restore()

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        match _segments(scope):
            case ["ping"]:
                check_method(scope, "GET")
                return Response(200, b"", {})
            case ["models"]:
                check_method(scope, "GET", "POST")
                return self._list(scope) if scope["method"] == "GET" else await self._load(scope, receive)
            case ["models", name]:
                check_method(scope, "GET", "DELETE")
                return await self._get_or_unload(scope, name)
            case ["models", name, "invoke"]:
                check_method(scope, "POST")
                return await self._invoke(scope, receive, request_id, name)
            case _:
                raise errors.NotFound(f"no such path; there are {_PATHS}")

    def _list(self, scope: Scope) -> Response:
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        models, token = self._models.page(query.get("next_page_token", [None])[0])
        document: dict[str, Any] = {"models": [_document(model) for model in models]}
        if token is not None:
            document["nextPageToken"] = token
        return _json(document)

    async def _load(self, scope: Scope, receive: Receive) -> Response:
        announced = header(scope, "content-length")
        name, url = _order(await read_body(receive, announced, self._read_seconds, _MAX_ORDER_BYTES, self._room))
        return _json(_document(await self._to_the_end(self._models.load(name, url))))

    async def _get_or_unload(self, scope: Scope, name: str) -> Response:
        if scope["method"] == "GET":
            return _json(_document(self._models.find(name)))
        return _json(_document(await self._to_the_end(self._models.unload(name))))

    async def _invoke(self, scope: Scope, receive: Receive, request_id: str, name: str) -> Response:
        self._models.find(name)
        request = await self._read(scope, receive, request_id)
        with self._models.use(name) as predictor:
            return await self._infer(partial(respond_together, predictor, instances=1, limits=self._limits), request)

    async def _to_the_end(self, change: Awaitable[T]) -> T:
        """Also when SageMaker hangs up, which it does after 60 seconds and asks again: nothing stays half loaded."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)


def _segments(scope: Scope) -> list[str]:
    """The path between its slashes; one that is escaped belongs to the name."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    try:
        return [unquote(segment, errors="strict") for segment in raw.decode("ascii").split("/")[1:]]
    except UnicodeDecodeError as error:
        raise errors.NotFound("the path is not UTF-8") from error


def _order(body: bytes) -> tuple[str, str]:
    """Name and url of a model to load; keys that we do not know are the platform's own business."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise errors.BadJson('the body is no JSON; send {"model_name": "…", "url": "…"}') from error
    if not isinstance(document, Mapping):
        raise errors.BadField('the body is no object; send {"model_name": "…", "url": "…"}')
    for key in ("model_name", "url"):
        if not isinstance(document.get(key), str) or not document[key]:
            raise errors.BadField(f"{key}: missing, or no text")
    return document["model_name"], document["url"]


def _document(model: LoadedModel) -> dict[str, str]:
    return {"modelName": model.name, "modelUrl": model.url}


def _json(document: Mapping[str, Any]) -> Response:
    return Response(200, json.dumps(document).encode(), {"content-type": JSON})
