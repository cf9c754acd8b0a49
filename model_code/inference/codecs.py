"""Bytes to a batch and an answer to bytes, one function for each media type. Nothing here ever unpickles.

Decoding is strict, because ONNX Runtime is not: it answers NaN for NaN. A number is refused unless it is finite and stays so
as float32, and an array unless it has exactly the model's shape.
"""

import ast
import io
import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_code.inference.arrays import all_finite
from model_code.inference.batches import (
    Batch,
    Shape,
    allowed_shapes,
    bad_shape,
    check_instances,
    describe_shapes,
    find_shape,
    normalise_images,
    sizes_of,
    to_float32,
)
from model_code.inference.contract import Signature
from model_code.inference.errors import (
    BadCsv,
    BadDtype,
    BadField,
    BadNpy,
    BadShape,
    MalformedRequest,
    NotAcceptable,
    NotFinite,
    UnsupportedMediaType,
)
from model_code.inference.json_body import read_json

JSON = "application/json"
NPY = "application/x-npy"
CSV = "text/csv"
JSON_LINES = "application/jsonlines"  # as SageMaker calls it
PNG = "image/png"
JPEG = "image/jpeg"

_MAX_NPY_HEADER_BYTES = 1024
_NPY_DTYPES = ("<f4", ">f4", "<f8", ">f8", "|u1")
# float() takes more than numbers: spaces around them, underscores in them, nan, inf. Without those letters it is strict.
_CSV_CHARACTERS = b"0123456789+-.eE,"
_CSV_SPECIAL = re.compile(r'[",\r\n]')
_QUALITY = re.compile(r"0(\.[0-9]*)?|1(\.0*)?")  # RFC 9110, section 12.4.2, and as many digits as a client likes
_BLANKS = " \t"  # what may stand around the parts of a header; str.strip would take a no-break space for one

_to_json = json.JSONEncoder(allow_nan=False).encode


class Answer(NamedTuple):
    """What an encoder writes: n labels, and the probabilities (n, classes) where they were asked for."""

    labels: list[int | str]
    probabilities: NDArray[np.float32] | None


class NpyHeader(NamedTuple):
    """How the data of a .npy file is to be read, and how many bytes there have to be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    size: int


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
    return read_json(body, signature, most)


def _decode_json_lines(body: bytes, signature: Signature, most: int) -> Batch:
    """The same, an object a line: "data" or "images" holds one instance, without the dimension of the batch.

    Each line is a record of its own to whoever split or joins them, so that all of them ask for the same answer.
    """
    lines = body.removesuffix(b"\n").split(b"\n")
    check_instances(len(lines) if body.strip() else 0, most)
    batches = [_decode_line(number, line, signature) for number, line in enumerate(lines, start=1)]
    probabilities = {batch.probabilities for batch in batches}
    if len(probabilities) > 1:
        raise BadField("probabilities: either on all lines or on none")
    return Batch(np.concatenate([batch.inputs for batch in batches]), probabilities.pop())


def _decode_line(number: int, line: bytes, signature: Signature) -> Batch:
    try:
        return read_json(line, signature, None)
    except MalformedRequest as error:
        raise type(error)(f"line {number}: {error}") from error


def _decode_npy(body: bytes, signature: Signature, most: int) -> Batch:
    """An array as numpy.save writes it: float32 or float64 is normalised, uint8 is raw. Fortran order is fine."""
    start = _find_header_end(body)
    header = _read_npy_header(body[:start], signature.input.shape, most)
    if len(body) - start != header.size:
        raise BadNpy(f"the header promises {header.size} bytes, {len(body) - start} follow it")
    values: NDArray[Any] = np.ndarray(header.shape, header.dtype, body, start, order=header.order)
    if header.dtype == np.uint8:
        inputs = normalise_images(values, signature)
    # numpy's reductions, cold after every run, take longer than all else here.
    elif header.dtype == np.float32 and values.flags.aligned and all_finite(body, start, values.size):
        inputs = values
    else:
        inputs = to_float32("npy", values)
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
def _read_npy_header(raw: bytes, wanted: Shape, most: int) -> NpyHeader:
    """What the first bytes of a body say, up to the end of the header, to a model whose input has the shape `wanted`."""
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
    dtype = np.dtype(header["descr"])
    shapes = allowed_shapes("images" if dtype == np.uint8 else "data", wanted)
    if not shape:
        raise bad_shape("npy", shapes)
    check_instances(shape[0], most)
    if shape != (shape[0], *find_shape("npy", len(shape), shapes)):
        raise bad_shape("npy", shapes)
    return NpyHeader(dtype, shape, "F" if header["fortran_order"] else "C", math.prod(shape) * dtype.itemsize)


def _decode_csv(body: bytes, signature: Signature, most: int) -> Batch:
    """One instance a line, its features as numbers with commas between: no header, no quotes, no spaces; LF or CRLF."""
    shape = signature.input.shape
    if len(shape) != 2:
        raise UnsupportedMediaType(f"Content-Type: {CSV} is for models of tables; this one takes {JSON} and {NPY}")
    if body.startswith(BOM_UTF8):
        raise BadCsv("the body starts with a byte order mark; send UTF-8 without one")
    body = body.removesuffix(b"\n")
    check_instances(body.count(b"\n") + 1 if body.strip() else 0, most)
    rows = [row.removesuffix(b"\r") for row in body.split(b"\n")]
    for number, row in enumerate(rows, start=1):
        if row.count(b",") != sizes_of(shape)[0] - 1:
            raise BadShape(f"csv: line {number}: {row.count(b',') + 1} values; expected {sizes_of(shape)[0]}")
    cells = b",".join(rows)
    if cells.translate(None, _CSV_CHARACTERS):
        raise _why_not_csv(rows)
    try:
        values = np.array(list(map(float, cells.split(b",")))).reshape(len(rows), -1)
    except ValueError as error:
        raise _why_not_csv(rows) from error
    return Batch(to_float32("csv", values), probabilities=False)


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
    sizes = sizes_of(signature.input.shape)
    if len(sizes) != 3 or sizes[0] not in (1, 3):
        raise UnsupportedMediaType(
            f"Content-Type: {media_type} is for models of images with one or three channels; this one takes inputs of shape "
            f"{describe_shapes([signature.input.shape])} in another type"
        )
    channels, rows, columns = sizes
    pixels = read(body, channels, rows, columns)
    return Batch(normalise_images(pixels, signature), probabilities=False)


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
