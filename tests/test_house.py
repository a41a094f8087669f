"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room imports only from rooms before it. Files of one room stand on one level.
ROOMS = (
    (
        "errors",
        "estimates",
        "isolation",
        "randomness",
        "atomic",
        "arviz_adapter",
        "arrays",
        "batches",
        "progress",
    ),
    ("mixture",),
    ("models",),
    ("training",),
    ("evidence",),
    ("diagnostics",),
    ("report",),
    ("testing",),
    ("keep", "files", "datasets", "preflight", "own_pair", "analysis", "cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}

# What `import pyrovae` may load: torch, Pyro and NumPy with what they need themselves, and pandas,
# in which results are tables.
ALLOWED = {"torch", "torchgen", "pyro", "numpy", "opt_einsum", "tqdm", "typing_extensions"}
ALLOWED |= {"pandas", "dateutil", "six"}
ALLOWED |= {"cuda"}  # which torch's own builds for GPUs bring and load

AT_IMPORT = """
import json, random, sys
import numpy, pyro, torch
import pyro.distributions, torch.distributions

def state():
    return [
        str(torch.get_default_dtype()), torch.get_rng_state().tolist(), repr(random.getstate()),
        repr(numpy.random.get_state()), torch.is_grad_enabled(), torch.get_num_threads(),
        torch.distributions.Distribution._validate_args, pyro.distributions.is_validation_enabled(),
        dict(pyro.get_param_store().items()), repr(pyro.poutine.runtime._PYRO_STACK),
        torch.are_deterministic_algorithms_enabled(), str(torch.get_default_device()),
        torch.get_float32_matmul_precision(), repr(numpy.geterr()),
    ]

before = state()
import pyrovae
after = state()
modules = {
    name.partition(".")[0] for name, module in list(sys.modules.items())
    if "site-packages" in (getattr(module, "__file__", None) or "")
}
print(json.dumps({"modules": sorted(modules), "changed": before != after}))
"""


@pytest.fixture(scope="module")
def at_import() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_IMPORT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_import_loads_no_more_than_is_allowed(at_import: dict[str, object]) -> None:
    modules = at_import["modules"]
    assert isinstance(modules, list)
    top = {name for name in modules if not name.startswith(("_", "pyrovae"))}
    assert top <= ALLOWED, f"not on the list: {sorted(top - ALLOWED)}"


def test_import_changes_no_global_state(at_import: dict[str, object]) -> None:
    assert not at_import["changed"]


# -- imports ---------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "pyrovae")


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pyrovae"])
def test_a_room_imports_only_from_rooms_before_it(name: str) -> None:
    assert room(name) in LEVEL, f"{name} has no place in ROOMS"
    for other, line in imports(MODULES[name]):
        if other == "pyrovae":
            assert room(name) == "cli", f"{name}:{line} imports the front door"
            continue
        same = room(other) == room(name)
        assert same or LEVEL[room(other)] <= LEVEL[room(name)], f"{name}:{line} imports {other}"


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        name: {other for other, _ in imports(path)} - {"pyrovae"} for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_a_room_s_own_file_holds_a_docstring_only(path: Path) -> None:
    (only,) = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant)


# -- randomness ------------------------------------------------------------------------------------


def purposes() -> Iterator[tuple[str, str]]:
    """The purpose of every stream of draws, with the place where it is named."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if named and node.func.id in ("seeded", "derived_seed") and path.stem != "randomness":
                place = f"{module_name(path)}:{node.lineno}"
                word = node.args[1] if len(node.args) > 1 else None
                assert isinstance(word, ast.Constant), f"{place}: a purpose that is not written out"
                assert isinstance(word.value, str), f"{place}: a purpose that is no word"
                yield word.value, place


def test_no_two_places_draw_for_the_same_purpose() -> None:
    places: dict[str, list[str]] = {}
    for word, place in purposes():
        places.setdefault(word, []).append(place)
    assert {word: at for word, at in places.items() if len(at) > 1} == {}
    assert len(places) > 30


# -- sizes -----------------------------------------------------------------------------------------


def functions() -> Iterator[tuple[str, int]]:
    """Every function with its number of lines, docstring excluded."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                doc = ast.get_docstring(node) is not None
                skipped = (first.end_lineno or 0) - first.lineno + 1 if doc else 0
                lines = (node.end_lineno or 0) - node.lineno + 1 - skipped
                yield f"{module_name(path)}.{node.name}", lines


def test_functions_are_short() -> None:
    sizes = dict(functions())
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    assert sorted(sizes.values())[int(0.9 * len(sizes))] <= 25


# -- metadata --------------------------------------------------------------------------------------


def project() -> dict[str, object]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    result: dict[str, object] = content["project"]
    return result


def test_the_version_is_the_same_everywhere() -> None:
    assert project()["version"] == pyrovae.__version__
    assert f"## {pyrovae.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_all_names_exported_exist_and_say_what_they_are() -> None:
    for name in pyrovae.__all__:
        assert getattr(pyrovae, name).__doc__, name


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements() -> list[Requirement]:
    metadata = project()
    wanted = list(metadata["dependencies"])  # type: ignore[call-overload]
    for extra in metadata["optional-dependencies"].values():  # type: ignore[attr-defined]
        wanted += extra
    found = [Requirement(text) for text in wanted]
    return [requirement for requirement in found if requirement.name != "pyrovae"]


def test_every_dependency_is_pinned_to_a_version_in_its_range() -> None:
    pinned = pins("constraints.txt")
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    pinned = pins("constraints-lowest.txt")
    for requirement in requirements():
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        lowest = Version(pinned[requirement.name.lower()])
        assert (
            Version(bound.version).release == lowest.release[: len(Version(bound.version).release)]
        )
