"""What is freed goes back to the system, instead of being kept for later."""

from __future__ import annotations

import ctypes
import sys

LARGE = 1 << 24  # bytes of a block that is handed back
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of glibc's mallopt


def hand_back() -> None:
    """Have glibc hand back large blocks when they are freed.

    Left to itself it keeps more and more of them as a program frees larger ones, and small ones in
    between hold them fast: hundreds of megabytes in an analysis. Other libraries are left as they
    are. It is for a process of our own, as it can't be taken back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)
        mallopt(TRIM_THRESHOLD, LARGE)
