"""Reads the body of an ASGI request under a size limit and a time limit, on the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from model_code.inference.errors import BadLength, ReadTimeout
from model_code.inference.respond import check_body_size

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


async def read_body(receive: Receive, announced: str | None, seconds: float, most: int) -> bytes:
    """The whole body; `announced` is the Content-Length header, which the HTTP server has checked to be a whole number.

    Raises BodyTooLarge as soon as `most` bytes are passed, before anything is read where the length says so already,
    ReadTimeout after `seconds`, and BadLength where the connection ends first.
    """
    check_body_size(int(announced or 0), most)
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise BadLength("the body ended early")
                chunks.append(message.get("body", b""))
                size, more = size + len(chunks[-1]), message.get("more_body", False)
                check_body_size(size, most)
    except TimeoutError as error:
        raise ReadTimeout(f"the body did not arrive within {seconds:g} seconds") from error
    return b"".join(chunks)


async def discard_body(receive: Receive, seconds: float, most: int) -> None:
    """Take in up to `most` bytes of a refused body: a client that is still sending would see a reset, not its answer."""
    size, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while more and size < most:
                message = await receive()
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
