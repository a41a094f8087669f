"""One thread at a time, and outside torch's inference mode and autocast."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.RLock()
_DEVICES = ("cpu", "cuda", "mps", "xpu")  # on which torch has autocast


@contextmanager
def alone() -> Iterator[None]:
    """Lock what torch and Pyro keep once per process: one thread of the library runs at a time.

    Pyro's handlers and parameter store, the random state and the argument checks are shared by all
    threads. All of this library that uses them holds this lock, so that calls from several threads
    take turns. A thread may take it again; one that holds it while it waits for another thread that
    needs it waits forever.
    """
    with _lock:
        yield


@contextmanager
def plain() -> Iterator[None]:
    """Leave ``torch.inference_mode``, with gradients off, and autocast.

    Inference mode allows no gradients, and autocast turns numbers that are summed up into bfloat16
    or float16. A network that should run in lower precision says so in its own ``forward``.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in _DEVICES:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def isolated() -> Iterator[None]:
    """Both: `alone` and `plain`."""
    with _lock, plain():
        yield


def _renew_lock() -> None:
    """Give a forked process a lock of its own: a thread that it lacks may hold the old one."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
