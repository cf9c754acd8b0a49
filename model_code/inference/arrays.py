"""Nested JSON arrays of numbers to float32, and a look at float32 as it is, by the compiled model_code/native/arrays.c.

It reads what is exactly as it should be and refuses all else. Without the library beside this file, which a set-up and every
image and package of ours have, it refuses everything: whoever asks has a general way that takes its place.
"""

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_code.inference.batches import FLOAT32_MAX

LIBRARY = Path(__file__).with_name("libarrays.so")

_MAX_PIXEL = 255.0


def read_arrays(
    body: bytes, start: int, end: int, sizes: tuple[int, ...], *, fewer: bool, raw: bool
) -> NDArray[np.float32] | None:
    """The numbers of body[start:end], one array of the shape `sizes`, as a vector; None where it is anything else.

    With `fewer` the first dimension may be shorter, though not empty. Finite numbers within float32, or from 0 to 255 where
    they are `raw` pixels. Each is what float() and a cast to float32 make of its text, bit for bit.
    """
    if _read is None:
        return None
    # A number and the comma or bracket behind it are two bytes.
    room: Any = np.empty(min(math.prod(sizes), (end - start) // 2), np.float32)
    count = _read(
        body,
        start,
        end - start,
        _as_c(sizes),
        len(sizes),
        fewer,
        _MAX_PIXEL if raw else FLOAT32_MAX,
        not raw,
        ctypes.c_float.from_buffer(room),
    )
    if count < 0:
        return None
    numbers: NDArray[np.float32] = room[:count]
    return numbers


def all_finite(body: bytes, start: int, count: int) -> bool:
    """Whether `count` float32 in this machine's byte order, from body[start] on, are known to be finite."""
    return _all_finite is not None and bool(_all_finite(body, start, count))


@lru_cache(maxsize=64)
def _as_c(sizes: tuple[int, ...]) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _load() -> tuple[Callable[..., int] | None, Callable[..., int] | None]:
    """read_arrays and all_finite of the library."""
    try:
        library: Any = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None, None
    read, finite = library.read_arrays, library.all_finite
    read.argtypes = (
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_int64),
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_double,
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_float),
    )
    read.restype = ctypes.c_int64
    finite.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64)
    finite.restype = ctypes.c_int32
    return read, finite


_read, _all_finite = _load()
