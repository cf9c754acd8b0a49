"""Reads labelled images from IDX files, the format of MNIST, raw or gzipped.

An IDX file is 00 00, one byte for the type of the values, one for the number of dimensions, each dimension as a big-endian
32-bit integer, then the values (the format's only description is on MNIST's own page, yann.lecun.com/exdb/mnist).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from model_code.training.channels import find_files, listed
from model_code.training.errors import BadData

_TYPES = {8: "unsigned bytes", 9: "signed bytes", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
_UNSIGNED_BYTES = 8
_CHUNK = 2**20
_PAIR = "A channel holds one file of images and one of labels, for instance train-images-idx3-ubyte.gz."
_COPY_AGAIN = "Upload the file again and compare its sha256 with the original's."


def read_labelled_images(folder: Path, channel: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, rows, columns) and labels (n,) of the one pair of files in `folder`. Raises BadData."""
    images = read_idx(_find(folder, channel, "*images*idx3*"), dimensions=3)
    labels = read_idx(_find(folder, channel, "*labels*idx1*"), dimensions=1)
    if len(images) != len(labels):
        raise BadData(
            f"COUNT_MISMATCH channel {channel!r}: {len(images):,} images, but {len(labels):,} labels",
            "Put the two files of the same set into the channel.",
        )
    return images, labels


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The unsigned bytes of one file, in the shape that its header gives. Raises BadData, which names channel and file."""
    name = f"{path.parent.name}/{path.name}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            try:
                return _read(stream, name, dimensions)  # type: ignore[arg-type]  # GzipFile is no BinaryIO by name only
            except BadData:
                while isinstance(stream, gzip.GzipFile) and stream.read(_CHUNK):
                    pass  # to its checksum: where that is wrong, it explains every other fault
                raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadData(f"CORRUPT_GZIP {name}: {error}", _COPY_AGAIN) from error
    except OSError as error:
        raise BadData(f"UNREADABLE {name}: {error.strerror}", _COPY_AGAIN) from error


def _find(folder: Path, channel: str, pattern: str) -> Path:
    matches = find_files(folder, channel, pattern, _PAIR)
    if len(matches) > 1:
        found = listed([path.name for path in matches])
        raise BadData(f"channel {channel!r} has more than one file like {pattern}; found: {found}", _PAIR)
    return matches[0]


def _read(stream: BinaryIO, name: str, dimensions: int) -> NDArray[np.uint8]:
    magic, wanted = stream.read(4), bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if magic != wanted[: len(magic)]:
        raise _wrong_magic(magic, wanted, name)
    sizes = stream.read(4 * dimensions)
    if len(magic + sizes) < 4 + 4 * dimensions:
        raise BadData(
            f"TRUNCATED_HEADER {name}: {len(magic + sizes)} bytes; the header has {4 + 4 * dimensions}", _COPY_AGAIN
        )
    shape = struct.unpack(f">{dimensions}I", sizes)
    expected = math.prod(shape)
    values = _read_at_most(stream, expected + 1)
    if len(values) != expected or not expected:
        more = "or more " if len(values) > expected else ""
        raise BadData(
            f"SIZE_MISMATCH {name}: the header says {' × '.join(map(str, shape))} = {expected:,} bytes; "
            f"{len(values):,} {more}follow it; allowed: exactly as many, at least one",
            _COPY_AGAIN,
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_at_most(stream: BinaryIO, limit: int) -> bytearray:
    """In pieces: memory grows with what is really there, not with what a header claims, and a gzip CRC is checked at the end."""
    values = bytearray()
    while len(values) < limit and (chunk := stream.read(min(_CHUNK, limit - len(values)))):
        values += chunk
    return values


def _wrong_magic(magic: bytes, wanted: bytes, name: str) -> BadData:
    if len(magic) == 4 and magic[:2] == wanted[:2] and magic[3] == wanted[3] and magic[2] in _TYPES:
        return BadData(
            f"BAD_DTYPE {name}: holds {_TYPES[magic[2]]}; allowed: {_TYPES[_UNSIGNED_BYTES]} (type 08)",
            "Store the values as unsigned bytes, 0 to 255.",
        )
    return BadData(
        f"BAD_MAGIC {name}: starts with {magic.hex()}; expected: {wanted.hex()} (IDX, unsigned bytes, "
        f"{wanted[3]} dimension{'s' if wanted[3] > 1 else ''})",
        "Check that images and labels are not swapped; a gzipped file needs a name that ends in .gz.",
    )
