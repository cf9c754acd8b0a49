"""Bytes to a batch and an answer to bytes, one function for each media type. Nothing here ever unpickles.

Decoding is strict, because ONNX Runtime is not: it answers NaN for NaN. A number is refused unless it is finite and stays so
as float32, and an array unless it has exactly the model's shape.

JSON is read by simdjson, which has four habits that this module makes good:

- `Array.as_buffer` flattens, so [[1], 2] and [1, [2]] look alike. One comparison proves the shape of a body that is as it
  should be (`_read_plain`); of any other one `_has_shape` and the count of brackets tell what is wrong with it.
- A parser refuses to parse while a proxy of its last document lives, and the traceback of an exception keeps proxies alive:
  a thread puts its parser back only after a success, so that one bad request never makes the next one fail.
- Its errors have no position, and one name for NaN and for a missing comma: after a failure, and only then,
  `_why_not_json` asks the standard library.
- It skips a byte order mark, which JSON does not have (RFC 8259, section 8.1).
"""

import ast
import io
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import simdjson
from numpy.typing import NDArray

from model_code.inference.contract import Signature
from model_code.inference.errors import (
    BadCsv,
    BadDtype,
    BadField,
    BadJson,
    BadNpy,
    BadShape,
    DuplicateKey,
    EmptyBatch,
    MalformedRequest,
    NotAcceptable,
    NotFinite,
    OutOfRange,
    TooManyInstances,
    UnsupportedMediaType,
)
from model_code.inference.preprocess import normalise

JSON = "application/json"
NPY = "application/x-npy"
CSV = "text/csv"
JSON_LINES = "application/jsonlines"  # as SageMaker calls it
PNG = "image/png"
JPEG = "image/jpeg"

# A parser keeps buffers of about ten times the largest body it has seen; after a larger one than this it is dropped.
_KEEP_PARSER_BYTES = 512 * 1024
_MAX_NPY_HEADER_BYTES = 1024
# Without these bytes only the structure of a body is left, and in true, false and the keys a letter or the other less.
_NUMBERS_AND_SPACE = b"0123456789+-.eE \t\r\n"
_NPY_DTYPES = ("<f4", ">f4", "<f8", ">f8", "|u1")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# float() takes more than numbers: spaces around them, underscores in them, nan, inf. Without those letters it is strict.
_CSV_CHARACTERS = b"0123456789+-.eE,"
_CSV_SPECIAL = re.compile(r'[",\r\n]')
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_least, _largest = np.minimum.reduce, np.maximum.reduce
_QUALITY = re.compile(r"0(\.[0-9]*)?|1(\.0*)?")  # RFC 9110, section 12.4.2, and as many digits as a client likes
_BLANKS = " \t"  # what may stand around the parts of a header; str.strip would take a no-break space for one

_idle = threading.local()
_to_json = json.JSONEncoder(allow_nan=False).encode

Shape = tuple[int | None, ...]


class Batch(NamedTuple):
    """What a decoder found: normalised inputs (n, ...), and whether the caller wants probabilities too."""

    inputs: NDArray[np.float32]
    probabilities: bool


class Answer(NamedTuple):
    """What an encoder writes: n labels, and the probabilities (n, classes) where they were asked for."""

    labels: list[int | str]
    probabilities: NDArray[np.float32] | None


