"""What a missing package is needed for is one sentence, with the extra that brings it."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement

import pyrovae as pv
from pyrovae import plots, report
from pyrovae.command.analysis import AnalysisOptions, analyze
from pyrovae.data.datasets import Dataset, load
from pyrovae.diagnostics.two_sample import two_sample_test
from pyrovae.errors import InputError
from pyrovae.extras import EXTRAS, MissingPackage, needed_for
from pyrovae.testing import linear_gaussian_vae

ROOT = Path(pv.__file__).parents[1]
MODULES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
}  # where a package is imported by another name


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make an import of a package fail as if it were not installed."""

    def block_package(package: str) -> None:
        loaded = [name for name in sys.modules if name.partition(".")[0] == package]
        for name in {package, *loaded}:
            monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]

    return block_package


def of_table(folder: Path) -> object:
    pd.DataFrame({"a": [1.0, 2.0]}).to_csv(folder / "t.parquet")  # is not read so far
    return load(folder / "t.parquet")


def of_folder(folder: Path) -> object:
    (folder / "a.png").write_bytes(b"")  # is not read so far
    return load(folder)


def of_cells(folder: Path) -> object:
    (folder / "cells.h5ad").write_bytes(b"")
    return load(folder / "cells.h5ad")


NEEDS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "table": ("pyarrow", of_table, r"Reading '.*t\.parquet' needs pyarrow: .*'pyrovae\[tables\]'"),
    "images": ("PIL", of_folder, r"Reading images needs pillow: .*'pyrovae\[images\]'"),
    "cells": ("h5py", of_cells, r"Reading '.*cells\.h5ad' needs h5py: .*'pyrovae\[report\]'"),
    "digits": ("sklearn", lambda _: load("digits"), "The data set 'digits' needs scikit-learn"),
    "two samples": (
        "sklearn",
        lambda _: two_sample_test(torch.zeros(50, 2), torch.zeros(50, 2), size=50),
        "The classifier needs scikit-learn",
    ),
    "picture": (
        "matplotlib",
        lambda _: plots.latent_map(None),  # type: ignore[arg-type]
        "A picture needs matplotlib",
    ),
    "report": (
        "jinja2",
        lambda _: report.render(None, facts={}),  # type: ignore[arg-type]
        "A report needs jinja2",
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_a_package_is_missing_for_names_its_extra(
    name: str, tmp_path: Path, block: Callable[[str], None]
) -> None:
    package, use, text = NEEDS[name]
    block(package)
    with pytest.raises(InputError, match=text) as caught:
        use(tmp_path)
    extra = {"pyarrow": "tables", "PIL": "images"}.get(package, "report")
    assert str(caught.value).endswith(f": pip install 'pyrovae[{extra}]'")
    assert str(caught.value).startswith("expected the package ")


@pytest.mark.parametrize("package", EXTRAS["report"])
def test_an_analysis_refuses_before_it_trains(
    package: str, tmp_path: Path, block: Callable[[str], None]
) -> None:
    block(package)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"An analysis with a report needs .*pyrovae\[report\]"):
        analyze(Dataset("d", torch.randn(50, 3)), AnalysisOptions(out=out))
    assert not out.exists()


def test_a_diagnosis_without_the_classifier_says_what_that_number_needs(
    block: Callable[[str], None],
) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(120)
    train, held_out = x[:60], x[60:]
    effort = pv.Effort(evidence_rows=0, export_rows=0, pictures=0, simulations=0)

    def measure() -> dict[Any, Any]:
        summary = pv.diagnose(vae.model, vae.guide, train, held_out=held_out, effort=effort)
        return summary.summary().set_index(["data", "measure"]).to_dict("index")

    with_all = measure()
    block("sklearn")
    without = measure()
    assert with_all.keys() == without.keys()
    for key, row in without.items():
        if key[1].startswith("two_sample."):
            assert row["unresolved"] == (
                "the classifier needs scikit-learn: pip install 'pyrovae[report]'"
            )
            assert math.isnan(row["value"]) and row["standard_error"] == math.inf
        else:
            pd.testing.assert_series_equal(pd.Series(row), pd.Series(with_all[key]))


def test_a_package_that_no_extra_brings_is_not_taken_for_one() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as caught, needed_for("it"):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingPackage)


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = dict(project["optional-dependencies"])
    tools = {Requirement(text) for text in optional.pop("test")}
    (itself,) = (tool for tool in tools if tool.name == "pyrovae")
    optional.pop("docs")  # which builds the site; nothing of the package imports it
    assert itself.extras == EXTRAS.keys() == optional.keys()
    for extra, packages in EXTRAS.items():
        names = {Requirement(text).name for text in optional[extra]}
        assert {MODULES.get(name, name) for name in names} == set(packages)
    core = {Requirement(text).name for text in project["dependencies"]}
    assert core == {"arviz", "numpy", "pandas", "pyro-ppl", "rich", "scipy", "torch"}


IMPORT_ALL = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    sys.modules[package] = None
import pyrovae
for module in pkgutil.walk_packages(pyrovae.__path__, "pyrovae."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_no_module_needs_an_extra_to_be_imported() -> None:
    packages = [package for packages in EXTRAS.values() for package in packages]
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL, *packages]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
