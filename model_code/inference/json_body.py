"""JSON bodies: what nearly every one holds is read by compiled code at once, and of any other one simdjson makes a document."""

import re
from functools import lru_cache
from typing import NamedTuple

from model_code.inference.arrays import read_arrays
from model_code.inference.batches import Batch, Shape, known_shapes, normalise_images, sizes_of
from model_code.inference.contract import Signature

_SPACE = rb"[ \t\r\n]*+"
_WANTED = _SPACE.join((rb'"probabilities"', b":", b"(true|false)", b""))
# What stands around the arrays of a body: all but the keys is in here, so that a text with an escape in it is none of these.
_HEAD = re.compile(_SPACE.join((b"", rb"\{", rb'(?:%b,%b)?"(data|images)"' % (_WANTED, _SPACE), b":", b"")))
_TAIL = re.compile(_SPACE.join((b"", rb"(?:,%b%b)?\}" % (_SPACE, _WANTED), b"")))
# Enough for all that a program writes; a cache keeps them.
_MOST_FRAME_BYTES = 128


def read_json(body: bytes, signature: Signature, most: int | None) -> Batch:
    """{"data": normalised floats} or {"images": raw 0 to 255}, and optionally "probabilities": true or false.

    `most` instances at most, or exactly one without the dimension of the batch where it is None. Raises MalformedRequest.
    """
    batch = _read_plain(body, signature, most)
    if batch is not None:
        return batch
    # Not at the top: a cold start need not wait for what few bodies need.
    from model_code.inference.json_document import read_document

    return read_document(body, signature, most)


def _read_plain(body: bytes, signature: Signature, most: int | None) -> Batch | None:
    """What is in order; None for all that `read_document` has to look at, mostly because something is wrong."""
    start, end = body.find(b"["), body.rfind(b"]") + 1
    if not 0 < start < end or len(body) - (end - start) > _MOST_FRAME_BYTES:
        return None
    plan = _plan(body[:start], body[end:], signature.input.shape)
    if plan is None:
        return None
    for sizes in plan.sizes:
        numbers = read_arrays(
            body, start, end, sizes if most is None else (most, *sizes), fewer=most is not None, raw=plan.raw
        )
        if numbers is not None:
            inputs = numbers.reshape(-1, *sizes)
            return Batch(normalise_images(inputs, signature) if plan.raw else inputs, plan.probabilities)
    return None


class _Plan(NamedTuple):
    """What the text around the arrays asks for: raw pixels or not, probabilities or not, and how an instance may come."""

    raw: bool
    probabilities: bool
    sizes: tuple[tuple[int, ...], ...]


# The regular expressions take longer than all else around the numbers, and a caller's next body mostly begins and ends alike.
@lru_cache(maxsize=64)
def _plan(before: bytes, after: bytes, shape: Shape) -> _Plan | None:
    head, tail = _HEAD.fullmatch(before), _TAIL.fullmatch(after)
    if head is None or tail is None or (head[1] and tail[1]):
        return None
    key = head[2].decode()
    sizes = tuple(map(sizes_of, known_shapes(key, shape)))
    return _Plan(key == "images", (head[1] or tail[1]) == b"true", sizes)