class NpyHeader(NamedTuple):
    """How the data of a .npy file is to be read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]


# A body, what the model wants, and how many instances it may hold at most.
Decoder = Callable[[bytes, Signature, int], Batch]
Encoder = Callable[[Answer, Signature], bytes]


@lru_cache(maxsize=64)
def find_decoder(content_type: str | None) -> Decoder:
    """The decoder for a Content-Type header; a body without one is read as JSON. Raises UnsupportedMediaType."""
    media_type, *parameters = (part.strip(_BLANKS).lower() for part in (content_type or JSON).split(";"))
    pairs = (parameter.partition("=") for parameter in parameters)
    charsets = {value.strip(' "') for name, _, value in pairs if name.strip(_BLANKS) == "charset"}
    if media_type not in DECODERS or charsets - {"utf-8"}:
        raise UnsupportedMediaType(f"Content-Type: supported are {', '.join(DECODERS)}, with no charset but utf-8")
    return DECODERS[media_type]


@lru_cache(maxsize=64)
def find_encoder(accept: str | None) -> tuple[str, Encoder]:
    """Media type and encoder that an Accept header prefers (RFC 9110, section 12.5.1); absent means any.

    Where the caller has no preference, the first of ENCODERS it is. Raises NotAcceptable.
    """
    # An element of the list may be empty (section 5.6.1), and a list of nothing but such says as much as none.
    items = [item for item in (accept or "").split(",") if item.strip(_BLANKS)]
    ranges = dict(map(_media_range, items or ["*/*"]))
    media_type = max(ENCODERS, key=lambda candidate: _quality(candidate, ranges))
    if _quality(media_type, ranges) <= 0:
        raise NotAcceptable(f"Accept: supported are {', '.join(ENCODERS)}")
    return media_type, ENCODERS[media_type]


def _media_range(item: str) -> tuple[str, float]:
    """`application/json;q=0.5` as ("application/json", 0.5); a weight that is none excludes the type."""
    media_range, *parameters = (part.strip(_BLANKS).lower() for part in item.split(";"))
    weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")] or ["1"]
    return media_range, float(weights[0]) if _QUALITY.fullmatch(weights[0]) else 0.0


def _quality(media_type: str, ranges: Mapping[str, float]) -> float:
    """The most specific range decides, so that `application/json;q=0, */*` excludes JSON."""
    for candidate in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if candidate in ranges:
            return ranges[candidate]
    return 0.0


def _decode_json(body: bytes, signature: Signature, most: int) -> Batch:
    """{"data": normalised floats} or {"images": raw 0 to 255}, and optionally "probabilities": true or false."""
    return _parse(body, signature, most)


def _decode_json_lines(body: bytes, signature: Signature, most: int) -> Batch:
    """The same, an object a line: "data" or "images" holds one instance, without the dimension of the batch.

    Each line is a record of its own to whoever split or joins them, so that all of them ask for the same answer.
    """
    lines = body.removesuffix(b"\n").split(b"\n")
    _check_instances(len(lines) if body.strip() else 0, most)
    batches = [_decode_line(number, line, signature) for number, line in enumerate(lines, start=1)]
    probabilities = {batch.probabilities for batch in batches}
    if len(probabilities) > 1:
        raise BadField("probabilities: either on all lines or on none")
    return Batch(np.concatenate([batch.inputs for batch in batches]), probabilities.pop())


def _decode_line(number: int, line: bytes, signature: Signature) -> Batch:
    try:
        return _parse(line, signature, None)
    except MalformedRequest as error:
        raise type(error)(f"line {number}: {error}") from error


def _parse(body: bytes, signature: Signature, most: int | None) -> Batch:
    """`most` instances at most, or exactly one without the dimension of the batch where it is None."""
    if body.startswith(_BYTE_ORDER_MARK):
        raise BadJson("the body starts with a byte order mark; JSON is UTF-8 without one")
    parser = _idle.__dict__.pop("parser", None) or simdjson.Parser()
    try:
        document = parser.parse(body)
    except (ValueError, RuntimeError) as error:
        raise _why_not_json(body) from error
    batch = _read_plain(document, body, signature, most) or _read_document(document, body, signature, most)
    del document
    if len(body) <= _KEEP_PARSER_BYTES:
        _idle.parser = parser
    return batch


def _read_plain(document: Any, body: bytes, signature: Signature, most: int | None) -> Batch | None:
    """What nearly every body holds; None for one that `_read_document` has to look at, mostly because something is wrong.

    The body is JSON, so that a number or nothing stands in every place between brackets and commas, and each number in a
    place of its own: the structure and as many numbers as places prove all of the shape.
    """
    structure = body.translate(None, _NUMBERS_AND_SPACE)
    start, end = structure.find(b"["), structure.rfind(b"]") + 1
    frame = _FRAMES.get(structure[:start] + structure[end:])
    if frame is None:
        return None
    key, asks = frame
    # All texts are in the frame: where these keys are found they are all there is, each once.
    try:
        value = document[key]
        probabilities = document["probabilities"] if asks else False
    except KeyError:
        return None
    sizes = _match(structure[start:end], _known_shapes(key, signature), most)
    if sizes is None:
        return None
    numbers = np.frombuffer(value.as_buffer(of_type="d"), np.float64)
    if len(numbers) != math.prod(sizes):
        return None
    return Batch(_to_inputs(key, numbers, sizes, signature), probabilities)


def _frames(key: str) -> Iterator[str]:
    yield f'{{"{key}":}}'
    for wanted in ("true", "false"):
        yield f'{{"{key}":,"probabilities":{wanted}}}'
        yield f'{{"probabilities":{wanted},"{key}":}}'


# What is left of the structure of a body without its arrays: the key of the numbers, and whether there is another one.
_FRAMES = {
    frame.encode().translate(None, _NUMBERS_AND_SPACE): (key, "," in frame)
    for key in ("data", "images")
    for frame in _frames(key)
}


def _match(structure: bytes, shapes: Sequence[Shape], most: int | None) -> tuple[int, ...] | None:
    """The sizes, that of the batch first, for which nested arrays have this structure."""
    for shape in shapes:
        instance = _brackets(shape)
        count = len(structure) // (len(instance) + 1)
        if most is None:
            if structure == instance:
                return (1, *_sizes(shape))
        elif 0 < count <= most and structure[1:-1] == b",".join([instance] * count):
            return (count, *_sizes(shape))
    return None


@lru_cache(maxsize=16)
def _brackets(shape: Shape) -> bytes:
    """One instance of this shape as nested arrays without their numbers: [,,] for (n, 3)."""
    text = b""
    for size in reversed(_sizes(shape)):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _read_document(document: Any, body: bytes, signature: Signature, most: int | None) -> Batch:
    """`most` instances at most, or exactly one without the dimension of the batch where it is None."""
    if not isinstance(document, simdjson.Object):
        raise BadField("the body is an object with data (normalised) or images (raw, 0 to 255)")
    keys = list(document.keys())
    if len(set(keys)) != len(keys):
        raise DuplicateKey("a key of the body appears twice")
    if not set(keys) <= {"data", "images", "probabilities"}:
        raise BadField("unknown key; the keys are data or images, and probabilities")
    if ("data" in keys) == ("images" in keys):
        raise BadField("exactly one of data (normalised) and images (raw, 0 to 255) is needed")
    probabilities = document["probabilities"] if "probabilities" in keys else False
    if not isinstance(probabilities, bool):
        raise BadDtype("probabilities: true or false")
    key = "data" if "data" in keys else "images"
    numbers = _read_numbers(key, document[key], body, _shapes(key, signature), most)
    return Batch(_to_inputs(key, numbers.ravel(), numbers.shape, signature), probabilities)


def _to_inputs(
    key: str, numbers: NDArray[np.float64], sizes: tuple[int, ...], signature: Signature
) -> NDArray[np.float32]:
    if key == "data":
        return _to_float32(key, numbers).reshape(sizes)
    if numbers.min() < 0 or numbers.max() > 255:
        raise OutOfRange("images: raw pixels are 0 to 255")
    return _normalise_images(numbers.reshape(sizes), signature)


def _read_numbers(name: str, value: Any, body: bytes, shapes: Sequence[Shape], most: int | None) -> NDArray[np.float64]:
    """The numbers below one key as (n, ...), in the one of `shapes` that has the value's rank; `most` as above."""
    if most is None:
        shapes = [shape[1:] for shape in shapes]
    if not isinstance(value, simdjson.Array):
        raise _bad_shape(name, shapes) if type(value) in (int, float) else _bad_dtype(name)
    if most is not None:
        _check_instances(len(value), most)
    try:
        numbers = np.frombuffer(value.as_buffer(of_type="d"), np.float64)
    except TypeError as error:
        raise _bad_dtype(name) from error
    sizes = _find_shape(name, _rank(value), shapes)
    if most is not None:
        sizes = (len(value), *sizes)
    # Every array above the innermost ones has been seen to hold arrays of the right length. The keys hold no bracket, so
    # that no array can hide among the numbers once the body has as many brackets as the shape has arrays.
    if not _has_shape(value, sizes) or _count_brackets(body) != _count_arrays(sizes):
        raise _bad_shape(name, shapes)
    return numbers.reshape(sizes if most is not None else (1, *sizes))


