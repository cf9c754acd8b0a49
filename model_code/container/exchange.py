"""One request of a connection, and its answer."""

import re
import time
from collections.abc import Callable
from random import getrandbits
from typing import NamedTuple

from model_code.inference.contract import Response

_INFERENCE_ID = b"x-amzn-sagemaker-inference-id"
_VISIBLE = re.compile(rb"[\x21-\x7e]{1,64}")


class Route(NamedTuple):
    """How a request is answered: by this, once the whole body is there, which has at most so many bytes."""

    handle: "Callable[[Exchange], None]"
    most_bytes: int


class Exchange:
    """The connection fills in what arrives; whoever has the answer calls `answer`, once.

    `path` is as it was sent, `query` what follows its question mark. Header names are lower-case, a header that came several
    times is one with its values joined. `arrived` is the time.monotonic() at which they were there.
    """

    __slots__ = (
        "_answered",
        "arrived",
        "body",
        "complete",
        "handled",
        "headers",
        "held",
        "keep_alive",
        "method",
        "path",
        "query",
        "received",
        "request_id",
        "response",
        "route",
        "waits_for_leave",
    )

    def __init__(
        self, method: str, target: bytes, headers: dict[bytes, bytes], answered: Callable[[], None], *, keep_alive: bool
    ) -> None:
        path, _, query = target.partition(b"?")
        self.method = method
        self.path = path.decode("latin-1")
        self.query = query.decode("latin-1")
        self.headers = headers
        self.keep_alive = keep_alive
        self.waits_for_leave = headers.get(b"expect", b"").lower() == b"100-continue"
        self.request_id = request_id(headers.get(_INFERENCE_ID))
        self.arrived = time.monotonic()
        self.route: Route | None = None
        self.body = b""
        # What has arrived of a body that is not complete.
        self.received: bytes | bytearray = b""
        # How many bytes of it the worker's room counts.
        self.held = 0
        # Whether all of it has arrived, and whether it was handed on.
        self.complete = False
        self.handled = False
        self.response: Response | None = None
        self._answered = answered

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def answer(self, response: Response) -> None:
        """Nothing happens where the connection has gone."""
        self.response = response
        self._answered()


def request_id(given: bytes | None = None) -> str:
    """The caller's inference id where it is one (at most 64 visible ASCII characters), else one of our own."""
    if given is not None and _VISIBLE.fullmatch(given):
        return given.decode("ascii")
    return f"{getrandbits(128):032x}"  # for a log, and no secret; the generator is seeded anew after a fork
