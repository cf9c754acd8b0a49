"""Whatever a file of the IDX format holds: the array that its bytes say, or an error that names the file and the fault."""

import gzip
import math
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.training.errors import BadData
from model_code.training.idx import read_idx
from tests.idx_files import idx

CODES = ("BAD_MAGIC ", "BAD_DTYPE ", "TRUNCATED_HEADER ", "SIZE_MISMATCH ", "CORRUPT_GZIP ")
ALLOCATED = 4 * 2**20  # what reading a small file may take, whatever its header claims: two chunks and the decoder
IMAGES = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
HUGE = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])


def expected(raw: bytes, dimensions: int) -> np.ndarray | None:
    """The array, by a reader that is too simple to be wrong; None where there is none."""
    head, rest = raw[: 4 + 4 * dimensions], raw[4 + 4 * dimensions :]
    if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
        return None
    shape = [int.from_bytes(head[place : place + 4], "big") for place in range(4, len(head), 4)]
    return np.array(list(rest), np.uint8).reshape(shape) if len(rest) == math.prod(shape) > 0 else None


def check(folder: Path, content: bytes, raw: bytes | None, dimensions: int, *, packed: bool) -> None:
    """`raw` is what `content` holds once unpacked, None where that fails."""
    path = folder / ("images-idx3-ubyte.gz" if packed else "images-idx3-ubyte")
    path.write_bytes(content)
    wanted = expected(raw, dimensions) if raw is not None else None
    tracemalloc.start()
    try:
        found, refused = read_idx(path, dimensions), ""
    except BadData as error:
        found, refused = None, str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < ALLOCATED
    if wanted is None:
        assert refused.startswith(CODES)
        assert f" {folder.name}/{path.name}: " in refused
        assert len(refused) <= 300
    else:
        assert found is not None, refused
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted)


@st.composite
def almost(draw: st.DrawFn) -> tuple[bytes, int]:
    """A file that is right but for a few bytes, or its end, and the dimensions that are asked for."""
    dimensions = draw(st.sampled_from([1, 3]))
    sizes = [draw(st.integers(0, 4) | HUGE) for _ in range(dimensions)]
    size = math.prod(sizes) if math.prod(sizes) < 200 else draw(st.integers(0, 64))
    raw = bytearray(
        struct.pack(f">HBB{dimensions}I", 0, 8, dimensions, *sizes) + draw(st.binary(min_size=size, max_size=size))
    )
    for place, value in draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 255)), max_size=2)):
        if place < len(raw):
            raw[place] = value
    cut = draw(st.just(len(raw)) | st.integers(0, len(raw)))
    return bytes(raw[:cut]) + draw(st.just(b"") | st.binary(max_size=3)), draw(
        st.just(dimensions) | st.sampled_from([1, 3])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@settings(derandomize=True, deadline=None, max_examples=250)
@given(file=almost() | st.tuples(st.binary(max_size=40), st.sampled_from([1, 3])), packed=st.booleans())
def test_t2_t3_t4_any_bytes_are_read_as_they_are_or_refused_with_the_fault(
    folder: Path, file: tuple[bytes, int], packed: bool
) -> None:
    raw, dimensions = file
    content = gzip.compress(raw, mtime=0) if packed else raw
    check(folder, content, raw, dimensions, packed=packed)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(content=st.binary(max_size=60), changes=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 255)), max_size=3))
def test_t5_a_damaged_gzip_file_is_refused_or_holds_what_its_checksum_says(
    folder: Path, content: bytes, changes: list[tuple[int, int]]
) -> None:
    packed = bytearray(gzip.compress(idx(IMAGES), mtime=0) + content[: len(content) // 3 if changes else None])
    for place, value in changes:
        packed[place % len(packed)] ^= value
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        raw = None
    check(folder, bytes(packed), raw, 3, packed=True)


def test_t5_a_gzip_file_cut_or_changed_at_any_byte_is_never_taken_for_another(folder: Path) -> None:
    """Bytes of the gzip header that no checksum covers (flags of time and system) may change; the images may not."""
    packed = gzip.compress(idx(IMAGES), mtime=0)
    path = folder / "images-idx3-ubyte.gz"
    changed = [packed[:place] for place in range(1, len(packed))]
    changed += [
        packed[:place] + bytes([packed[place] ^ bit]) + packed[place + 1 :]
        for place in range(len(packed))
        for bit in (1, 128)
    ]
    refused = 0
    for content in changed:
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_idx(path, 3), IMAGES)
        except BadData as error:
            assert str(error).startswith("CORRUPT_GZIP training")  # noqa: PT017
            refused += 1
    assert refused >= len(changed) - 16  # time, extra flags and system: 6 bytes, and the flag that says "text"


@pytest.mark.parametrize(
    ("tail", "taken"),
    [(b"", True), (bytes(512), True), (gzip.compress(b""), True), (b"junk", False), (gzip.compress(b"x"), False)],
    ids=["nothing", "zeros", "an empty member", "junk", "a member with a byte"],
)
def test_t5_what_follows_a_gzip_file_is_padding_or_refused(folder: Path, tail: bytes, taken: bool) -> None:
    content = gzip.compress(idx(IMAGES)) + tail
    check(folder, content, gzip.decompress(content) if tail != b"junk" else None, 3, packed=True)
    assert (expected(gzip.decompress(content), 3) is not None if tail != b"junk" else False) is taken


def test_t5_a_gzip_file_of_several_members_is_one_file(folder: Path) -> None:
    raw = idx(IMAGES)
    check(
        folder, b"".join(gzip.compress(raw[place : place + 7]) for place in range(0, len(raw), 7)), raw, 3, packed=True
    )


def test_t4_a_count_of_terabytes_allocates_what_is_there(folder: Path) -> None:
    for sizes in ((2**32 - 1, 28, 28), (2**32 - 1,) * 3, (1, 2**32 - 1, 1)):
        raw = struct.pack(">HBB3I", 0, 8, 3, *sizes) + bytes(1000)
        check(folder, raw, raw, 3, packed=False)
        check(folder, gzip.compress(raw), raw, 3, packed=True)
