"""What every worker of the container does whatever it serves, as a plain ASGI application.

The event loop reads the bodies, so that a slow client never holds a thread; a few threads decode and predict; whatever takes
no time is answered on the loop, so that /ping is quick however long the queue is (SageMaker waits 2 seconds for it).
"""

import gc
import logging
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from model_code.container import memory
from model_code.container.body import NoRoom, Receive, Room, discard_body, read_body
from model_code.container.inferences import Inferences, Respond
from model_code.container.readiness import Readiness
from model_code.inference import errors
from model_code.inference.contract import DEFAULT_LIMITS, RELEASE_ID_HEADER, Limits, Request, Response
from model_code.inference.respond import error_response

# For each thread. 64 requests of the largest size take about 15 seconds: the last of them is not past its deadline.
MAX_PENDING = 64
READ_SECONDS = 10.0
# The one response header of a container that SageMaker hands on (botocore: InvokeEndpoint, CustomAttributes).
_CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_INFERENCE_ID = "x-amzn-sagemaker-inference-id"
# After these nobody knows where on the connection the next request would begin.
_CLOSING = (errors.BadLength, errors.BodyTooLarge, errors.ReadTimeout, NoRoom, errors.NotReady)
_UNREAD = (errors.BodyTooLarge, NoRoom, errors.NotReady)

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Worker(ABC):
    """One worker process. A subclass says what it opens, before which every answer is 503, and who answers which path."""

    def __init__(
        self,
        *,
        threads: int,
        limits: Limits = DEFAULT_LIMITS,
        read_seconds: float = READ_SECONDS,
        readiness: Readiness | None = None,
    ) -> None:
        self._readiness = readiness or Readiness()
        self._opened = False
        self._limits = limits
        self._read_seconds = read_seconds
        self._inferences = Inferences(threads)
        self._most_pending = threads * MAX_PENDING
        self._pending = 0
        # As much as the queue may hold when all of its requests are of the largest size.
        self._room = Room(self._most_pending * limits.body_bytes)

    @property
    def replaces_another(self) -> bool:
        """Whether a process before this one has served already: then others do, and it need not listen before it can."""
        return self._readiness.told

    async def open(self) -> None:
        """Open what is served, and say so to the other workers. Raises what `_open` raises."""
        await self._open()
        # What was opened stays: no collection during a request need look at it.
        gc.collect()
        gc.freeze()
        memory.give_back()
        self._opened = True
        self._readiness.tell()
        _log.info("this worker is ready")

    @abstractmethod
    async def _open(self) -> None:
        """Runs on the event loop, once; what takes long runs in a thread, so that /ping is answered meanwhile."""

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        """One request; what it raises becomes an error answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        unread = False
        try:
            self._check_ready()
            response = await self._answer(scope, receive, request_id)
        except Exception as error:
            response = error_response(error, request_id)
            unread = isinstance(error, _UNREAD)
            if isinstance(error, _CLOSING):
                response = replace(response, headers={**response.headers, "connection": "close"})
        await _send(response, send, ends=not unread)
        if unread:
            # The end of the answer is the end of the connection.
            await discard_body(receive, self._read_seconds, 2 * self._limits.body_bytes)
            await send({"type": "http.response.body", "body": b""})

    def _check_ready(self) -> None:
        """Of all workers, as the next request may get another one: who was answered once is not told to wait later.

        Raises NotReady.
        """
        if not (self._opened and self._readiness.everyone):
            raise errors.NotReady("the model is being loaded; try again")

    async def _read(self, scope: Scope, receive: Receive, request_id: str) -> Request:
        """The whole request, whose deadline counts from now."""
        arrived = time.monotonic()
        announced = header(scope, "content-length")
        body = await read_body(receive, announced, self._read_seconds, self._limits.body_bytes, self._room)
        return Request(body, header(scope, "content-type"), header(scope, "accept"), request_id, arrived)

    async def _infer(self, respond: Respond, request: Request, *, together: int = 1) -> Response:
        """As `Inferences.infer`. Raises Overloaded where too many wait."""
        if self._pending >= self._most_pending:
            raise errors.Overloaded(f"{self._most_pending} requests wait already; try again")
        self._pending += 1
        try:
            return await self._inferences.infer(respond, request, together=together)
        finally:
            self._pending -= 1


def header(scope: Scope, name: str) -> str | None:
    """The value of a request header by its lower-case name, several of them joined, or None."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name.encode()]
    return ", ".join(values) if values else None


def check_method(scope: Scope, *allowed: str) -> None:
    """Raises MethodNotAllowed."""
    if scope["method"] not in allowed:
        raise errors.MethodNotAllowed(f"this path takes {' and '.join(allowed)}", allowed=allowed)


def _request_id(scope: Scope) -> str:
    """The caller's inference id where it is one (at most 64 visible ASCII characters), else our own."""
    given = header(scope, _INFERENCE_ID) or ""
    return given if re.fullmatch(r"[\x21-\x7e]{1,64}", given) else uuid.uuid4().hex


async def _send(response: Response, send: Send, *, ends: bool) -> None:
    headers = {**response.headers, "content-length": str(len(response.body))}
    if RELEASE_ID_HEADER in headers:
        headers[_CUSTOM_ATTRIBUTES] = headers[RELEASE_ID_HEADER]
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": pairs})
    await send({"type": "http.response.body", "body": response.body, "more_body": not ends})
