"""What a person sees: steps with their time, lines of progress, tables. Plain lines when nobody's terminal is there."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

# Takes one line of progress; work is told where its lines go and prints none itself.
Report = Callable[[str], None]

# No markup: a path may hold brackets.
OUT = Console(highlight=False, soft_wrap=True, markup=False)
ERR = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def line(text: str) -> None:
    """One line of progress, under the step that it belongs to."""
    OUT.print(f"    {text}", style="dim")


def error_line(text: str) -> None:
    """The same on standard error, where standard output is a document for a script."""
    ERR.print(f"    {text}", style="dim")


class Steps:
    """Numbered steps of long work: a title before each, its seconds after it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._number += 1
        OUT.print(f"{self._number}/{self._total} {title}", style="bold")
        started = time.monotonic()
        yield
        OUT.print(f"    done in {time.monotonic() - started:.1f} s", style="green")
