"""ArviZ of either version answers the same question in the same way, or says what it lacks."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrovae
from pyrovae import arviz_adapter
from pyrovae.errors import InputError


@pytest.mark.parametrize("draws", [2, 3, 4, 5, 9, 10, 19, 20])
def test_of_few_draws_there_is_no_tail(draws: int) -> None:
    log_weights = 3 * np.random.default_rng(draws).normal(size=(4, draws))
    smoothed, pareto_k = arviz_adapter.psis(log_weights)
    plain = log_weights - np.logaddexp.reduce(log_weights, axis=1, keepdims=True)
    np.testing.assert_allclose(smoothed, plain, rtol=1e-12, atol=1e-12)
    assert (pareto_k == np.inf).all()


def test_of_equal_weights_there_is_no_tail() -> None:
    smoothed, pareto_k = arviz_adapter.psis(np.zeros((2, 100)))
    np.testing.assert_allclose(smoothed, -np.log(100), rtol=1e-12)
    assert (pareto_k == np.inf).all()


def test_a_heavy_tail_is_seen() -> None:
    random = np.random.default_rng(0)
    heavy, light = random.exponential(size=(1, 4000)) * 1.2, random.normal(size=(1, 4000)) * 0.1
    assert arviz_adapter.psis(heavy)[1] == pytest.approx(1.2, abs=0.3)  # Pareto with k = 1.2
    assert arviz_adapter.psis(light)[1] < 0.4


@pytest.mark.parametrize("draws", [150, 500, 5000])
def test_draws_without_weight_are_no_tail(draws: int) -> None:
    log_weights = np.full((1, draws), -np.inf)
    log_weights[0, :28] = 0.1 * np.random.default_rng(0).normal(size=28)
    smoothed, pareto_k = arviz_adapter.psis(log_weights)
    assert pareto_k < 0.5
    assert (smoothed[0, 28:] == -np.inf).all()
    assert np.logaddexp.reduce(smoothed[0, :28]) == pytest.approx(0, abs=1e-12)


READ = """
import os, sys
from pyrovae.arviz_adapter import arviz
from pyrovae.errors import InputError
try:
    arviz()
except InputError as error:
    print(error)
    os.environ["XDG_CACHE_HOME"] = sys.argv[1]
    arviz()
"""


def test_without_a_home_it_says_what_helps_and_that_helps(tmp_path: Path) -> None:
    (tmp_path / "home").touch()  # a file, in which nothing can be made
    keep = {name: value for name, value in os.environ.items() if not name.startswith("XDG")}
    place = {"HOME": str(tmp_path / "home"), "MPLCONFIGDIR": str(tmp_path)}
    place["PYTHONPATH"] = str(Path(pyrovae.__file__).parents[1])
    command = [sys.executable, "-W", "error::FutureWarning", "-c", READ, str(tmp_path / "cache")]
    run = subprocess.run(
        command, env={**keep, **place}, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    if run.stdout:  # only some versions keep something
        assert run.stdout.startswith("expected a folder in which ArviZ may keep its cache; got Not")
        assert "XDG_CACHE_HOME" in run.stdout


def test_a_cache_that_cannot_be_kept_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def read_only(name: str, *arguments: Any, **further: Any) -> Any:
        if name == "arviz":
            raise OSError(30, "Read-only file system", "/home/me/.cache")
        return original(name, *arguments, **further)

    monkeypatch.setattr(builtins, "__import__", read_only)
    with pytest.raises(InputError, match=r"got Read-only file system at '/home/me/.cache'\. Set"):
        arviz_adapter.psis(np.zeros((1, 100)))


def test_its_announcements_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def announcing(name: str, *arguments: Any, **further: Any) -> Any:
        if name == "arviz":
            warnings.warn("\nArviZ is undergoing a major refactor", FutureWarning, stacklevel=2)
        return original(name, *arguments, **further)

    monkeypatch.setattr(builtins, "__import__", announcing)
    assert arviz_adapter.arviz().__name__ == "arviz"
