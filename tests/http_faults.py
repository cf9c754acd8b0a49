"""Wrong requests, by the row of the list of faults that they belong to, each with the status and the code of its answer.

A row is a class of mistakes, so each holds as many spellings of it as somebody may come up with. `IMAGES` are for the model of
`serving_models.write_model`, `TABLES` for that of `write_table_model`.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_code.inference.contract import MAX_BODY_BYTES, MAX_INSTANCES
from model_code.inference.images import MAX_PIECES

JSON, NPY, CSV, LINES = "application/json", "application/x-npy", "text/csv", "application/jsonlines"
PNG, JPEG = "image/png", "image/jpeg"
# A name may come twice, as it may in HTTP.
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fault:
    """A request that is wrong, and what is said to it."""

    status: int
    code: str
    body: bytes
    headers: Headers = (("Content-Type", JSON),)


Faults = dict[str, Fault]


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_npy(array: Any, /) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def as_image(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


IMAGE = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
ROWS = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
GREY = np.random.default_rng(1).integers(0, 256, size=(28, 28)).astype(np.uint8)
GOOD_IMAGES = as_json({"data": IMAGE.tolist(), "probabilities": True})
GOOD_ROWS = as_json({"data": ROWS.tolist(), "probabilities": True})
GOOD_PNG, GOOD_JPEG = as_image(GREY), as_image(GREY, "JPEG")


def pixel(text: str, key: str = "data", where: int = 783) -> bytes:
    """One image of ones, whose pixel number `where` is this text."""
    values = ["1"] * 784
    values[where] = text
    rows = ",".join(f"[{','.join(values[start : start + 28])}]" for start in range(0, 784, 28))
    return f'{{"{key}":[[[{rows}]]]}}'.encode()


def cell(text: str) -> bytes:
    """JSON lines of rows: a good one, then one whose last value is this text."""
    return b'{"data":[1,2,3,4]}\n{"data":[1,2,3,' + text.encode() + b"]}\n"


def npy(header: str, payload: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """What numpy.save would not write."""
    size = len(header.encode()).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header.encode() + payload


def described(dtype: str = "'<f4'", shape: str = "(1, 1, 28, 28)", order: str = "False") -> str:
    """The header of an array."""
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, columns: int, header: tuple[int, ...] = (8, 0, 0, 0, 0), *, before: bytes = b"") -> bytes:
    """A PNG that no encoder would write; `header` is depth, colour, compression, filter and interlace."""
    data = zlib.compress(bytes(28 * 30))  # enough for interlacing too
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, *header))
    return start + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(rows: int, columns: int, before: bytes = b"") -> bytes:
    """The frame of a JPEG without its pixels."""
    frame = struct.pack(">HBHHB", 11, 8, rows, columns, 1) + b"\1\x11\0"
    return b"\xff\xd8" + before + b"\xff\xc0" + frame + b"\xff\xd9"


def _of(content_type: str | None, status: int, code: str, bodies: Mapping[str, bytes]) -> Faults:
    headers: Headers = () if content_type is None else (("Content-Type", content_type),)
    return {f"{content_type} {name}": Fault(status, code, body, headers) for name, body in bodies.items()}


def _with_value(array: NDArray[np.float32], value: float, dtype: str, where: int) -> NDArray[Any]:
    changed = array.astype(dtype)
    changed.reshape(-1)[where] = value
    return changed


# Spellings that are no numbers of JSON, and those that are none at all.
_NOT_FINITE_TEXTS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1E+309", f"1e{'9' * 20}", f"{'9' * 400}.0")
_NO_JSON_TEXTS = ("nan", "inf", "Inf", "-NaN", "+Infinity", "INFINITY", "1.#INF", "null0", "1f", "0x1", "01")
_NO_NUMBERS_TEXTS = ("+1", ".5", "5.", "1e", "1e+", "--1", "1.2.3", "1_0", "\u0663", "1 0", "1,,0", "'1'", "")
_NO_NUMBERS = ('"1"', '""', '"NaN"', "true", "false", "null", "{}", '{"a":1}', '{"a":1,"a":[2]}', '{"[":"]"}')
_NOT_FINITE = {"nan": np.nan, "infinity": np.inf, "minus-infinity": -np.inf}
_FLOATS = ("<f4", ">f4", "<f8", ">f8")
_BROKEN_UTF_8 = {
    "latin-1": b"\xe9",
    "lone-continuation": b"\x80",
    "cut-off": b"\xe2\x82",
    "overlong": b"\xc0\x80",
    "surrogate": b"\xed\xa0\x80",
    "past-unicode": b"\xf4\x90\x80\x80",
    "ff": b"\xff",
}
_OTHER_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig")
_KEYS = {
    "plainly": '"data"',
    "by-one-escape": '"d\\u0061ta"',
    "by-escapes": '"\\u0064\\u0061\\u0074\\u0061"',
    "by-capital-digits": '"dat\\u0061"',
}


def _h1_images() -> Faults:
    return {
        key: fault
        for kind in (None, JSON, NPY, LINES, PNG, JPEG, f"{JSON}; charset=utf-8")
        for key, fault in _of(kind, 400, "EMPTY_BODY", {"nothing": b""}).items()
    }


def _h2_images() -> Faults:
    bodies = {
        "text": b"hello",
        "white-space": b" \t\r\n",
        "a-nul": b"\0",
        "cut-off": GOOD_IMAGES[:-1],
        "cut-off-in-a-number": b'{"data":[[1.',
        "cut-off-in-a-key": b'{"dat',
        "trailing-letter": GOOD_IMAGES + b" x",
        "trailing-nul": GOOD_IMAGES + b"\0",
        "trailing-bracket": GOOD_IMAGES + b"]",
        "trailing-document": GOOD_IMAGES * 2,
        "trailing-comma": b'{"data":[[[[1,]]]]}',
        "comma-behind-the-last-key": b'{"data":[],}',
        "no-colon": b'{"data" []}',
        "no-comma": b'{"data":[] "probabilities":true}',
        "single-quotes": b"{'data':[]}",
        "key-without-quotes": b"{data:[]}",
        "comment": b'{"data":[]/**/}',
        "line-comment": b'{"data":[]}//',
        "form-feed": b'\x0c{"data":[]}',
        "no-break-space": '\xa0{"data":[]}'.encode(),
        "control-character-in-a-key": b'{"da\nta":[]}',
        "unknown-escape": b'{"d\\xata":[]}',
        "half-an-escape": b'{"\\u00":[]}',
        "capital-true": b'{"data":[],"probabilities":True}',
        "form": b"data=1",
        "very-deep": b"[" * 1_000_000,
        "deep-and-closed": b'{"data":' + b"[" * 2000 + b"]" * 2000 + b"}",
        "deep-objects": b'{"data":' * 100_000,
    }
    bodies |= {f"pixel {text}": pixel(text) for text in _NO_NUMBERS_TEXTS}
    lines = {"empty-line": b"\n{}", "text": b"hello", "array-over-lines": b"[\n1\n]", "two-objects": b"{} {}\n"}
    return _of(JSON, 400, "BAD_JSON", bodies) | _of(LINES, 400, "BAD_JSON", lines) | _of(NPY, 400, "BAD_NPY", _NO_NPY)


_NO_NPY = {
    "text": b"hello world, hello",
    "magic-only": b"\x93NUMPY",
    "npz": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04N.",
    "version-0": npy(described(), version=b"\x00\x00"),
    "version-1.1": npy(described(), version=b"\x01\x01"),
    "version-9": npy(described(), version=b"\x09\x00"),
    "header-cut-off": npy(described())[:30],
    "header-of-nothing": npy(""),
    "header-of-4-gib": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "header-of-2-kib": npy(described().ljust(2048), bytes(3136)),
    "header-is-code": npy("__import__('os').system('true')\n"),
    "header-nested": npy("(" * 900),
    "header-unhashable": npy("{[]: 1}"),
    "header-not-utf-8": b"\x93NUMPY\x03\x00\x02\x00\x00\x00\xff\xfe",
    "header-with-nul": npy("{\0}"),
    "header-is-a-list": npy("[]"),
    "header-with-more": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}"),
    "header-with-less": npy("{'descr': '<f4', 'shape': ()}"),
    "digits": npy(described(shape=f"({'9' * 900},)")[:-20]),
    "negative-size": npy(described(shape="(-1, 1, 28, 28)"), bytes(3136)),
    "negative-inner-sizes": npy(described(shape="(1, 1, -28, -28)"), bytes(3136)),
    "float-size": npy(described(shape="(1.0, 1, 28, 28)"), bytes(3136)),
    "size-true": npy(described(shape="(True, 1, 28, 28)"), bytes(3136)),
    "list-shape": npy(described(shape="[1, 1, 28, 28]"), bytes(3136)),
    "order-1": npy(described(order="1"), bytes(3136)),
    "order-none": npy(described(order="None"), bytes(3136)),
    "a-byte-less": npy(described(), bytes(3135)),
    "a-byte-more": npy(described(), bytes(3137)),
    "nothing-behind-the-header": npy(described()),
    "a-batch-promised": npy(described(shape="(1024, 1, 28, 28)"), bytes(3136)),
    "another-array-behind": as_npy(IMAGE) + as_npy(IMAGE),
}


def _h3_images() -> Faults:
    bodies = {
        f"{place} {name}": body
        for name, raw in _BROKEN_UTF_8.items()
        for place, body in {
            "key": b'{"' + raw + b'":[]}',
            "text": b'{"data":"' + raw + b'"}',
            "behind": GOOD_IMAGES + raw,
        }.items()
    }
    bodies |= {
        "half-a-pair": b'{"\\ud800":1}',
        "the-other-half": b'{"\\udc00":1}',
        "a-pair-the-wrong-way-round": b'{"\\udc00\\ud800":1}',
        "half-a-pair-as-a-value": b'{"data":"\\ud800"}',
    }
    lines = {name: b'{"' + raw + b'":[]}' for name, raw in _BROKEN_UTF_8.items()}
    return _of(JSON, 400, "BAD_JSON", bodies) | _of(LINES, 400, "BAD_JSON", lines)


def _h4_images() -> Faults:
    text = GOOD_IMAGES.decode()
    bodies = {name: text.encode(name) for name in _OTHER_ENCODINGS} | {"mark-alone": b"\xef\xbb\xbf"}
    faults = _of(JSON, 400, "BAD_JSON", bodies)
    faults |= _of(LINES, 400, "BAD_JSON", {"utf-8-sig": b'\xef\xbb\xbf{"data":[]}', "utf-16": "{}".encode("utf-16")})
    for name in (*_OTHER_ENCODINGS, "utf-7"):
        faults |= _of(f"{JSON}; charset={name}", 415, "UNSUPPORTED_MEDIA_TYPE", {"encoded": text.encode(name)})
    return faults


def _h5_images() -> Faults:
    bodies = {f"{text[:12]} at {at}": pixel(text, where=at) for text in _NOT_FINITE_TEXTS for at in (0, 400, 783)}
    bodies |= {"raw": pixel("NaN", "images"), "all": b'{"data":NaN}', "behind-a-key": b'{"data":[],"x":-Infinity}'}
    arrays = {
        f"{dtype} {name} at {at}": as_npy(_with_value(IMAGE, value, dtype, at))
        for dtype in _FLOATS
        for name, value in _NOT_FINITE.items()
        for at in (0, 1567)
    }
    arrays |= {
        f"fortran {name}": as_npy(np.asfortranarray(_with_value(IMAGE, value, "<f4", 900)))
        for name, value in _NOT_FINITE.items()
    }
    # The bits of a NaN that would be signalled: 0x7f800001.
    arrays["signalling"] = as_npy(IMAGE)[:-4] + struct.pack("<I", 0x7F800001)
    # Good numbers, whose sum in the model's first layer is none.
    past = {
        "1e38": as_json({"data": [[[[1e38] * 28] * 28]]}),
        "alternating": pixel("3e38").replace(b"1,1", b"3e38,-3e38"),
    }
    return (
        _of(JSON, 400, "NOT_FINITE", bodies)
        | _of(JSON, 400, "BAD_JSON", {f"pixel {text}": pixel(text) for text in _NO_JSON_TEXTS})
        | _of(NPY, 400, "NOT_FINITE", arrays)
        | _of(JSON, 400, "OUTPUT_NOT_FINITE", past)
        | _of(NPY, 400, "OUTPUT_NOT_FINITE", {"3e38": as_npy(np.full((2, 1, 28, 28), 3e38, np.float32))})
    )


def _h8_images() -> Faults:
    bodies = {
        f"{first} and {second}": f"{{{_KEYS[first]}:[],{_KEYS[second]}:[]}}".encode()
        for first in _KEYS
        for second in _KEYS
    }
    bodies |= {
        "three": b'{"data":[],"data":[],"data":[]}',
        "images": b'{"images":[],"images":[]}',
        "probabilities": b'{"data":[],"probabilities":true,"probabilities":true}',
        "with-others-between": b'{"data":[],"probabilities":true,"data":[]}',
        "unknown": b'{"data":[],"x":1,"x":2}',
        "empty": b'{"":1,"":2}',
        "a-good-one-last": b'{"data":"x",' + GOOD_IMAGES[1:],
        "a-good-one-first": GOOD_IMAGES[:-1] + b',"data":[]}',
    }
    faults = _of(JSON, 400, "DUPLICATE_KEY", bodies)
    faults |= _of(JSON, 400, "BAD_DTYPE", {"deeper": pixel('{"a":1,"a":2}'), "instead": b'{"data":{"a":1,"a":2}}'})
    return faults | _of(LINES, 400, "DUPLICATE_KEY", {"line": b'{"data":[],"d\\u0061ta":[]}\n'})


def _h10_images() -> Faults:
    row, image = [0.5] * 28, [[[0.5] * 28] * 28]
    values = {
        "783": [[[row] * 27 + [[0.5] * 27]]],
        "785": [[[row] * 27 + [[0.5] * 29]]],
        "ragged-with-the-right-count": [[[row] * 26 + [[0.5] * 27, [0.5] * 29]]],
        "27-rows": [[[row] * 27]],
        "29-rows": [[[row] * 29]],
        "flat": [0.5] * 784,
        "flat-rows": [[0.5] * 784],
        "no-channel": [[row] * 28],
        "two-channels": [image * 2],
        "channels-last": [[[[0.5]] * 28] * 28],
        "rank-5": [[image]],
        "rank-9": [[[[[[image]]]]]],
        "pixels-beside-rows": [[[row] * 27 + [0.5] * 28]],
        "rows-beside-pixels": [[[row] * 27 + [[0.5] * 27 + [[0.5]]]]],
        "second-image-differs": [image, [[row] * 27]],
        "second-image-is-a-number": [image, 1],
        "an-empty-image": [[]],
        "an-empty-image-beside-a-good-one": [image, []],
        "empty-channel": [[[]]],
        "rows-of-nothing": [[[[]] * 28]],
        "one-row-of-nothing": [[[row] * 27 + [[]]]],
        "a-row-too-many-of-nothing": [[[row] * 28 + [[]]]],
        "a-number": 5,
    }
    bodies = {name: as_json({"data": value}) for name, value in values.items()}
    bodies |= {f"array-as-pixel {text}": pixel(text) for text in ("[1]", "[]", "[],1", "[[1]]", "1,[]")}
    raw = {"raw-flat": as_json({"images": [[1] * 784]}), "raw-deep": as_json({"images": [[[row] * 28]] * 2 + [[]]})}
    arrays: dict[str, Any] = {
        "scalar": np.float32(1),
        "one-dimension": np.zeros(784, np.float32),
        "flat": np.zeros((1, 784), np.float32),
        "27-rows": np.zeros((1, 1, 27, 28), np.float32),
        "without-channel": np.zeros((1, 28, 28), np.float32),
        "two-channels": np.zeros((1, 2, 28, 28), np.float32),
        "rank-5": np.zeros((1, 1, 1, 28, 28), np.float32),
        "empty-rows": np.zeros((1, 1, 0, 28), np.float32),
        "raw-27-rows": np.zeros((1, 27, 28), np.uint8),
        "raw-three-channels": np.zeros((1, 3, 28, 28), np.uint8),
    }
    headers = {"huge-sizes-promised": npy(described(shape="(1, 1, 9999999999, 9999999999)"), bytes(3136))}
    one = {"batch": as_json({"data": [image]}), "no-channel": as_json({"data": [row] * 28}), "number": b'{"data":1}'}
    return (
        _of(JSON, 400, "BAD_SHAPE", bodies | raw)
        | _of(NPY, 400, "BAD_SHAPE", {name: as_npy(array) for name, array in arrays.items()} | headers)
        | _of(LINES, 400, "BAD_SHAPE", one)
        | _of(PNG, 400, "BAD_SHAPE", {"27-rows": as_image(GREY[:27]), "no-pixels": png(0, 0)})
        | _of(JPEG, 400, "BAD_SHAPE", {"one-pixel": as_image(GREY[:1, :1], "JPEG")})
    )


def _h11_images() -> Faults:
    bodies = {f"pixel {text} at {at}": pixel(text, where=at) for text in _NO_NUMBERS for at in (0, 783)}
    bodies |= {f"instead {text}": f'{{"data":{text}}}'.encode() for text in _NO_NUMBERS}
    bodies |= {f"raw {text}": pixel(text, "images") for text in _NO_NUMBERS}
    bodies |= {
        "probabilities-1": b'{"data":[],"probabilities":1}',
        "probabilities-null": b'{"data":[],"probabilities":null}',
        "probabilities-text": b'{"data":[],"probabilities":"true"}',
        "probabilities-array": b'{"data":[],"probabilities":[true]}',
    }
    shape = (1, 1, 28, 28)
    kinds = ("?", "i1", "<i2", "<i4", "<i8", ">i8", "<u2", "<u4", "<u8", "<f2", "<f16", "<c8", "<M8[s]", "<m8[s]", "S4")
    arrays = {kind: as_npy(np.zeros(shape, kind)) for kind in (*kinds, "<U4", "V4")}
    arrays |= {
        "objects": as_npy(np.array([{}], dtype=object)),
        "objects-declared": npy(described("'|O'"), bytes(3136)),
        "structured": as_npy(np.zeros(1, [("a", "<f4")])),
        "unknown": npy(described("'<f3'"), bytes(3136)),
        "descr-a-number": npy(described("4"), bytes(3136)),
        "descr-a-list": npy(described("['<f4']"), bytes(3136)),
        "native-order": npy(described("'=f4'"), bytes(3136)),
    }
    return _of(JSON, 400, "BAD_DTYPE", bodies) | _of(NPY, 400, "BAD_DTYPE", arrays)


def _h12_images() -> Faults:
    past = ("1e39", "-1e39", "3.5e38", "-3.5e38", "3.4028236e38", "1e308", f"{2**64}", f"{-(2**63) - 1}", "9" * 5000)
    bodies = {f"pixel {text[:20]} at {at}": pixel(text, where=at) for text in past for at in (0, 783)}
    bodies |= {f"raw {text}": pixel(text, "images") for text in ("256", "-1", "255.001", "-1e-30", "1e30")}
    arrays = {
        f"{dtype} {value}": as_npy(_with_value(IMAGE, value, dtype, 5))
        for dtype in ("<f8", ">f8")
        for value in (1e39, -1e39, 3.4028236e38)
    }
    return _of(JSON, 400, "OUT_OF_RANGE", bodies) | _of(NPY, 400, "OUT_OF_RANGE", arrays)


def _h13_images() -> Faults:
    arrays = {str(shape): as_npy(np.zeros(shape, np.float32)) for shape in ((0, 1, 28, 28), (0,), (0, 784))}
    arrays["raw"] = as_npy(np.zeros((0, 28, 28), np.uint8))
    return (
        _of(JSON, 400, "EMPTY_BATCH", {"data": b'{"data":[]}', "images": b'{"images":[]}'})
        | _of(NPY, 400, "EMPTY_BATCH", arrays)
        | _of(LINES, 400, "EMPTY_BATCH", {"newline": b"\n", "white-space": b" \r\n", "newlines": b"\n\n"})
    )


def _h14_images() -> Faults:
    one_more = MAX_INSTANCES + 1
    return (
        _of(JSON, 413, "TOO_MANY_INSTANCES", {"arrays": b'{"data":[' + b"[]," * MAX_INSTANCES + b"[]]}"})
        | _of(NPY, 413, "TOO_MANY_INSTANCES", {"raw": as_npy(np.zeros((one_more, 28, 28), np.uint8))})
        | _of(NPY, 413, "TOO_MANY_INSTANCES", {"promised": npy(described(shape=f"({2**70}, 1, 28, 28)"))})
        | _of(LINES, 413, "TOO_MANY_INSTANCES", {"lines": b"{}\n" * one_more})
    )


def _h15_images() -> Faults:
    return {
        f"{kind} {size}": Fault(413, "BODY_TOO_LARGE", body.ljust(size), (("Content-Type", kind),))
        for kind, body in ((JSON, GOOD_IMAGES), (NPY, as_npy(IMAGE)), (PNG, GOOD_PNG), (LINES, b"{}"))
        for size in (MAX_BODY_BYTES + 1, MAX_BODY_BYTES + 65536)
    }


def _h22_images() -> Faults:
    kinds = (
        "text/xml",
        "text/plain",
        "text/json",
        "application/x-npy-pickle",
        "application/x-npz",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/ld+json",
        "application/x-recordio-protobuf",
        "image/gif",
        "image/*",
        "*/*",
        "json",
        ";",
        "application/json/x",
        '"application/json"',
        "application /json",
        "applicationjson",
        f"{JSON}, {JSON}",
        f"{JSON}\xa0",
        "application/j\xe9son",
        "text/csv",
        "text/csv; header=present",
        f"{JSON}; charset=utf-7",
        f"{JSON}; charset=latin-1",
        f"{JSON}; charset=",
        f"{JSON}; charset",
        f"{JSON}; CHARSET=UTF-16",
        f'{JSON}; charset="utf-16"',
        f"{JSON}; charset=utf-8; charset=latin-1",
        f"{JSON}; x=y; charset=ebcdic",
    )
    faults = {
        repr(kind): Fault(415, "UNSUPPORTED_MEDIA_TYPE", GOOD_IMAGES, (("Content-Type", kind),)) for kind in kinds
    }
    twice = (("Content-Type", JSON), ("Content-Type", NPY))
    return faults | {"twice": Fault(415, "UNSUPPORTED_MEDIA_TYPE", GOOD_IMAGES, twice)}


def _h23_images() -> Faults:
    accepted = (
        "text/xml",
        "text/html, image/png",
        "image/*",
        "json",
        "*",
        "*/json",
        f"{JSON};q=0",
        f"{JSON}; q=0.000",
        f"{JSON};Q=0",
        f"{JSON};q=nonsense",
        f"{JSON};q=nan",
        f"{JSON};q=-1",
        f"{JSON};q=2",
        f"{JSON};q=1.5",
        f"{JSON};q=",
        f"{JSON};q=1e0",
        f"{JSON}\xa0",
        "*/*;q=0",
        f"*/*;q=0, {NPY};q=0.0",
        f"{JSON};q=0, text/xml",
        "application/*;q=0",
    )
    return {
        repr(accept): Fault(406, "NOT_ACCEPTABLE", GOOD_IMAGES, (("Content-Type", JSON), ("Accept", accept)))
        for accept in accepted
    } | {
        "twice": Fault(406, "NOT_ACCEPTABLE", GOOD_IMAGES, (("Accept", "text/xml"), ("Accept", f"{JSON};q=0"))),
        "probabilities-as-npy": Fault(400, "BAD_FIELD", GOOD_IMAGES, (("Accept", NPY),)),
        "probabilities-as-csv": Fault(400, "BAD_FIELD", GOOD_IMAGES, (("Accept", CSV),)),
    }


def _h25_images() -> Faults:
    bomb = zlib.compress(bytes(50_000_000))
    cuts = {f"cut-at-{size}": GOOD_PNG[:size] for size in (1, 8, 20, 33, 60, len(GOOD_PNG) - 12, len(GOOD_PNG) - 1)}
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    exif = Image.Exif()
    exif[0x0112] = 6
    archive = _zip()
    pngs = cuts | {
        "and-zip": GOOD_PNG + archive,
        "and-html": GOOD_PNG + b"<script>alert(1)</script>",
        "and-png": GOOD_PNG * 2,
        "zip-first": archive + GOOD_PNG,
        "is-jpeg": GOOD_JPEG,
        "is-gif": as_image(GREY, "GIF"),
        "is-webp": b"RIFF\0\0\0\0WEBPVP8 ",
        "is-svg": b"<svg/>",
        "animated": as_image(frames[0], save_all=True, append_images=frames[1:]),
        "animation-chunk": png(28, 28, before=chunk(b"acTL", bytes(8))),
        "alpha": as_image(np.dstack([np.stack([GREY] * 3, axis=2), GREY])),
        "grey-alpha": as_image(Image.fromarray(GREY).convert("LA")),
        "transparent-grey": as_image(GREY, transparency=0),
        "16-bit": as_image(Image.fromarray(GREY.astype(np.uint16) * 257)),
        "depth-9": png(28, 28, (9, 0, 0, 0, 0)),
        "colour-9": png(28, 28, (8, 9, 0, 0, 0)),
        "compression-9": png(28, 28, (8, 0, 9, 0, 0)),
        "filter-9": png(28, 28, (8, 0, 0, 9, 0)),
        "interlace-9": png(28, 28, (8, 0, 0, 0, 9)),
        "palette-missing": png(28, 28, (8, 3, 0, 0, 0)),
        "turned": as_image(GREY, exif=exif),
        "flipped-bit": GOOD_PNG[:60] + bytes([GOOD_PNG[60] ^ 1]) + GOOD_PNG[61:],
        "two-headers": png(28, 28, before=chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0))),
        "text-bomb": png(28, 28, before=chunk(b"zTXt", b"a\0\0" + bomb)),
        "profile-bomb": png(28, 28, before=chunk(b"iCCP", b"a\0\0" + bomb)),
        "international-text-bomb": png(28, 28, before=chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)),
        "pieces": png(28, 28, before=chunk(b"tEXt", b"") * MAX_PIECES),
        "huge-chunk": GOOD_PNG[:33] + b"\xff\xff\xff\xffIDAT",
        "taken-for-utf-8": GOOD_PNG.decode("utf-8", "replace").encode(),
        "taken-for-latin-1": GOOD_PNG.decode("latin-1").encode(),
    }
    jpegs = {f"cut-at-{size}": GOOD_JPEG[:size] for size in (2, 3, 20, 100, 300, len(GOOD_JPEG) - 2)}
    jpegs |= {
        "and-zip": GOOD_JPEG + archive,
        "and-jpeg": GOOD_JPEG * 2,
        "is-png": GOOD_PNG,
        "nothing-in-it": b"\xff\xd8\xff\xd9",
        "no-pixels": jpeg(28, 28),
        "cmyk": as_image(Image.fromarray(GREY).convert("CMYK"), "JPEG"),
        "turned": as_image(GREY, "JPEG", exif=exif),
        "lossless": b"\xff\xd8\xff\xc3" + struct.pack(">HBHHB", 11, 8, 28, 28, 1) + b"\1\x11\0\xff\xd9",
        "pieces": jpeg(28, 28, before=b"\xff\xfe\0\2" * MAX_PIECES),
        "taken-for-utf-8": GOOD_JPEG.decode("utf-8", "replace").encode(),
    }
    enormous = ((30_000, 30_000), (1, 2**31 - 1), (2**31, 2**31))
    return (
        _of(PNG, 400, "BAD_IMAGE", pngs)
        | _of(JPEG, 400, "BAD_IMAGE", jpegs)
        | _of(PNG, 413, "IMAGE_TOO_LARGE", {f"{rows}x{columns}": png(rows, columns) for rows, columns in enormous})
        | _of(JPEG, 413, "IMAGE_TOO_LARGE", {"30000x30000": jpeg(30_000, 30_000), "most": jpeg(65535, 65535)})
    )


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("inference.py", "print()")
    return stream.getvalue()


IMAGES: dict[str, Faults] = {
    "h1": _h1_images(),
    "h2": _h2_images(),
    "h3": _h3_images(),
    "h4": _h4_images(),
    "h5": _h5_images(),
    "h8": _h8_images(),
    "h10": _h10_images(),
    "h11": _h11_images(),
    "h12": _h12_images(),
    "h13": _h13_images(),
    "h14": _h14_images(),
    "h15": _h15_images(),
    "h22": _h22_images(),
    "h23": _h23_images(),
    "h25": _h25_images(),
}

_ROW = b"1,2,3,4\n"
TABLES: dict[str, Faults] = {
    "h1": _of(CSV, 400, "EMPTY_BODY", {"nothing": b""}),
    "h2": _of(
        CSV,
        400,
        "BAD_CSV",
        {
            f"value {text}": f"1,2,3,{text}".encode()
            for text in _NO_NUMBERS_TEXTS
            if text not in ("+1", ".5", "5.", "1,,0")
        }
        | {
            "header": b"a,b,c,d\n" + _ROW,
            "quotes": b'"1",2,3,4',
            "a-space": b"1, 2,3,4",
            "a-nul": b"1,2,3,4\0",
            "lone-return": b"1\r,2,3,4",
        },
    ),
    "h3": _of(CSV, 400, "BAD_CSV", {name: raw + b",2,3,4\n" for name, raw in _BROKEN_UTF_8.items()}),
    "h4": _of(CSV, 400, "BAD_CSV", {"utf-8-sig": b"\xef\xbb\xbf" + _ROW})
    | _of(CSV, 400, "BAD_CSV", {name: b"1,2,3,4".decode().encode(name) for name in ("utf-16", "utf-32")}),
    "h5": _of(
        CSV,
        400,
        "NOT_FINITE",
        {
            text: f"1,2,3,4\n1,{text},3,4\n".encode()
            for text in ("nan", "NaN", "-nan", "inf", "-Infinity", "1e400", "1e999")
        },
    )
    | _of(LINES, 400, "NOT_FINITE", {text[:12]: cell(text) for text in _NOT_FINITE_TEXTS}),
    "h8": _of(LINES, 400, "DUPLICATE_KEY", {key: f'{{"data":1,{text}:1}}\n'.encode() for key, text in _KEYS.items()}),
    "h10": _of(
        CSV,
        400,
        "BAD_SHAPE",
        {
            "a-value-less": b"1,2,3",
            "a-value-more": b"1,2,3,4,5",
            "a-comma-more": b"1,2,3,4,",
            "blank-line": _ROW + b"\n" + _ROW,
            "second-line": _ROW + b"1,2,3\n",
            "semicolons": b"1;2;3;4",
        },
    )
    | _of(LINES, 400, "BAD_SHAPE", {text: cell(text) for text in ("[4]", "4,5", "[]", "4,[]")}),
    "h11": _of(LINES, 400, "BAD_DTYPE", {text: cell(text) for text in _NO_NUMBERS})
    | _of(JSON, 400, "BAD_FIELD", {"images": b'{"images":[[1,2,3,4]]}'})
    | _of(NPY, 400, "BAD_FIELD", {"images": as_npy(np.zeros((1, 4), np.uint8))}),
    "h12": _of(CSV, 400, "OUT_OF_RANGE", {text: f"1,2,3,{text}".encode() for text in ("1e39", "-1e39", "9" * 39)})
    | _of(LINES, 400, "OUT_OF_RANGE", {text[:20]: cell(text) for text in ("1e39", f"{2**64}", "9" * 5000)}),
    "h13": _of(CSV, 400, "EMPTY_BATCH", {"newline": b"\n", "windows": b"\r\n", "newlines": b"\n\n"}),
    "h14": _of(
        CSV, 413, "TOO_MANY_INSTANCES", {"rows": _ROW * (MAX_INSTANCES + 1), "newlines": b"1" + b"\n" * 1_000_000}
    ),
    "h22": _of(PNG, 415, "UNSUPPORTED_MEDIA_TYPE", {"image": GOOD_PNG})
    | _of(JPEG, 415, "UNSUPPORTED_MEDIA_TYPE", {"image": GOOD_JPEG})
    | _of(f"{CSV}; charset=utf-16", 415, "UNSUPPORTED_MEDIA_TYPE", {"rows": _ROW}),
}
