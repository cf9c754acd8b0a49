"""JSON bodies: what nearly every one holds is read by compiled code at once, and of any other one simdjson makes a document."""

import json
from functools import lru_cache
from typing import NamedTuple

from model_code.inference.arrays import read_arrays
from model_code.inference.batches import Batch, Shape, known_shapes, normalise_images, sizes_of
from model_code.inference.contract import Signature

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


# It takes longer than all else around the numbers, and a caller's next body mostly begins and ends alike.
@lru_cache(maxsize=64)
def _plan(before: bytes, after: bytes, shape: Shape) -> _Plan | None:
    """None unless the text is an object of one key with the arrays, and perhaps another one with true or false."""
    try:
        # No array opens before this one, and none closes behind it.
        pairs = json.loads((before + b"[]" + after).decode("ascii"), object_pairs_hook=tuple)
    except ValueError:
        return None
    if not isinstance(pairs, tuple):
        return None
    members = dict(pairs)
    if len(members) != len(pairs):
        return None
    probabilities = members.pop("probabilities", False)
    if type(probabilities) is not bool or members not in ({"data": []}, {"images": []}):
        return None
    (key,) = members
    return _Plan(key == "images", probabilities, tuple(map(sizes_of, known_shapes(key, shape))))
