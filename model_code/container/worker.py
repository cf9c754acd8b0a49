"""What every worker of the container does whatever it serves: it says how large the body of a request may be, and answers it.

All of that is on the event loop. What takes no time is answered at once, so that /ping is quick however long the queue is
(SageMaker waits 2 seconds for it); for what takes long there are threads.
"""

import asyncio
import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from model_code.container import memory
from model_code.container.exchange import Exchange, Route
from model_code.container.inferences import Inferences
from model_code.container.readiness import Readiness
from model_code.container.room import Room
from model_code.inference import errors
from model_code.inference.contract import DEFAULT_LIMITS, Limits, Request, Response
from model_code.inference.respond import error_response

# For each thread. 64 requests of the largest size take about 15 seconds: the last of them is not past its deadline.
MAX_PENDING = 64
READ_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Worker(ABC):
    """One worker process. A subclass says what it opens, before which every answer is 503, and who answers which path.

    `read_seconds` is how long a body may take to arrive, `room` what the bodies may take together that have not arrived yet.
    """

    def __init__(
        self,
        *,
        threads: int,
        limits: Limits = DEFAULT_LIMITS,
        read_seconds: float = READ_SECONDS,
        readiness: Readiness | None = None,
    ) -> None:
        self.limits = limits
        self.read_seconds = read_seconds
        # As much as the queue may hold when all of its requests are of the largest size.
        self.room = Room(threads * MAX_PENDING * limits.body_bytes)
        self._readiness = readiness or Readiness()
        self._opened = False
        self._inferences = Inferences(threads, threads * MAX_PENDING)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """Requests whose inference somebody waits for."""
        return self._inferences.pending

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

    def route(self, exchange: Exchange) -> Route:
        """Request line and headers are there. Raises what they are refused for."""
        # All workers, as the next request may get another one: who was answered once is not told to wait later.
        if not (self._opened and self._readiness.everyone):
            raise errors.NotReady("the model is being loaded; try again")
        return self._route(exchange)

    @abstractmethod
    async def _open(self) -> None:
        """Runs on the event loop, once; what takes long runs in a thread, so that /ping is answered meanwhile."""

    @abstractmethod
    def _route(self, exchange: Exchange) -> Route:
        """Who answers; what `handle` raises becomes an error answer. Raises NotFound and MethodNotAllowed."""

    def _answer_later(self, exchange: Exchange, response: Coroutine[Any, Any, Response]) -> None:
        """When the coroutine ends; what it raises becomes an error answer. It runs to its end also where the client hangs up."""
        task = asyncio.get_running_loop().create_task(_answer(exchange, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _answer(exchange: Exchange, response: Coroutine[Any, Any, Response]) -> None:
    try:
        exchange.answer(await response)
    except Exception as error:
        exchange.answer(error_response(error, exchange.request_id))


def request_of(exchange: Exchange) -> Request:
    """What goes to the model; its deadline counts from the moment in which the headers were there."""
    content_type, accept = exchange.header(b"content-type"), exchange.header(b"accept")
    return Request(exchange.body, content_type, accept, exchange.request_id, exchange.arrived)


def check_method(exchange: Exchange, *allowed: str) -> None:
    """Raises MethodNotAllowed."""
    if exchange.method not in allowed:
        raise errors.MethodNotAllowed(f"this path takes {' and '.join(allowed)}", allowed=allowed)
