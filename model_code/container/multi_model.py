"""The container with many models: SageMaker loads, lists, asks and unloads them over HTTP.

The contract is that of the Developer Guide, "Custom Containers Contract for Multi-Model Endpoints". One process with several
threads, because a model that one process has loaded is unknown to all others, and SageMaker asks whichever it reaches. ONNX
Runtime computes without holding Python's lock: a request costs as much CPU time as with several processes (measured with 1 and
16 images), and every model is in memory once. Dropped: a table that processes share, where each would load every model.
"""

import json
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

from model_code.container.exchange import Exchange, Route
from model_code.container.loaded_models import LoadedModel, LoadedModels
from model_code.container.readiness import Readiness
from model_code.container.worker import READ_SECONDS, Worker, check_method, request_of
from model_code.inference import errors
from model_code.inference.codecs import JSON
from model_code.inference.contract import DEFAULT_LIMITS, Limits, Request, Response
from model_code.inference.respond import respond_together

_MAX_ORDER_BYTES = 64 * 1024
_PATHS = "/ping, /models, /models/{model_name} and /models/{model_name}/invoke"


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

    async def _open(self) -> None:
        await self._models.restore()

    def _route(self, exchange: Exchange) -> Route:
        most = self.limits.body_bytes
        match _segments(exchange.path):
            case ["ping"]:
                check_method(exchange, "GET")
                return Route(_ping, most)
            case ["models"]:
                check_method(exchange, "GET", "POST")
                return Route(self._list if exchange.method == "GET" else self._load, _MAX_ORDER_BYTES)
            case ["models", name]:
                check_method(exchange, "GET", "DELETE")
                return Route(partial(self._get if exchange.method == "GET" else self._unload, name), most)
            case ["models", name, "invoke"]:
                check_method(exchange, "POST")
                self._models.find(name)
                return Route(partial(self._invoke, name), most)
            case _:
                raise errors.NotFound(f"no such path; there are {_PATHS}")

    def _list(self, exchange: Exchange) -> None:
        models, token = self._models.page(parse_qs(exchange.query).get("next_page_token", [None])[0])
        document: dict[str, Any] = {"models": [_document(model) for model in models]}
        if token is not None:
            document["nextPageToken"] = token
        exchange.answer(_json(document))

    def _load(self, exchange: Exchange) -> None:
        name, url = _order(exchange.body)
        self._change(exchange, self._models.load(name, url))

    def _unload(self, name: str, exchange: Exchange) -> None:
        self._change(exchange, self._models.unload(name))

    def _get(self, name: str, exchange: Exchange) -> None:
        exchange.answer(_json(_document(self._models.find(name))))

    def _invoke(self, name: str, exchange: Exchange) -> None:
        self._answer_later(exchange, self._infer(name, request_of(exchange)))

    async def _infer(self, name: str, request: Request) -> Response:
        with self._models.use(name) as predictor:
            respond = partial(respond_together, predictor, instances=1, limits=self.limits)
            return await self._inferences.infer(respond, request)

    def _change(self, exchange: Exchange, change: Awaitable[LoadedModel]) -> None:
        """To its end, also when SageMaker hangs up, which it does after 60 seconds and asks again: nothing stays half loaded."""

        async def response() -> Response:
            return _json(_document(await change))

        self._answer_later(exchange, response())


def _ping(exchange: Exchange) -> None:
    exchange.answer(Response(200, b"", {}))


def _segments(path: str) -> list[str]:
    """The path between its slashes; one that is escaped belongs to the name."""
    try:
        return [unquote(segment, errors="strict") for segment in path.split("/")[1:]]
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
