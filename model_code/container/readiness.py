"""Which workers have proven their model, in memory that forked processes share."""

import mmap


class Readiness:
    """What worker `number` of `workers` knows of itself and of the others; `of` makes those of all workers before the fork."""

    def __init__(self, number: int = 0, flags: mmap.mmap | None = None) -> None:
        self._number = number
        self._flags = mmap.mmap(-1, 1) if flags is None else flags

    @classmethod
    def of(cls, workers: int) -> "list[Readiness]":
        flags = mmap.mmap(-1, workers)
        return [cls(number, flags) for number in range(workers)]

    def tell(self) -> None:
        """This worker's model has answered its golden inputs."""
        self._flags[self._number] = 1

    @property
    def told(self) -> bool:
        """Of this worker; the process that replaces a killed one finds it true, and loads before it listens."""
        return bool(self._flags[self._number])

    @property
    def everyone(self) -> bool:
        """Of all workers: any of them may get the next request."""
        return all(self._flags[:])
