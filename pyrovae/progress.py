"""A progress bar on stderr or in a notebook, or lines elsewhere; hardly any of the work's time."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_INTERVAL = 0.1  # seconds between two updates of the bar
_in_lines: ContextVar[tuple[float, bool] | None] = ContextVar("in_lines", default=None)


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


class Lines(Bar):
    """Progress as a line on stderr now and then, with the time left.

    Args:
        description, total, completed: as for a bar.
        every: seconds between two lines, and before the first.
    """

    def __init__(self, description: str, total: int, completed: int, every: float) -> None:
        super().__init__(description, total, completed, None)
        self._description, self._total, self._every = description, total, every
        self._before = self._done = completed
        self._start = self._shown = time.monotonic()

    def tick(self, steps: int = 1) -> None:
        """Count one step as done, or some."""
        self._done += steps
        self._show()

    def update(self, description: str | None = None) -> None:
        """Name the steps that follow otherwise, if a description is given."""
        self._description = description or self._description
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < self._every or self._done == self._before:
            return
        self._shown = now
        left = (now - self._start) / (self._done - self._before) * (self._total - self._done)
        share = 100 * self._done / self._total
        line = f"pyrovae: {self._description}: {share:.0f} %, about {in_words(left)} left\n"
        sys.stderr.write(line)


class InNotebook(Bar):
    """A progress bar below the cell of a notebook, in plain HTML, which needs no widgets.

    It goes when the work is done, and stays where it stopped if that fails.

    Args:
        description, total, completed: as for a bar.
    """

    def __init__(self, description: str, total: int, completed: int) -> None:
        from IPython.display import display

        super().__init__(description, total, completed, None)
        self._description, self._total, self._done = description, total, completed
        self._handle: Any = display(self._shown(), raw=True, display_id=True)

    def update(self, description: str | None = None) -> None:
        """Show the steps done so far, and from now on the new description, if any."""
        self._done += self._pending
        self._description = description or self._description
        super().update()
        self._handle.update(self._shown(), raw=True)

    def clear(self) -> None:
        """Leave nothing below the cell: a saved notebook shows results, not how long they took."""
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _shown(self) -> dict[str, str]:
        words = f"{self._description}: {100 * self._done / max(self._total, 1):.0f} %"
        bar = f'<progress value="{self._done}" max="{self._total}"></progress>'
        return {"text/plain": words, "text/html": f"{bar} {html.escape(words)}"}


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython() if ipython else None, "kernel")


def in_words(seconds: float) -> str:
    """A time as people say it.

    >>> in_words(41), in_words(200), in_words(9000)
    ('41 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def in_lines(every: float, *, on_terminal: bool = False) -> Iterator[None]:
    """Show progress within as lines where it would be a bar but for want of a terminal.

    Args:
        every: seconds between two lines, and before the first.
        on_terminal: lines in place of a bar on a terminal, too.
    """
    token = _in_lines.set((every, on_terminal))
    try:
        yield
    finally:
        _in_lines.reset(token)


@contextmanager
def progress_bar(
    description: str, total: int, *, done: int = 0, progress: bool | None
) -> Iterator[Bar]:
    """A bar with the share of the steps that are done and the time left.

    Args:
        description: the text in front of the bar.
        total: number of steps.
        done: how many were done before, in a resumed run.
        progress: whether to show the bar; ``None`` shows it in a notebook, and if stderr is a
            terminal.
    """
    terminal, (every, on_terminal) = sys.stderr.isatty(), _in_lines.get() or (0.0, False)
    if progress is None and every and (on_terminal or not terminal):
        yield Lines(description, total, done, every)
        return
    notebook = not terminal and in_notebook()
    if not (terminal or notebook if progress is None else progress):
        yield Bar(description, total, done, None)
        return
    if notebook:
        below = InNotebook(description, total, done)
        yield below
        below.clear()
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