def _rank(value: Any) -> int:
    rank = 0
    while isinstance(value, simdjson.Array):
        value = value[0] if len(value) else None
        rank += 1
    return rank


def _has_shape(array: Any, sizes: tuple[int, ...]) -> bool:
    """Whether `array`, of arrays and numbers alone, nests arrays of exactly these lengths.

    What the innermost ones hold is not looked at. The loops run in C: a batch has thousands of rows.
    """
    level: Iterable[Any] = [array]
    try:
        for size in sizes[:-1]:
            level = list(level)
            if set(map(len, level)) != {size}:
                return False
            level = chain.from_iterable(level)
        # Most arrays are innermost ones: none is kept, so that each is made where the one before it was.
        return set(map(len, level)) == {sizes[-1]}
    # A number stands where an array should: it has no length.
    except TypeError:
        return False


def _count_brackets(body: bytes) -> int:
    # bytes.count takes five times as long where there is a bracket every few hundred bytes.
    return int(np.count_nonzero(np.frombuffer(body, np.uint8) == ord("[")))


def _count_arrays(sizes: tuple[int, ...]) -> int:
    """How many arrays nested JSON of this shape has: 1 + n * (1 + channels * (1 + rows))."""
    count = 1
    for size in reversed(sizes[:-1]):
        count = 1 + size * count
    return count


