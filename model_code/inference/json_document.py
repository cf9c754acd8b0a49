"""The general way to read a JSON body: whatever is wrong with it is found, and said.

simdjson has four habits that this module makes good:

- `Array.as_buffer` flattens, so that [[1], 2] and [1, [2]] look alike: `_has_shape` and the count of brackets tell them apart.
- A parser refuses to parse while a proxy of its last document lives, and the traceback of an exception keeps proxies alive:
  a thread puts its parser back only after a success, so that one bad request never makes the next one fail.
- Its errors have no position, and one name for NaN and for a missing comma: after a failure, and only then,
  `_why_not_json` asks the standard library.
- It skips a byte order mark, which JSON does not have (RFC 8259, section 8.1).
"""

import json
import math
import threading
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import simdjson
from numpy.typing import NDArray

from model_code.inference.batches import (
    Batch,
    Shape,
    allowed_shapes,
    bad_shape,
    check_instances,
    find_shape,
    normalise_images,
    to_float32,
)
from model_code.inference.contract import Signature
from model_code.inference.errors import (
    BadDtype,
    BadField,
    BadJson,
    DuplicateKey,
    MalformedRequest,
    NotFinite,
    OutOfRange,
)

# A parser keeps buffers of about ten times the largest body it has seen; after a larger one than this it is dropped.
_KEEP_PARSER_BYTES = 512 * 1024

_idle = threading.local()


def read_document(body: bytes, signature: Signature, most: int | None) -> Batch:
    """`most` instances at most, or exactly one without the dimension of the batch where it is None. Raises MalformedRequest."""
    if body.startswith(BOM_UTF8):
        raise BadJson("the body starts with a byte order mark; JSON is UTF-8 without one")
    parser = _idle.__dict__.pop("parser", None) or simdjson.Parser()
    try:
        document = parser.parse(body)
    except (ValueError, RuntimeError) as error:
        raise _why_not_json(body) from error
    batch = _read(document, body, signature, most)
    del document
    if len(body) <= _KEEP_PARSER_BYTES:
        _idle.parser = parser
    return batch


def _read(document: Any, body: bytes, signature: Signature, most: int | None) -> Batch:
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
    numbers = _read_numbers(key, document[key], body, allowed_shapes(key, signature.input.shape), most)
    if key == "data":
        return Batch(to_float32(key, numbers), probabilities)
    if numbers.min() < 0 or numbers.max() > 255:
        raise OutOfRange("images: raw pixels are 0 to 255")
    return Batch(normalise_images(numbers, signature), probabilities)


def _read_numbers(name: str, value: Any, body: bytes, shapes: Sequence[Shape], most: int | None) -> NDArray[np.float64]:
    """The numbers below one key as (n, ...), in the one of `shapes` that has the value's rank; `most` as above."""
    if most is None:
        shapes = [shape[1:] for shape in shapes]
    if not isinstance(value, simdjson.Array):
        raise bad_shape(name, shapes) if type(value) in (int, float) else _bad_dtype(name)
    if most is not None:
        check_instances(len(value), most)
    try:
        numbers = np.frombuffer(value.as_buffer(of_type="d"), np.float64)
    except TypeError as error:
        raise _bad_dtype(name) from error
    sizes = find_shape(name, _rank(value), shapes)
    if most is not None:
        sizes = (len(value), *sizes)
    # Every array above the innermost ones has been seen to hold arrays of the right length. The keys hold no bracket, so
    # that no array can hide among the numbers once the body has as many brackets as the shape has arrays.
    if not _has_shape(value, sizes) or _count_brackets(body) != _count_arrays(sizes):
        raise bad_shape(name, shapes)
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


def _bad_dtype(name: str) -> BadDtype:
    return BadDtype(f"{name}: only numbers; no text, null, true, false or object")
