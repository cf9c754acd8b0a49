"""The container with one model, or with the preprocessing of one: GET /ping, POST /invocations, GET /execution-parameters.

GET /openapi.json tells what these take and answer with this model.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from model_code.container.body import Receive
from model_code.container.inferences import Respond
from model_code.container.readiness import Readiness
from model_code.container.worker import READ_SECONDS, Scope, Worker, check_method
from model_code.inference import errors
from model_code.inference.codecs import JSON
from model_code.inference.contract import DEFAULT_LIMITS, RELEASE_ID_HEADER, Limits, ModelDescription, Request, Response
from model_code.inference.openapi import CONTAINER, openapi_document
from model_code.inference.predictor import Predictor
from model_code.inference.respond import preprocess, respond_together

METHODS = {"/ping": "GET", "/invocations": "POST", "/execution-parameters": "GET", "/openapi.json": "GET"}
# CreateTransformJob: MaxConcurrentTransforms times MaxPayloadInMB.
_MAX_BATCH_MEGABYTES = 100


# What is served: a predictor, or the description of a model, whose preprocessing it is then.
Released = Predictor | ModelDescription


@dataclass(frozen=True)
class _Served:
    """What `load` gave, how it answers, and how many instances one inference takes."""

    description: ModelDescription
    respond: Respond
    together: int = 1
    preprocessing: bool = False


class Application(Worker):
    """One worker. `load` runs once, in a thread, and what it gives decides what is answered.

    One thread infers: there are as many workers as CPUs. `workers` is their number, which a batch transform asks for. One
    inference takes up to `dynamic_batch` instances of requests that wait, where that changes no bit of an answer.
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

    async def _open(self) -> None:
        self._served = await asyncio.to_thread(self._load_and_try)

    def _load_and_try(self) -> _Served:
        model = self._load()
        if isinstance(model, ModelDescription):
            return _Served(model, partial(_preprocess_each, model, self._limits), preprocessing=True)
        together = self._dynamic_batch if model.joins(self._dynamic_batch) else 1
        respond = partial(respond_together, model, instances=together, limits=self._limits)
        return _Served(model.description, respond, together=together)

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        path = scope["path"]
        if path not in METHODS:
            raise errors.NotFound(f"no such path; there are {', '.join(METHODS)}")
        check_method(scope, METHODS[path])
        if path == "/ping":
            return self._ping()
        if path == "/execution-parameters":
            return self._execution_parameters()
        if path == "/openapi.json":
            return self._document()
        request = await self._read(scope, receive, request_id)
        return await self._infer(self._served.respond, request, together=self._served.together)

    def _ping(self) -> Response:
        return Response(200, b"", {RELEASE_ID_HEADER: self._served.description.release_id})

    def _document(self) -> Response:
        served = self._served
        document = openapi_document(
            served.description, CONTAINER, limits=self._limits, preprocessing=served.preprocessing
        )
        return Response(200, json.dumps(document).encode(), {"content-type": JSON})

    def _execution_parameters(self) -> Response:
        """What a batch transform does where its job does not say (Developer Guide, "Use Your Own Inference Code with Batch
        Transform"): as many requests at once as there are workers, each with as many records as fit."""
        megabytes = max(1, self._limits.body_bytes // 2**20)
        document = {
            "MaxConcurrentTransforms": max(1, min(self._workers, _MAX_BATCH_MEGABYTES // megabytes)),
            "BatchStrategy": "MULTI_RECORD",
            "MaxPayloadInMB": megabytes,
        }
        return Response(200, json.dumps(document).encode(), {"content-type": JSON})


def _preprocess_each(description: ModelDescription, limits: Limits, requests: Sequence[Request]) -> list[Response]:
    return [preprocess(description, request, limits=limits) for request in requests]
