"""The HTTP side of the SageMaker container: GET /ping and POST /invocations, as a plain ASGI application.

The event loop reads the bodies, so that a slow client never holds a thread; one thread for each worker decodes and
predicts; /ping is answered on the loop, so that it is quick however long the queue is (SageMaker waits 2 seconds for it).
"""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from model_code.container.body import Receive, discard_body, read_body
from model_code.inference import errors
from model_code.inference.contract import DEADLINE_SECONDS, RELEASE_ID_HEADER, Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.respond import error_response, respond

# For each worker. 64 requests of the largest size take about 15 seconds: the last of them is not past its deadline.
MAX_PENDING = 64
READ_SECONDS = 10.0
METHODS = {"/ping": "GET", "/invocations": "POST"}
# The one response header of a container that SageMaker hands on (botocore: InvokeEndpoint, CustomAttributes).
_CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_INFERENCE_ID = "x-amzn-sagemaker-inference-id"
# After these nobody knows where on the connection the next request would begin.
_CLOSING = (errors.BadLength, errors.BodyTooLarge, errors.ReadTimeout)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Application:
    """One worker. `load` runs when the server starts the worker, before it listens; until then no model is served."""

    def __init__(
        self,
        load: Callable[[], Predictor],
        *,
        read_seconds: float = READ_SECONDS,
        seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._load = load
        self._read_seconds = read_seconds
        self._respond = partial(respond, seconds=seconds)
        self._predictor: Predictor | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        request_id = _request_id(scope)
        too_large = False
        try:
            response = await self._answer(scope, receive, request_id)
        except Exception as error:
            response = error_response(error, request_id)
            too_large = isinstance(error, errors.BodyTooLarge)
            if isinstance(error, _CLOSING):
                response = replace(response, headers={**response.headers, "connection": "close"})
        await _send(response, send)
        if too_large:
            await discard_body(receive, self._read_seconds)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._predictor = self._load()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._thread.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        arrived = time.monotonic()
        method = METHODS.get(scope["path"])
        if method is None:
            raise errors.NotFound(f"no such path; there are {', '.join(METHODS)}")
        if scope["method"] != method:
            raise errors.MethodNotAllowed(f"this path takes {method}", allowed=(method,))
        if method == "GET":
            return self._ping()
        body = await read_body(receive, _header(scope, "content-length"), self._read_seconds)
        content_type, accept = _header(scope, "content-type"), _header(scope, "accept")
        return await self._infer(Request(body, content_type, accept, request_id, arrived))

    def _ping(self) -> Response:
        if self._predictor is None:
            raise errors.NotReady("no model is loaded")
        return Response(200, b"", {RELEASE_ID_HEADER: self._predictor.release_id})

    async def _infer(self, request: Request) -> Response:
        if self._pending >= MAX_PENDING:
            raise errors.Overloaded(f"{MAX_PENDING} requests wait already; try again")
        self._pending += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._respond, self._predictor, request)
        finally:
            self._pending -= 1


def _request_id(scope: Scope) -> str:
    """The caller's inference id where it is one (at most 64 visible ASCII characters), else our own."""
    given = _header(scope, _INFERENCE_ID) or ""
    return given if re.fullmatch(r"[\x21-\x7e]{1,64}", given) else uuid.uuid4().hex


def _header(scope: Scope, name: str) -> str | None:
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]
    return ", ".join(values) if values else None


async def _send(response: Response, send: Send) -> None:
    headers = {**response.headers, "content-length": str(len(response.body))}
    if RELEASE_ID_HEADER in headers:
        headers[_CUSTOM_ATTRIBUTES] = headers[RELEASE_ID_HEADER]
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": pairs})
    await send({"type": "http.response.body", "body": response.body})
