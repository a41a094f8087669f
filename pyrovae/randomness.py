"""Reproducible draws that leave the caller's random state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(*seeds: int) -> Iterator[None]:
    """Draw from the stream that ``seeds`` name, then put torch's random state back.

    Several integers name one stream, so that block ``b`` of a computation with ``seed`` draws from
    ``seeded(seed, b)`` and its draws depend on nothing that happened before.

    >>> with seeded(0, 3):
    ...     first = torch.rand(2)
    >>> with seeded(0, 3):
    ...     bool((first == torch.rand(2)).all())
    True
    """
    state = 0
    for seed in seeds:
        # A multiplicative hash: neighbouring seeds and blocks must not share a stream.
        state = (state * 0x9E3779B97F4A7C15 + seed + 1) % (1 << 63)
    with torch.random.fork_rng():
        torch.manual_seed(state)
        yield
