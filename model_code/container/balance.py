"""How many connections each worker has, in memory that forked processes share."""

import mmap

_NOT_LISTENING = 2**32 - 1


class Balance:
    """What worker `number` tells the others and knows of them; `of` makes those of all workers before the fork."""

    def __init__(self, number: int, counts: "memoryview[int]") -> None:
        self._number = number
        self._counts = counts
        self._listening = False

    @classmethod
    def of(cls, workers: int) -> "list[Balance]":
        counts = memoryview(mmap.mmap(-1, 4 * workers)).cast("I")
        for number in range(workers):
            counts[number] = _NOT_LISTENING
        return [cls(number, counts) for number in range(workers)]

    def listen(self) -> None:
        self._listening = True
        self._counts[self._number] = 0

    def leave(self) -> None:
        """It takes no more, and nobody is to wait for it."""
        self._listening = False
        self._counts[self._number] = _NOT_LISTENING

    def tell(self, connections: int) -> None:
        if self._listening:
            self._counts[self._number] = connections

    def share(self, arriving: int) -> int:
        """How many of so many new connections this worker is to take, so that all have as many; 0 or less for none."""
        counts = [count for count in self._counts if count != _NOT_LISTENING]
        return -(-(sum(counts) + arriving) // len(counts)) - self._counts[self._number]
