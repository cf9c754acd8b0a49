"""The threads that infer, and the one queue in front of them.

Requests that wait are answered together where that is allowed: one inference for sixteen small requests costs less than
sixteen, and wakes the event loop once. No request waits for others to come: with an empty queue each is answered alone.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_code.inference.contract import Request, Response

# A larger body holds enough instances to fill an inference; it would only make small ones wait.
_SMALL_BODY_BYTES = 32 * 1024

# Answers to several requests, in their order.
Respond = Callable[[Sequence[Request]], Sequence[Response]]


@dataclass(frozen=True, eq=False)
class _Waiting:
    respond: Respond
    request: Request
    together: int
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Response]"

    @property
    def small(self) -> bool:
        return len(self.request.body) <= _SMALL_BODY_BYTES


class Inferences:
    """`threads` of them; `infer` is called on the event loop."""

    def __init__(self, threads: int) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"inference-{number}", daemon=True).start()

    async def infer(self, respond: Respond, request: Request, *, together: int = 1) -> Response:
        """What `respond` answers, called with this request and up to `together` - 1 neighbours with the same `respond`."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(respond, request, together, loop, loop.create_future())
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify()
        return await waiting.answer

    def _work(self) -> None:
        while True:
            _answer(self._take())

    def _take(self) -> list[_Waiting]:
        """The next requests to answer."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            first = self._waiting.popleft()
            group = [first]
            # Other threads get their share of what waits.
            share = min(first.together, -(-(1 + len(self._waiting)) // self._threads))
            while len(group) < share and self._waiting and first.small and _fits(self._waiting[0], first):
                group.append(self._waiting.popleft())
            return group


def _fits(waiting: _Waiting, first: _Waiting) -> bool:
    return waiting.respond is first.respond and waiting.small


def _answer(group: list[_Waiting]) -> None:
    """Empties `group`: a caller who has the answer may unload the model, and memory that is still referred to stays taken."""
    loop, futures = group[0].loop, [waiting.answer for waiting in group]
    try:
        answers: Sequence[Response | BaseException] = group[0].respond([waiting.request for waiting in group])
    except BaseException as error:  # a thread that ends answers nobody
        answers = [error] * len(group)
    group.clear()
    loop.call_soon_threadsafe(_deliver, futures, answers)


def _deliver(futures: "Sequence[asyncio.Future[Response]]", answers: Sequence[Response | BaseException]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():  # the client has gone
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
