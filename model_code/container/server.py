"""The container with one model, or with the preprocessing of one: GET /ping, POST /invocations, GET /execution-parameters.

GET /openapi.json tells what these take and answer with this model.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from model_code.container.exchange import Exchange, Route
from model_code.container.inferences import Respond
from model_code.container.readiness import Readiness
from model_code.container.worker import READ_SECONDS, Worker, check_method, request_of
from model_code.inference import errors
from model_code.inference.codecs import JSON
from model_code.inference.contract import DEFAULT_LIMITS, RELEASE_ID_HEADER, Limits, ModelDescription, Request, Response
from model_code.inference.openapi import CONTAINER, openapi_document
from model_code.inference.predictor import Predictor
from model_code.inference.respond import preprocess, respond_together

# CreateTransformJob: MaxConcurrentTransforms times MaxPayloadInMB.
_MAX_BATCH_MEGABYTES = 100
# For this long, at most, one inference may keep the event loop from answering /ping.
_QUICK_SECONDS = 0.5

# What is served: a predictor, or the description of a model, whose preprocessing it is then.
Released = Predictor | ModelDescription


@dataclass(frozen=True)
class _Served:
    """What `load` gave, how it answers, how many instances one inference takes, and whether it may keep the event loop busy."""

    description: ModelDescription
    respond: Respond
    together: int = 1
    quick: bool = False
    preprocessing: bool = False


class Application(Worker):
    """One worker. `load` runs once, in a thread, and what it gives decides what is answered.

    There are as many workers as CPUs, so one inference at a time is enough. `workers` is their number, which a batch transform
    asks for. One inference takes up to `dynamic_batch` instances of requests that wait, where that changes no bit of an answer.
    """

    _served: _Served

    def __init__(
        self,
        load: Callable[[], Released],
        *,
        workers: int = 1,
        dynamic_batch: int = 1,
        limits: Limits = DEFAULT_LIMITS,
        read_seconds: float = READ_SECONDS,
        readiness: Readiness | None = None,
    ) -> None:
        super().__init__(threads=1, limits=limits, read_seconds=read_seconds, readiness=readiness)
        self._load = load
        self._workers = workers
        self._dynamic_batch = dynamic_batch
        most = limits.body_bytes
        self._routes: dict[str, tuple[str, Route]] = {
            "/ping": ("GET", Route(self._ping, most)),
            "/invocations": ("POST", Route(self._infer, most)),
            "/execution-parameters": ("GET", Route(self._execution_parameters, most)),
            "/openapi.json": ("GET", Route(self._document, most)),
        }

    async def _open(self) -> None:
        self._served = await asyncio.to_thread(self._load_and_try)

    def _load_and_try(self) -> _Served:
        model = self._load()
        if isinstance(model, ModelDescription):
            return _Served(model, partial(_preprocess_each, model, self.limits), preprocessing=True)
        together = self._dynamic_batch if model.joins(self._dynamic_batch) else 1
        respond = partial(respond_together, model, instances=together, limits=self.limits)
        quick = model.seconds_an_instance * self.limits.instances <= _QUICK_SECONDS
        return _Served(model.description, respond, together=together, quick=quick)

    def _route(self, exchange: Exchange) -> Route:
        path = unquote(exchange.path) if "%" in exchange.path else exchange.path
        if path not in self._routes:
            raise errors.NotFound(f"no such path; there are {', '.join(self._routes)}")
        method, route = self._routes[path]
        check_method(exchange, method)
        return route

    def _infer(self, exchange: Exchange) -> None:
        served, request = self._served, request_of(exchange)
        # A few bytes may be an image of sixteen million pixels.
        quick = served.quick and not (request.content_type or "").lower().startswith("image/")
        self._inferences.submit(served.respond, request, exchange.answer, together=served.together, quick=quick)

    def _ping(self, exchange: Exchange) -> None:
        exchange.answer(Response(200, b"", {RELEASE_ID_HEADER: self._served.description.release_id}))

    def _document(self, exchange: Exchange) -> None:
        served = self._served
        document = openapi_document(
            served.description, CONTAINER, limits=self.limits, preprocessing=served.preprocessing
        )
        exchange.answer(_json(document))

    def _execution_parameters(self, exchange: Exchange) -> None:
        """What a batch transform does where its job does not say (Developer Guide, "Use Your Own Inference Code with Batch
        Transform"): as many requests at once as there are workers, each with as many records as fit."""
        megabytes = max(1, self.limits.body_bytes // 2**20)
        document = {
            "MaxConcurrentTransforms": max(1, min(self._workers, _MAX_BATCH_MEGABYTES // megabytes)),
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": megabytes,
        }
        exchange.answer(_json(document))


def _json(document: Mapping[str, Any]) -> Response:
    return Response(200, json.dumps(document).encode(), {"content-type": JSON})


def _preprocess_each(description: ModelDescription, limits: Limits, requests: Sequence[Request]) -> list[Response]:
    return [preprocess(description, request, limits=limits) for request in requests]
