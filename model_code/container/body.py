"""Reads the body of an ASGI request under a size limit and a time limit, on the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from model_code.inference.errors import BadLength, Overloaded, ReadTimeout
from model_code.inference.respond import check_body_size

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class NoRoom(Overloaded):
    """The bodies that are on their way take all the memory that there is for them; the rest of this one was not read."""


class Room:
    """Bytes that all bodies together may take while they arrive: a client that stops in the middle keeps its part in memory.

    What was only announced takes nothing, or few clients could keep all others out without sending anything.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """Raises NoRoom."""
        if self._taken + size > self._most:
            raise NoRoom(f"{self._most} bytes of bodies are on their way already; try again")
        self._taken += size

    def give_back(self, size: int) -> None:
        self._taken -= size


async def read_body(receive: Receive, announced: str | None, seconds: float, most: int, room: Room) -> bytes:
    """The whole body; `announced` is the Content-Length header, which the HTTP server has checked to be a whole number.

    Raises BodyTooLarge as soon as `most` bytes are passed, before anything is read where the length says so already,
    ReadTimeout after `seconds`, BadLength where the connection ends first, and NoRoom.
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
                chunk, more = message.get("body", b""), message.get("more_body", False)
                check_body_size(size + len(chunk), most)
                room.take(len(chunk))
                chunks.append(chunk)
                size += len(chunk)
        return b"".join(chunks)
    except TimeoutError as error:
        raise ReadTimeout(f"the body did not arrive within {seconds:g} seconds") from error
    finally:
        room.give_back(size)


async def discard_body(receive: Receive, seconds: float, most: int) -> None:
    """Take in up to `most` bytes of a refused body: a client that is still sending would see a reset, not its answer."""
    size, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while more and size < most:
                message = await receive()
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
