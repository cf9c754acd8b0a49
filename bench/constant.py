"""An HTTP server that reads a body and answers a constant: what is left when nothing is decoded and no model runs."""

import os
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces

ANSWER = b'{"digits": [7]}'


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": ANSWER})


def main() -> None:
    Granian(
        "bench.constant:app",
        address="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        interface=Interfaces.ASGI,
        workers=int(os.environ["BENCH_PROCESSES"]),
        http=HTTPModes.http1,
        websockets=False,
    ).serve()


if __name__ == "__main__":
    main()
