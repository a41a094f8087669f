"""No figure outlives its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matplotlib import pyplot


@pytest.fixture(autouse=True)
def no_figure_stays() -> Iterator[None]:
    """Start with pyplot empty, and leave it so."""
    pyplot.close("all")
    yield
    pyplot.close("all")
