"""An HTTP server that reads a body and answers a constant: what is left when nothing is decoded and no model runs."""

import os
from typing import Any

import uvicorn

ANSWER = b'{"digits": [7]}'


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def main() -> None:
    uvicorn.run(
        "bench.constant:app",
        port=int(os.environ["BENCH_PORT"]),
        workers=int(os.environ["BENCH_PROCESSES"]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
    )


if __name__ == "__main__":
    main()
