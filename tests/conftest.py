"""The same ground for every test: float64, an empty param store, a fixed seed, no windows."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

import pyro
import torch

sys.path.insert(0, str(Path(__file__).parent))
pytest_plugins = ["small_diagnoses"]  # of the rooms that show them

SEED = 0


@pytest.fixture(autouse=True)
def _same_ground(request: pytest.FixtureRequest) -> Iterator[None]:
    """float64 (``@pytest.mark.float32`` opts out), checks on, an empty store, a fixed seed."""
    dtype = torch.get_default_dtype()
    if request.node.get_closest_marker("float32") is None:
        torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    pyro.enable_validation(True)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        pyro.clear_param_store()
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
