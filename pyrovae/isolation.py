"""One thread at a time, and outside of the modes that torch is in around a call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.RLock()
_DEVICES = ("cpu", "cuda", "mps", "xpu")  # on which torch may cast in passing


@contextmanager
def alone() -> Iterator[None]:
    """Hold what torch and Pyro have once for a whole process: no other thread of ours runs.

    Pyro's handlers and parameter store, the random state and the argument checks are shared by all
    threads. Whatever uses them in this library does so in here, so that calls from several threads
    take turns. A thread may come in again; one that waits in here for another one that wants to
    come in waits forever.
    """
    with _lock:
        yield


@contextmanager
def plain() -> Iterator[None]:
    """Leave ``torch.inference_mode`` and autocast, without gradient in the first case.

    In inference mode no gradient can be had, and autocast makes bfloat16 or float16 of numbers that
    are summed up. A network that is to run in lower precision says so in its own ``forward``.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in _DEVICES:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _renew() -> None:
    """A process that is forked while another thread holds the lock would wait forever."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
