"""What the soak sends: good requests, bad ones of every class, and bytes that are no HTTP at all."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from PIL import Image

from bench.core import as_json, as_npy, golden_pixels
from model_code.inference.codecs import JSON, NPY
from model_code.inference.contract import MAX_BODY_BYTES, MAX_INSTANCES, Signature
from model_code.inference.preprocess import normalise

JSON_LINES, PNG = "application/jsonlines", "image/png"
# Whatever is wrong with a body, the answer says so, or the body happened to be one.
_ANY_BODY = frozenset({200, 400, 413, 415})


@dataclass(frozen=True)
class Ask:
    """One request and the statuses that it may be answered with; no `path` is the path of the door that is asked."""

    name: str
    body: bytes
    content_type: str | None
    statuses: frozenset[int]
    accept: str | None = None
    method: str = "POST"
    path: str | None = None
    weight: int = 1

    def to_bytes(self, default_path: str) -> bytes:
        headers = {"Host": "soak", "Content-Length": str(len(self.body))}
        headers |= {"Content-Type": self.content_type} if self.content_type else {}
        headers |= {"Accept": self.accept} if self.accept else {}
        lines = [f"{self.method} {self.path or default_path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True)
class Requests:
    """Good requests, whose answers never change, and bad ones; `pick` takes one of both, or one that was damaged on its way."""

    good: Sequence[Ask]
    bad: Sequence[Ask]
    random: Random
    _weighted: list[Ask] = field(default_factory=list)

    def pick(self) -> Ask:
        """Of ten requests seven are good, two are bad, and one is a good one with a few bytes changed."""
        turn = self.random.random()
        if turn < 0.7:
            return self.random.choices(self.good, [ask.weight for ask in self.good])[0]
        return self.random.choice(self.bad) if turn < 0.9 else damaged(self.random.choice(self.good), self.random)


def make_requests(signature: Signature, seed: int) -> Requests:
    """For a model of images; the same seed gives the same requests. Large ones are rare: each takes as long as hundreds."""
    pixels = golden_pixels(signature, 16)
    digits = normalise(pixels, signature.preprocessing)
    return Requests(list(_good(pixels, digits)), list(_bad(pixels, digits)), Random(seed))


def _good(pixels: np.ndarray, digits: np.ndarray) -> list[Ask]:
    ok = frozenset({200})
    probabilities = json.dumps({"data": digits[:1].tolist(), "probabilities": True}).encode()
    lines = b"".join(json.dumps({"images": image.tolist()}).encode() + b"\n" for image in pixels[:4])
    return [
        Ask("JSON, 1 image", as_json("data", digits[:1]), JSON, ok, weight=8),
        Ask("JSON, 16 images", as_json("data", digits), JSON, ok, weight=2),
        Ask("JSON, raw pixels", as_json("images", pixels[:1]), JSON, ok, weight=4),
        Ask("JSON, probabilities", probabilities, JSON, ok, weight=2),
        Ask("npy, 16 images", as_npy(digits), NPY, ok, weight=2),
        Ask("npy, answer npy", as_npy(pixels[:1]), NPY, ok, accept=NPY, weight=2),
        Ask("PNG", _png(pixels[0]), PNG, ok, weight=2),
        Ask("JSON lines", lines, JSON_LINES, ok, accept=JSON_LINES, weight=2),
    ]


def _bad(pixels: np.ndarray, digits: np.ndarray) -> list[Ask]:
    one = as_json("data", digits[:1])
    pixel = digits[:1].tolist()
    shape = digits.shape[1:]

    def wrong(
        name: str,
        body: bytes,
        content_type: str | None = JSON,
        status: int = 400,
        accept: str | None = None,
        path: str | None = None,
    ) -> Ask:
        return Ask(name, body, content_type, frozenset({status}), accept, path=path)

    def with_number(text: str) -> bytes:
        return as_json("data", np.zeros((1, *shape))).replace(b"0.0", text.encode(), 1)

    cases = [
        wrong("empty", b""),
        wrong("no JSON", b"{"),
        wrong("JSON and more", one + b"x"),
        wrong("no UTF-8", b'{"data": "\xff"}'),
        wrong("deep", b"[" * 100_000),
        wrong("NaN", with_number("NaN")),
        wrong("1e400", with_number("1e400")),
        wrong("1e39", with_number("1e39")),
        wrong("text for a number", with_number('"0"')),
        wrong("null for a number", with_number("null")),
        wrong("key twice", one[:-1] + b"," + one[1:]),
        wrong("unknown key", json.dumps({"data": pixel, "what": 1}).encode()),
        wrong("neither key", b'{"digits": [7]}'),
        wrong("rank", json.dumps({"data": pixel[0]}).encode()),
        wrong("ragged", b'{"data": [[[[1, 2], [3]]]]}'),
        wrong("no instance", b'{"data": []}'),
        wrong("raw pixel above 255", as_json("images", pixels[:1].astype(int) + 256)),
        wrong("npy cut", as_npy(digits)[:-1], NPY),
        wrong("npy, no magic", b"NUMPY" + bytes(200), NPY),
        wrong("npy of objects", _pickled(), NPY),
        wrong("PNG cut", _png(pixels[0])[:60], PNG),
        wrong("PNG of another size", _png(pixels[0][:, :20]), PNG),
        wrong("JSON lines, one of them bad", b'{"images": [[0]]}\n{', JSON_LINES),
        wrong("XML", b"<a/>", "text/xml", 415),
        wrong("UTF-7", one, "application/json; charset=utf-7", 415),
        wrong("XML wanted", one, status=406, accept="text/xml"),
        wrong("no such path", b"", None, 404, path="/invocations/../../etc/passwd"),
        wrong("too many", as_npy(np.zeros((MAX_INSTANCES + 1, *shape), np.uint8)), NPY, 413),
    ]
    return [*cases * 8, wrong("too large", bytes(MAX_BODY_BYTES + 1), JSON, 413)]


def damaged(ask: Ask, random: Random) -> Ask:
    """The same request with bytes changed, taken out, doubled or cut off."""
    body = bytearray(ask.body)
    for _ in range(random.randint(1, 4)):
        at, size = random.randrange(len(body)), random.randint(1, 20)
        match random.randrange(4):
            case 0:
                body[at] = random.randrange(256)
            case 1:
                del body[at : at + size]
            case 2:
                body[at:at] = body[at : at + size]
            case _:
                del body[max(1, at) :]
        body = body or bytearray(b"{")
    return Ask("damaged", bytes(body), ask.content_type, _ANY_BODY, ask.accept)


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, -1).squeeze()).save(stream, "PNG")
    return stream.getvalue()


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    return stream.getvalue()


def broken_http(random: Random, path: str) -> bytes:
    """Bytes that a client library would never send, of one of many kinds."""
    return random.choice(_BROKEN)(random, path.encode())


def _head(path: bytes, *headers: bytes, line: bytes | None = None) -> bytes:
    return b"\r\n".join([line or b"POST " + path + b" HTTP/1.1", b"Host: soak", *headers, b"", b""])


def _noise(random: Random, size: int) -> bytes:
    return random.randbytes(random.randint(1, size))


def _line(random: Random, path: bytes) -> bytes:
    lines = [
        b"GET", b"GET " + path, b"GET  " + path + b" HTTP/1.1", path + b" GET HTTP/1.1", b"GET " + path + b" HTTP/9.9",
        b"GET " + path + b" HTTP/2.0", b"GET " + path + b"\0 HTTP/1.1", b"G\xffT " + path + b" HTTP/1.1",
        b"GET http:// HTTP/1.1", b"GET /" + b"a" * 100_000 + b" HTTP/1.1", b"CONNECT soak:1 HTTP/1.1", b"* * *",
        b"GET " + path + b"/%%%zz/../\\ HTTP/1.1", b"A" * 10_000 + b" " + path + b" HTTP/1.1",
    ]  # fmt: skip
    return _head(path, line=random.choice(lines))


def _header(random: Random, path: bytes) -> bytes:
    headers = [
        b"X: " + b"a" * 2**20, b"no colon", b": no name", b"A B: c", b"X: a\0b", b"X: a\nY: b", b" folded: x",
        b"X\xff: y", b"Transfer-Encoding : chunked", b"Host: other", b"Expect: nothing", b"Connection: upgrade\r\nUpgrade: h2c",
        b"X-Amzn-SageMaker-Inference-Id: " + bytes(range(128, 256)), b"Content-Type: \xff\xfe\r\nContent-Length: 0",
        b"\r\n".join(b"X-%d: y" % number for number in range(500)),
    ]  # fmt: skip
    return _head(path, random.choice(headers), b"Content-Length: 0")


def _length(random: Random, path: bytes) -> bytes:
    lengths = [b"-1", b"+5", b"1e3", b"0x5", b"5, 6", b"", b" ", b"9" * 30, b"18446744073709551615", b"5\0", b"\xb2"]
    return _head(path, b"Content-Length: " + random.choice(lengths)) + b"hello"


def _chunks(random: Random, path: bytes) -> bytes:
    bodies = [
        b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"F" * 40 + b"\r\n{}", b"2;" + b"x" * 50_000 + b"\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n", b"2\n{}\n0\n\n", b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 5000 + b"\r\n", b"1\r\n{\r\n" * 2000,
    ]  # fmt: skip
    extra = random.choice([(), (b"Content-Length: 5",), (b"Transfer-Encoding: gzip",)])
    return _head(path, b"Transfer-Encoding: chunked", *extra) + random.choice(bodies)


def _other_protocol(random: Random, path: bytes) -> bytes:
    hello = bytes.fromhex("16030100c8010000c40303") + random.randbytes(190)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    return random.choice([hello, preface, b"SSH-2.0-soak\r\n", b"\x00\x0e\xff", b"EHLO soak\r\n", _noise(random, 4096)])


def _pipelined(random: Random, path: bytes) -> bytes:
    ping = b"GET /ping HTTP/1.1\r\nHost: soak\r\n\r\n"
    tail = random.choice([b"", b"GARBAGE\r\n\r\n", _head(path, b"Content-Length: 2") + b"{}"])
    return ping * random.randint(2, 40) + tail


def _bare_lines(random: Random, path: bytes) -> bytes:
    return _head(path, b"Content-Length: 2").replace(b"\r\n", random.choice([b"\n", b"\r", b"\n\r"])) + b"{}"


def _mutated(random: Random, path: bytes) -> bytes:
    whole = bytearray(_head(path, b"Content-Type: application/json", b"Content-Length: 12") + b'{"data": []}')
    for _ in range(random.randint(1, 6)):
        whole[random.randrange(len(whole))] = random.randrange(256)
    return bytes(whole)


_BROKEN: Sequence[Callable[[Random, bytes], bytes]] = (
    _line, _header, _length, _chunks, _other_protocol, _pipelined, _bare_lines, _mutated,
)  # fmt: skip

# Answers to broken HTTP that are no failure although they begin with 5: a method, or a version, that is unknown (RFC 9110).
NOT_SPOKEN = frozenset({501, 505})
