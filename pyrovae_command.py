"""The command ``pyrovae`` from its first moment: Ctrl-C is one line while the library is imported.

It stands beside the package, since importing anything inside of it imports the whole library first,
which takes seconds.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130


def main() -> int:
    """Import the library, run the command and return its exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # and not ignored, as in the background of a shell
        signal.signal(signal.SIGINT, _stop)
    from pyrovae.command import main as run

    signal.signal(signal.SIGINT, before)
    return run()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """End at once: nothing is written yet, and an exception could be swallowed by an import."""
    os.write(2, b"pyrovae: interrupted before the work began; nothing was saved.\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    raise SystemExit(main())
