"""How far long work is: a bar on a terminal, a line now and then where nobody's terminal is there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ferry.console import OUT, Report

_LINES = 4  # of a piece of work, where there is no bar


@contextmanager
def progress(title: str, total: int, report: Report, *, bar: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how much of `total` is done. Without `bar`, or without a terminal, it reports lines."""
    if bar and OUT.is_terminal:
        columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=OUT, transient=True) as shown:
            task = shown.add_task(title, total=total)
            yield lambda done: shown.update(task, completed=done)
        return
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        if done == total or done * _LINES // max(total, 1) > told:
            told = done * _LINES // max(total, 1)
            report(f"{title} {done} of {total}")

    yield tell
