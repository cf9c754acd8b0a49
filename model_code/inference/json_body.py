"""JSON bodies: what nearly every one holds is read by compiled code at once, and of any other one simdjson makes a document."""

import re

from model_code.inference.arrays import read_arrays
from model_code.inference.batches import Batch, known_shapes, normalise_images, sizes_of
from model_code.inference.contract import Signature

_SPACE = rb"[ \t\r\n]*+"  # never less than there is: however much it is, it is looked at once
_WANTED = _SPACE.join((rb'"probabilities"', b":", b"(true|false)", b""))
# What stands around the arrays of a body: all but the keys is in here, so that a text with an escape in it is none of these.
_HEAD = re.compile(_SPACE.join((b"", rb"\{", rb'(?:%b,%b)?"(data|images)"' % (_WANTED, _SPACE), b":", b"")))
_TAIL = re.compile(_SPACE.join((b"", rb"(?:,%b%b)?\}" % (_SPACE, _WANTED), b"")))


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
    head, tail = _HEAD.fullmatch(body, 0, max(start, 0)), _TAIL.fullmatch(body, end)
    if head is None or tail is None or (head[1] and tail[1]):
        return None
    key, probabilities = head[2].decode(), (head[1] or tail[1]) == b"true"
    for shape in known_shapes(key, signature):
        sizes = sizes_of(shape)
        numbers = read_arrays(
            body,
            start,
            end,
            sizes if most is None else (most, *sizes),
            fewer=most is not None,
            raw=key == "images",
        )
        if numbers is not None:
            numbers = numbers.reshape(-1, *sizes)
            return Batch(numbers if key == "data" else normalise_images(numbers, signature), probabilities)
    return None
