"""What the decoders make, and what they hold the numbers against: how many instances, in which shape, in which range."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_code.inference.contract import Signature
from model_code.inference.errors import BadField, BadShape, EmptyBatch, NotFinite, OutOfRange, TooManyInstances
from model_code.inference.preprocess import normalise

FLOAT32_MAX = float(np.finfo(np.float32).max)
_least, _largest = np.minimum.reduce, np.maximum.reduce

Shape = tuple[int | None, ...]


class Batch(NamedTuple):
    """What a decoder found: normalised inputs (n, ...), and whether the caller wants probabilities too."""

    inputs: NDArray[np.float32]
    probabilities: bool


def check_instances(count: int, most: int) -> None:
    """Raises EmptyBatch for none, and TooManyInstances for more than `most`."""
    if count == 0:
        raise EmptyBatch("the batch is empty; it holds at least one instance")
    if count > most:
        raise TooManyInstances(f"{count} instances; at most {most} in one request")


def known_shapes(key: str, shape: Shape) -> Sequence[Shape]:
    """How the numbers under `key`, data or images, may come for a model whose input has this shape.

    Raw images come as (n, rows, columns) too where there is one channel. Empty where the model takes no raw images.
    """
    if key == "images" and len(shape) != 4:
        return []
    return [shape, (None, *shape[2:])] if key == "images" and shape[1] == 1 else [shape]


def allowed_shapes(key: str, shape: Shape) -> Sequence[Shape]:
    """The same. Raises BadField where the model takes no raw images."""
    shapes = known_shapes(key, shape)
    if not shapes:
        allowed = describe_shapes([shape])
        raise BadField(f"this model takes no raw images; send data, numbers of shape {allowed}")
    return shapes


def find_shape(name: str, rank: int, shapes: Sequence[Shape]) -> tuple[int, ...]:
    """The sizes behind the batch of the shape that has this rank. Raises BadShape."""
    for shape in shapes:
        if len(shape) == rank:
            return sizes_of(shape)
    raise bad_shape(name, shapes)


def sizes_of(shape: Shape) -> tuple[int, ...]:
    """Those of one instance."""
    return tuple(size for size in shape if size is not None)


def normalise_images(pixels: NDArray[Any], signature: Signature) -> NDArray[np.float32]:
    """Raw pixels, with their channel or, where there is one alone, without it, as the model's input (n, channels, ...)."""
    return normalise(pixels.reshape(-1, *sizes_of(signature.input.shape)), signature.preprocessing)


def to_float32(name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers under `name` in float32. Raises NotFinite, and OutOfRange where one is infinite only as float32."""
    # Two passes over good numbers, NaN being none. What rounds down to the largest float32 is good too, and takes longer.
    if _least(values, None) >= -FLOAT32_MAX and _largest(values, None) <= FLOAT32_MAX:
        return values.astype(np.float32, copy=not values.flags.aligned)
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.isfinite(result).all():
        if np.isfinite(values).all():
            raise OutOfRange(f"{name}: a number is outside the range of float32")
        raise NotFinite(f"{name}: NaN and infinity are not allowed")
    return result


def bad_shape(name: str, shapes: Sequence[Shape]) -> BadShape:
    """The error for numbers under `name` that have none of `shapes`."""
    return BadShape(f"{name}: expected shape {describe_shapes(shapes)}")


def describe_shapes(shapes: Sequence[Shape]) -> str:
    """[n, 1, 28, 28] or [n, 28, 28]"""
    return " or ".join(f"[{', '.join('n' if size is None else str(size) for size in shape)}]" for shape in shapes)
