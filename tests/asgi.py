"""Drives an ASGI application of the container in this process, as a server drives it."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from model_code.container.worker import Worker

Messages = list[MutableMapping[str, Any]]


async def call(
    app: Worker, method: str, path: str, *chunks: bytes, stall: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """One request through the ASGI interface; with `stall` the body never ends."""
    sent: Messages = []
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if not stall:
        waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> MutableMapping[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, sent[1]["body"]
