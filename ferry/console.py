"""What a person sees: steps with their time, lines of progress, tables. Plain lines when nobody's terminal is there."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

# Takes one line of progress; work is told where its lines go and prints none itself.
Report = Callable[[str], None]

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """One line of progress, under the step that it belongs to."""
    OUT.print(f"    [dim]{escape(text)}[/dim]")


class Steps:
    """Numbered steps of long work: a title before each, its seconds after it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._number = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._number += 1
        OUT.print(f"[bold]{self._number}/{self._total}[/bold] {escape(title)}")
        started = time.monotonic()
        yield
        OUT.print(f"    [green]done[/green] in {time.monotonic() - started:.1f} s")
