"""Talks to the container's HTTP server in this process and its event loop, over a pair of sockets."""

import asyncio
import http.client
import io
import socket
from contextlib import closing

from model_code.container.balance import Balance
from model_code.container.connection import Connection, Connections
from model_code.container.worker import Worker

Answer = tuple[int, dict[str, str], bytes]


def few(most: int) -> Connections:
    """Of one worker, `most` at a time."""
    return Connections(most, 60, Balance.of(1)[0])


async def connect(app: Worker, connections: Connections) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The client's end of a new connection."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: Connection(app, connections), ours)
    return await asyncio.open_connection(sock=theirs)


async def call(app: Worker, method: str, path: str, *chunks: bytes, stall: bool = False) -> Answer:
    """Status, headers and body of the answer to one request on a connection of its own; with `stall` its body never ends."""
    reader, writer = await connect(app, few(1))
    with closing(writer):
        head = f"{method} {path} HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for chunk in (*chunks, *(() if stall else (b"",))):
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        return await read_answer(reader)


async def read_answer(reader: asyncio.StreamReader, *, has_body: bool = True) -> Answer:
    status = await reader.readline()
    head = io.BytesIO(await reader.readuntil(b"\r\n\r\n"))
    headers = {name.lower(): value for name, value in http.client.parse_headers(head).items()}
    body = await reader.readexactly(int(headers["content-length"])) if has_body else b""
    return int(status.split()[1]), headers, body
