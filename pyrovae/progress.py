"""A progress bar on stderr that hardly slows the work down."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_INTERVAL = 0.1  # seconds between two updates of the bar


class Bar:
    """A progress bar, or a stand-in for one that shows nothing."""

    def __init__(
        self, description: str, total: int, completed: int, display: Progress | None
    ) -> None:
        self._display, self._pending, self._last = display, 0, 0.0
        self._task = (
            None
            if display is None
            else display.add_task(description, total=total, completed=completed)
        )

    def tick(self, steps: int = 1) -> None:
        """Count one step as done, or some."""
        self._pending += steps
        if time.monotonic() - self._last > _INTERVAL:
            self.update()

    def update(self, description: str | None = None) -> None:
        """Show the steps done so far, and from now on the new description, if any."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=self._pending, description=description)
        self._pending, self._last = 0, time.monotonic()


@contextmanager
def progress_bar(
    description: str, total: int, *, done: int = 0, progress: bool | None
) -> Iterator[Bar]:
    """A bar with the share of the steps that are done and the time left.

    Args:
        description: the text in front of the bar.
        total: number of steps.
        done: how many were done before, in a resumed run.
        progress: whether to show the bar; ``None`` shows it if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        yield Bar(description, total, done, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        bar = Bar(description, total, done, display)
        yield bar
        bar.update()
