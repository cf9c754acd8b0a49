"""How much memory the bodies take that are on their way."""

from model_code.inference.errors import Overloaded


class NoRoom(Overloaded):
    """The bodies that are on their way take all the memory that there is for them; the rest of this one was not read."""


class Room:
    """Bytes that all bodies together may take while they arrive: a client that stops in the middle keeps its part in memory.

    What was only announced takes nothing, or few clients could keep all others out without sending anything.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """Raises NoRoom."""
        if self._taken + size > self._most:
            raise NoRoom(f"{self._most} bytes of bodies are on their way already; try again")
        self._taken += size

    def give_back(self, size: int) -> None:
        self._taken -= size
