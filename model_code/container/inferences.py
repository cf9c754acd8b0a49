"""What infers, and the queues in front of it.

A model that is quick infers on the event loop itself: to wake a thread and to be woken by it costs more than it saves where a CPU
has a worker of its own. Everything else goes to a few threads.

Requests that wait are answered together where that is allowed: one inference for sixteen small requests costs less than
sixteen. No request waits for others to come: with an empty queue each is answered alone.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_code.inference import errors
from model_code.inference.contract import Request, Response
from model_code.inference.respond import error_response

# A larger body holds enough instances to fill an inference; it would only make small ones wait.
_SMALL_BODY_BYTES = 32 * 1024
# A larger one may hold so much that decoding it would keep the loop busy. This is 16 images of MNIST with every digit written.
_LOOP_BODY_BYTES = 320 * 1024

# Answers to several requests, in their order.
Respond = Callable[[Sequence[Request]], Sequence[Response]]


@dataclass(slots=True, eq=False)
class _Waiting:
    respond: Respond
    request: Request
    together: int
    answered: Callable[[Response], None]
    loop: asyncio.AbstractEventLoop

    @property
    def small(self) -> bool:
        return len(self.request.body) <= _SMALL_BODY_BYTES


class Inferences:
    """`threads` of them and the event loop, on which all methods are called. Of `pending` requests there are `most` at most."""

    def __init__(self, threads: int, most: int) -> None:
        self._most = most
        self.pending = 0
        self._for_loop: deque[_Waiting] = deque()
        self._for_threads: deque[_Waiting] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"inference-{number}", daemon=True).start()

    def submit(
        self,
        respond: Respond,
        request: Request,
        answered: Callable[[Response], None],
        *,
        together: int = 1,
        quick: bool = False,
    ) -> None:
        """Later, `answered` gets what `respond` says to this request and up to `together` - 1 neighbours with the same `respond`.

        `quick` says that it may keep the event loop busy. Raises Overloaded.
        """
        if self.pending >= self._most:
            raise errors.Overloaded(f"{self._most} requests wait already; try again")
        self.pending += 1
        loop = asyncio.get_running_loop()
        waiting = _Waiting(respond, request, together, answered, loop)
        if quick and len(request.body) <= _LOOP_BODY_BYTES:
            self._for_loop.append(waiting)
            if len(self._for_loop) == 1:
                # What other connections have sent in the same moment is read before.
                loop.call_soon(self._work_on_loop, loop)
            return
        with self._changed:
            self._for_threads.append(waiting)
            self._changed.notify()

    async def infer(self, respond: Respond, request: Request) -> Response:
        """As `submit`, for one request alone."""
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.submit(respond, request, lambda response: None if answer.done() else answer.set_result(response))
        return await answer

    def _work_on_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        group = _take(self._for_loop, 1)
        if self._for_loop:
            # One group at a time: what has arrived meanwhile, and /ping, comes in between.
            loop.call_soon(self._work_on_loop, loop)
        self._deliver([waiting.answered for waiting in group], _answers(group))

    def _work(self) -> None:
        while True:
            self._answer_next()

    def _answer_next(self) -> None:
        with self._changed:
            while not self._for_threads:
                self._changed.wait()
            group = _take(self._for_threads, self._threads)
        loop, receivers, answers = group[0].loop, [waiting.answered for waiting in group], _answers(group)
        # Who has the answer may unload the model, and memory that is still referred to stays taken.
        group.clear()
        loop.call_soon_threadsafe(self._deliver, receivers, answers)

    def _deliver(self, receivers: Sequence[Callable[[Response], None]], answers: Sequence[Response]) -> None:
        self.pending -= len(receivers)
        for answered, answer in zip(receivers, answers, strict=True):
            answered(answer)


def _take(queue: deque[_Waiting], takers: int) -> list[_Waiting]:
    """The next requests to answer; each taker gets its share of what waits."""
    first = queue.popleft()
    group = [first]
    share = min(first.together, -(-(1 + len(queue)) // takers))
    while len(group) < share and queue and first.small and _fits(queue[0], first):
        group.append(queue.popleft())
    return group


def _fits(waiting: _Waiting, first: _Waiting) -> bool:
    return waiting.respond is first.respond and waiting.small


def _answers(group: Sequence[_Waiting]) -> Sequence[Response]:
    try:
        return group[0].respond([waiting.request for waiting in group])
    except BaseException as error:  # whatever it is, somebody waits, and a thread that ends answers nobody
        return [error_response(error, waiting.request.request_id) for waiting in group]
