"""The container with one model, or with the preprocessing of one: GET /ping, POST /invocations, GET /execution-parameters."""

import json
from collections.abc import Callable
from functools import partial
from typing import Protocol

from model_code.container.body import Receive
from model_code.container.worker import READ_SECONDS, Scope, Worker, check_method
from model_code.inference import errors
from model_code.inference.codecs import JSON
from model_code.inference.contract import DEFAULT_LIMITS, RELEASE_ID_HEADER, Limits, Response

METHODS = {"/ping": "GET", "/invocations": "POST", "/execution-parameters": "GET"}
# CreateTransformJob: MaxConcurrentTransforms times MaxPayloadInMB.
_MAX_BATCH_MEGABYTES = 100


class Released(Protocol):
    """What is served: a predictor, or the description of a model."""

    @property
    def release_id(self) -> str: ...


class Application(Worker):
    """One worker. `load` runs before it listens; `respond`, the core's or its `preprocess`, answers with what that gave.

    One thread infers: there are as many workers as CPUs. `workers` is their number, which a batch transform asks for.
    """

    def __init__(
        self,
        load: Callable[[], Released],
        respond: Callable[..., Response],
        *,
        workers: int = 1,
        limits: Limits = DEFAULT_LIMITS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        super().__init__(threads=1, limits=limits, read_seconds=read_seconds)
        self._load = load
        self._respond = partial(respond, limits=limits)
        self._workers = workers
        self._model: Released | None = None

    async def _open(self) -> None:
        self._model = self._load()

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        path = scope["path"]
        if path not in METHODS:
            raise errors.NotFound(f"no such path; there are {', '.join(METHODS)}")
        check_method(scope, METHODS[path])
        if path == "/ping":
            return self._ping()
        if path == "/execution-parameters":
            return self._execution_parameters()
        request = await self._read(scope, receive, request_id)
        return await self._infer(partial(self._respond, self._model), request)

    def _ping(self) -> Response:
        if self._model is None:
            raise errors.NotReady("no model is loaded")
        return Response(200, b"", {RELEASE_ID_HEADER: self._model.release_id})

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
