"""Ctrl-C while the library is imported, which takes seconds: one line, and an end at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


@contextmanager
def importing() -> Iterator[None]:
    """End the process at Ctrl-C: nothing is written yet, and an import could swallow an exception.

    A process that ignores the signal, as in the background of a shell, goes on ignoring it.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"pyrovae: interrupted before the work began; nothing was saved.\n")
    os._exit(INTERRUPTED)
