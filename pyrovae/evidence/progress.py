"""A progress bar for long computations whose number of steps is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ticking(description: str, total: int, *, progress: bool | None) -> Iterator[Callable[[], None]]:
    """A function to be called after each of ``total`` steps, and a bar on stderr that follows it.

    Args:
        description: stands before the bar.
        total: number of steps.
        progress: whether to show the bar; ``None`` shows it if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