def _why_not_json(body: bytes) -> MalformedRequest:
    """What exactly simdjson refused, with the position."""
    try:
        json.loads(
            body.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_refuse_infinite,
            parse_int=_refuse_large,
        )
    except MalformedRequest as error:
        return error
    except UnicodeDecodeError as error:
        return BadJson(f"the body is not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadJson(f"the body is not JSON at character {error.pos}: {error.msg}")
    except RecursionError:
        return BadJson("the body is nested too deeply")
    return BadJson("the body is nested more than 1024 levels deep, or a text in it has half a surrogate pair")


def _refuse_constant(name: str) -> NoReturn:
    raise NotFinite(f"{name} is no number in JSON")


def _refuse_infinite(text: str) -> None:
    if math.isinf(float(text)):
        raise NotFinite("a number is too large for float64")


def _refuse_large(text: str) -> None:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise OutOfRange("a whole number does not fit 64 bits; write it with an exponent or a decimal point")


def _decode_npy(body: bytes, signature: Signature, most: int) -> Batch:
    """An array as numpy.save writes it: float32 or float64 is normalised, uint8 is raw. Fortran order is fine."""
    header_end = _find_header_end(body)
    header = _read_npy_header(body[:header_end])
    shape, raw = header.shape, header.dtype == np.uint8
    shapes = _shapes("images" if raw else "data", signature)
    if not shape:
        raise _bad_shape("npy", shapes)
    _check_instances(shape[0], most)
    sizes = (shape[0], *_find_shape("npy", len(shape), shapes))
    if shape != sizes:
        raise _bad_shape("npy", shapes)
    size = math.prod(sizes) * header.dtype.itemsize
    if len(body) - header_end != size:
        raise BadNpy(f"the header promises {size} bytes, {len(body) - header_end} follow it")
    values = np.frombuffer(body, header.dtype, offset=header_end).reshape(sizes, order=header.order)
    inputs = _normalise_images(values, signature) if raw else _to_float32("npy", values)
    return Batch(np.ascontiguousarray(inputs), probabilities=False)


def _find_header_end(body: bytes) -> int:
    """Where the header ends and the data starts (numpy.lib.format)."""
    if body[:6] != b"\x93NUMPY" or body[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise BadNpy("the body does not start like a .npy file of version 1, 2 or 3")
    start = _header_start(body)
    end = start + int.from_bytes(body[8:start], "little")
    if not start < end <= min(len(body), _MAX_NPY_HEADER_BYTES):
        raise BadNpy(f"the header ends at byte {end} of {len(body)}; at most {_MAX_NPY_HEADER_BYTES} are read")
    return end


def _header_start(body: bytes) -> int:
    return 10 if body[6] == 1 else 12


# Python's parser takes longer than everything else here, and a caller's next array mostly has the same header.
@lru_cache(maxsize=64)
def _read_npy_header(raw: bytes) -> NpyHeader:
    """What the first bytes of a body say, up to the end of the header."""
    try:
        header = ast.literal_eval(raw[_header_start(raw) :].decode("utf-8"))
    # What it raises for text that is no literal, as its documentation lists it.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise BadNpy("the header is no Python literal") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise BadNpy("the header has exactly the keys descr, fortran_order and shape")
    shape = header["shape"]
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise BadNpy("the header's shape is a tuple of whole numbers, 0 or more")
    if type(header["fortran_order"]) is not bool:
        raise BadNpy("the header's fortran_order is True or False")
    if header["descr"] not in _NPY_DTYPES:
        raise BadDtype("npy: float32 and float64 (normalised) and uint8 (raw) are supported")
    return NpyHeader(np.dtype(header["descr"]), shape, "F" if header["fortran_order"] else "C")


def _decode_csv(body: bytes, signature: Signature, most: int) -> Batch:
    """One instance a line, its features as numbers with commas between: no header, no quotes, no spaces; LF or CRLF."""
    shape = signature.input.shape
    if len(shape) != 2:
        raise UnsupportedMediaType(f"Content-Type: {CSV} is for models of tables; this one takes {JSON} and {NPY}")
    if body.startswith(_BYTE_ORDER_MARK):
        raise BadCsv("the body starts with a byte order mark; send UTF-8 without one")
    body = body.removesuffix(b"\n")
    _check_instances(body.count(b"\n") + 1 if body.strip() else 0, most)
    rows = [row.removesuffix(b"\r") for row in body.split(b"\n")]
    for number, row in enumerate(rows, start=1):
        if row.count(b",") != _sizes(shape)[0] - 1:
            raise BadShape(f"csv: line {number}: {row.count(b',') + 1} values; expected {_sizes(shape)[0]}")
    cells = b",".join(rows)
    if cells.translate(None, _CSV_CHARACTERS):
        raise _why_not_csv(rows)
    try:
        values = np.array(list(map(float, cells.split(b",")))).reshape(len(rows), -1)
    except ValueError as error:
        raise _why_not_csv(rows) from error
    return Batch(_to_float32("csv", values), probabilities=False)


def _why_not_csv(rows: Sequence[bytes]) -> MalformedRequest:
    """The first place where there is no number."""
    line, column, cell = next(
        (line, column, cell)
        for line, row in enumerate(rows, start=1)
        for column, cell in enumerate(row.split(b","), start=1)
        if not _is_number(cell)
    )
    if cell.lower().lstrip(b"+-") in (b"nan", b"inf", b"infinity"):
        return NotFinite(f"csv: line {line}, value {column}: NaN and infinity are not allowed")
    return BadCsv(f"csv: line {line}, value {column}: not a number like 5.1 or 1e-3; no header, text, quotes or spaces")


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return not cell.translate(None, _CSV_CHARACTERS)


def _decode_png(body: bytes, signature: Signature, most: int) -> Batch:
    """One image, one instance; `images` says what of the format is accepted."""
    # Not at the top: a cold start need not wait for what the first image needs.
    from model_code.inference.images import read_png

    return _decode_image(PNG, read_png, body, signature)


def _decode_jpeg(body: bytes, signature: Signature, most: int) -> Batch:
    from model_code.inference.images import read_jpeg

    return _decode_image(JPEG, read_jpeg, body, signature)


def _decode_image(
    media_type: str,
    read: Callable[[bytes, int, int, int], NDArray[np.uint8]],
    body: bytes,
    signature: Signature,
) -> Batch:
    sizes = _sizes(signature.input.shape)
    if len(sizes) != 3 or sizes[0] not in (1, 3):
        raise UnsupportedMediaType(
            f"Content-Type: {media_type} is for models of images with one or three channels; this one takes inputs of shape "
            f"{_allowed([signature.input.shape])} in another type"
        )
    channels, rows, columns = sizes
    pixels = read(body, channels, rows, columns)
    return Batch(_normalise_images(pixels, signature), probabilities=False)


def _check_instances(count: int, most: int) -> None:
    if count == 0:
        raise EmptyBatch("the batch is empty; it holds at least one instance")
    if count > most:
        raise TooManyInstances(f"{count} instances; at most {most} in one request")


def _shapes(key: str, signature: Signature) -> Sequence[Shape]:
    """How the numbers under `key` may come; raw images as (n, rows, columns) too where there is one channel.

    Raises BadField where the model takes no raw images.
    """
    shapes = _known_shapes(key, signature)
    if not shapes:
        allowed = _allowed([signature.input.shape])
        raise BadField(f"this model takes no raw images; send data, numbers of shape {allowed}")
    return shapes


def _known_shapes(key: str, signature: Signature) -> Sequence[Shape]:
    shape = signature.input.shape
    if key == "images" and len(shape) != 4:
        return []
    return [shape, (None, *shape[2:])] if key == "images" and shape[1] == 1 else [shape]


def _find_shape(name: str, rank: int, shapes: Sequence[Shape]) -> tuple[int, ...]:
    """The sizes behind the batch of the shape that has this rank."""
    for shape in shapes:
        if len(shape) == rank:
            return _sizes(shape)
    raise _bad_shape(name, shapes)


def _sizes(shape: Shape) -> tuple[int, ...]:
    return tuple(size for size in shape if size is not None)


def _normalise_images(pixels: NDArray[Any], signature: Signature) -> NDArray[np.float32]:
    return normalise(pixels.reshape(-1, *_sizes(signature.input.shape)), signature.preprocessing)


def _to_float32(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    # Two passes over good numbers, NaN being none. What rounds down to the largest float32 is good too, and takes longer.
    if _least(values, None) >= -_FLOAT32_MAX and _largest(values, None) <= _FLOAT32_MAX:
        return values.astype(np.float32, copy=not values.flags.aligned)
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.isfinite(result).all():
        if np.isfinite(values).all():
            raise OutOfRange(f"{name}: a number is outside the range of float32")
        raise NotFinite(f"{name}: NaN and infinity are not allowed")
    return result


def _bad_shape(name: str, shapes: Sequence[Shape]) -> BadShape:
    return BadShape(f"{name}: expected shape {_allowed(shapes)}")


def _allowed(shapes: Sequence[Shape]) -> str:
    return " or ".join(f"[{', '.join('n' if size is None else str(size) for size in shape)}]" for shape in shapes)


def _bad_dtype(name: str) -> BadDtype:
    return BadDtype(f"{name}: only numbers; no text, null, true, false or object")


def _encode_json(answer: Answer, signature: Signature) -> bytes:
    labels = ", ".join([_json_text(label) for label in answer.labels])
    probabilities = (
        "" if answer.probabilities is None else f', "probabilities": {_to_json(answer.probabilities.tolist())}'
    )
    return f"{{{_json_text(signature.response_key)}: [{labels}]{probabilities}}}".encode("ascii")


def _encode_json_lines(answer: Answer, signature: Signature) -> bytes:
    """{"<response key>": label} a line, with the instance's probabilities where they were asked for."""
    key = _json_text(signature.response_key)
    records = [f"{key}: {_json_text(label)}" for label in answer.labels]
    if answer.probabilities is not None:
        rows = map(_to_json, answer.probabilities.tolist())
        records = [f'{record}, "probabilities": {row}' for record, row in zip(records, rows, strict=True)]
    return "".join(f"{{{record}}}\n" for record in records).encode("ascii")


@lru_cache(maxsize=1024)
def _json_text(value: int | str) -> str:
    """A label or a key; making an encoder for every answer costs more than all the rest of it."""
    return _to_json(value)


def encode_inputs(batch: Batch) -> tuple[str, bytes]:
    """Media type and body in which another container of ours decodes the same batch, bit for bit."""
    if not batch.probabilities:
        return NPY, _npy_bytes(batch.inputs)
    # A float32 is a float64, whose text is exact: nothing is rounded on the way back.
    return JSON, _to_json({"data": batch.inputs.tolist(), "probabilities": True}).encode("ascii")


def _encode_npy(answer: Answer, signature: Signature) -> bytes:
    if answer.probabilities is not None:
        raise BadField(f"probabilities: only with Accept: {JSON} or {JSON_LINES}")
    return _npy_bytes(np.asarray(answer.labels))


def _npy_bytes(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _encode_csv(answer: Answer, signature: Signature) -> bytes:
    """One label a line, quoted where it holds a comma, a quote or a line break (RFC 4180)."""
    if answer.probabilities is not None:
        raise BadField(f"probabilities: only with Accept: {JSON} or {JSON_LINES}")
    return "".join(f"{_csv_text(label)}\n" for label in answer.labels).encode()


@lru_cache(maxsize=1024)
def _csv_text(label: int | str) -> str:
    text = str(label)
    return '"{}"'.format(text.replace('"', '""')) if _CSV_SPECIAL.search(text) else text


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        JSON: _decode_json,
        NPY: _decode_npy,
        CSV: _decode_csv,
        JSON_LINES: _decode_json_lines,
        PNG: _decode_png,
        JPEG: _decode_jpeg,
    }
)
ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {JSON: _encode_json, NPY: _encode_npy, CSV: _encode_csv, JSON_LINES: _encode_json_lines}
)
