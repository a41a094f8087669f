"""Reproducible draws that leave the caller's random state as it was."""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
import torch

from pyrovae.errors import InputError
from pyrovae.torch_modes import alone


@contextmanager
def seeded(seed: SupportsIndex, purpose: str, *parts: SupportsIndex) -> Iterator[None]:
    """Draw from the stream that ``seed`` and ``purpose`` name, then restore torch's random state.

    Block ``b`` of a computation draws from ``seeded(seed, "weights", b)``: its draws depend on
    nothing that happened before, and no other seed or purpose shares them. Other threads wait.

    Args:
        seed, purpose, parts: as :func:`derived_seed`.

    >>> with seeded(0, "codes"):
    ...     first = torch.rand(2)
    >>> with seeded(0, "codes"):
    ...     bool((first == torch.rand(2)).all())
    True
    """
    state = derived_seed(seed, purpose, *parts)
    with alone(), torch.random.fork_rng():
        torch.manual_seed(state)
        yield


@contextmanager
def seeded_everywhere(seed: SupportsIndex, purpose: str, *parts: SupportsIndex) -> Iterator[None]:
    """As :func:`seeded`, for the user's code, which may draw from NumPy or Python as well.

    >>> with seeded_everywhere(0, "rows"):
    ...     first = random.random(), np.random.rand()
    >>> with seeded_everywhere(0, "rows"):
    ...     first == (random.random(), np.random.rand())
    True
    """
    state = derived_seed(seed, purpose, *parts, bits=32)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with seeded(seed, purpose, *parts):
            random.seed(state)
            np.random.seed(state)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def derived_seed(seed: SupportsIndex, purpose: str, *parts: SupportsIndex, bits: int = 63) -> int:
    """A seed for another generator, shared with no other seed or purpose except by chance.

    Args:
        seed: the number that a user chose: an integer ≥ 0, NumPy's too.
        purpose: what the draws are for, in words used at one place in the package. A function that
            calls another one twice passes it a derived seed each time.
        parts: numbers of blocks or epochs.
        bits: size of the result: 32 for NumPy's and scikit-learn's ``random_state``.

    Raises:
        InputError: if the seed is not an integer ≥ 0.

    >>> derived_seed(1, "folds") == derived_seed(2, "folds")
    False
    """
    check_seed(seed)
    name = (operator.index(seed), purpose, *map(operator.index, parts))
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - bits)


def check_seed(seed: SupportsIndex) -> None:
    """Raise unless a seed is an integer ≥ 0, before any work begins.

    Raises:
        InputError: if it is not.
    """
    is_integer = hasattr(seed, "__index__") and not isinstance(seed, bool)
    if not is_integer or operator.index(seed) < 0:
        raise InputError(f"expected an integer ≥ 0 as seed; got {seed!r}. Use seed=0, for example.")
