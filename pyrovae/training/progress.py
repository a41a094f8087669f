"""A progress bar that costs the training loop nothing to speak of."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_INTERVAL = 0.1  # seconds between two updates of the bar


class Reporter(Protocol):
    """Is told how training goes."""

    def step(self) -> None:
        """One minibatch is done."""

    def epoch(self, epoch: int, train: float, validation: float) -> None:
        """One epoch is done, with its objectives in nats per datum."""


class Silent:
    """Says nothing."""

    def step(self) -> None:
        """Nothing."""

    def epoch(self, epoch: int, train: float, validation: float) -> None:
        """Nothing."""


@contextmanager
def reporter(progress: bool | None, *, steps: int, done: int) -> Iterator[Reporter]:
    """A bar on stderr with the ELBO and the time left.

    Args:
        progress: whether to show it; ``None`` shows it if stderr is a terminal.
        steps: minibatches in the whole run.
        done: those done before, in a run that is resumed.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task("epoch 1", total=steps, completed=done))


class _Bar:
    def __init__(self, bar: object, task: int) -> None:
        self._bar, self._task = bar, task
        self._pending, self._last = 0, 0.0

    def step(self) -> None:
        self._pending += 1
        if time.monotonic() - self._last > _INTERVAL:
            self._flush()

    def epoch(self, epoch: int, train: float, validation: float) -> None:
        held_out = "" if math.isnan(validation) else f" · validation {validation:.2f}"
        self._flush(f"epoch {epoch} · ELBO {train:.2f}{held_out}")

    def _flush(self, description: str | None = None) -> None:
        self._bar.update(self._task, advance=self._pending, description=description)  # type: ignore[attr-defined]
        self._pending, self._last = 0, time.monotonic()
