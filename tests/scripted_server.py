"""A real HTTP server on loopback that answers what a test wrote down, in that order, and keeps what it was asked."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Reply:
    """Status, body and headers of one answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request as it came in: method, path with query, headers, body."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


# What the server answers one kind of request: replies in their order, or what a function makes of each request.
Script = Sequence[Reply] | Callable[[Asked], Reply]


@dataclass
class Server:
    """Where the server listens, and the requests so far."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    def paths(self, method: str) -> list[str]:
        return [request.path for request in self.asked if request.method == method]


@contextmanager
def scripted(replies: Mapping[str, Script]) -> Iterator[Server]:
    """Serve `replies`: for "METHOD /path" (without its query) one after the other, the last one for ever; else 404.

    AWS's JSON and query protocols have one path and name the operation in X-Amz-Target, or as Action in the body; there, the
    name is the key: "DescribePipeline".
    """
    left = {request: answers if callable(answers) else list(answers) for request, answers in replies.items()}
    taking = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, self.path, dict(self.headers), body)
            state.asked.append(asked)
            path = f"{self.command} {self.path.partition('?')[0]}"
            operation = _operation(asked)
            answers = left[operation] if operation in left else left.get(path, [_NOT_FOUND])
            if callable(answers):
                reply = answers(asked)
            else:
                with taking:
                    reply = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response_only(reply.status)
            defaults = {"Date": self.date_time_string(), "Content-Length": str(len(reply.body))}
            for name, value in {**defaults, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_NOT_FOUND = Reply(404, b"not found")


def _operation(asked: Asked) -> str:
    """The operation that one of AWS's protocols of a single path names; empty for any other request."""
    if target := asked.headers.get("X-Amz-Target"):
        return target.rpartition(".")[2]
    if asked.method == "POST" and "x-www-form-urlencoded" in asked.headers.get("Content-Type", ""):
        return parse_qs(asked.body.decode()).get("Action", [""])[0]
    return ""


@dataclass(frozen=True)
class Token:
    """What azure.core calls an AccessToken."""

    token: str


@dataclass
class SignedIn:
    """A credential with the protocol of azure.core that keeps the scopes it was asked for."""

    scopes: list[str] = field(default_factory=list)

    def get_token(self, *scopes: str) -> Token:
        self.scopes += scopes
        return Token("an-entra-token")
