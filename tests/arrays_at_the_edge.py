"""Reads texts and numbers that end where a page ends, texts into rooms that do.

`python arrays_at_the_edge.py LIBRARY` prints how many. The page behind each is protected, so that one byte too far ends this
process.
"""

import ctypes
import mmap
import random
import sys
from collections.abc import Iterator

PAGE = mmap.PAGESIZE
LARGEST = 3.4028234663852886e38
PROT_NONE = 0


class Edge:
    """Memory of `pages` pages and a protected one behind them."""

    def __init__(self, pages: int) -> None:
        self._memory = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._size, self.end = pages * PAGE, start + pages * PAGE
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(self.end), PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, content: bytes) -> int:
        """Where it begins."""
        self._memory[self._size - len(content) : self._size] = content
        return self.end - len(content)


def texts() -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Good ones with an end at every place in a word, and whatever comes out of cutting and changing them."""
    rng = random.Random(1)
    for count in range(1, 60):
        for number in ("1", "0.5", "-0.4242", "0.34509803921568627", "1.5e-7", "0.0111111111111111111"):
            good = f"[[{', '.join([number] * count)}]]".encode()
            yield good, (1, count)
            yield good[: rng.randrange(len(good))], (1, count)
            changed = bytearray(good)
            changed[rng.randrange(len(good))] = rng.choice(b'[],.-+eE 09\n\x00"\xff')
            yield bytes(changed), (1, count)
    for length in range(1, 400):
        for start, part in (
            ("[", "1"),
            ("[0.", "0"),
            ("[1e", "1"),
            ("[1e-", "0"),
            ("", "["),
            ("[", " "),
            ("[1", ","),
            ("[1", "]"),
        ):
            yield (start + part * length).encode(), (2,)
            yield (start + part * length + "]").encode(), (1,)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    read = library.read_arrays
    read.restype = ctypes.c_int64
    text_edge, room_edge = Edge(2), Edge(1)
    count = 0
    for text, sizes in texts():
        # A Python object's bytes end with a zero. The room is what the sizes allow, or a number in each two bytes.
        start = text_edge.put(text + b"\x00")
        most = 1
        for size in sizes:
            most *= size
        room = room_edge.end - 4 * min(most, len(text) // 2)
        read(
            ctypes.c_void_p(start),
            ctypes.c_int64(0),
            ctypes.c_int64(len(text)),
            (ctypes.c_int64 * len(sizes))(*sizes),
            len(sizes),
            0,
            ctypes.c_double(LARGEST),
            1,
            ctypes.c_void_p(room),
        )
        count += 1
    for several in range(70):
        start = text_edge.put(bytes(4 * several))
        count += library.all_finite(ctypes.c_void_p(start), ctypes.c_int64(0), ctypes.c_int64(several))
    print(count)


if __name__ == "__main__":
    main()
