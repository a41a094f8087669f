"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib
import json
import re
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

# Each room imports only from rooms before it. Rooms of one line stand on one level.
ROOMS = (
    (
        "errors",
        "estimates",
        "display",
        "extras",
        "randomness",
        "torch_modes",
        "progress",
        "arviz_adapter",
    ),
    ("data",),
    ("mixture.families",),
    ("mixture.kernel",),
    ("mixture",),
    ("saving", "pairs"),
    ("scale",),
    ("models", "training", "evidence"),
    ("ex_post", "export", "calibration", "testing"),
    ("diagnostics",),
    ("populations",),
    ("plots",),
    ("report",),
    ("runs",),
    ("explorer",),
    ("command", "__main__"),
)
GROUND = set(ROOMS[0])
# Public modules beside the rooms' own doors: the two subjects of the mixture that stand alone.
DOORS = {"pyrovae.mixture.families", "pyrovae.mixture.kernel"}
# Imports that go past a door, with the reason.
PAST_A_DOOR: dict[tuple[str, str], str] = {}
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}

# What `import pyrovae` may load: torch, Pyro and NumPy with what they need themselves. All else,
# core or optional, is imported where it is used.
ALLOWED = {"torch", "torchgen", "pyro", "numpy", "opt_einsum", "tqdm", "typing_extensions"}
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


def whence(module: str, name: str) -> str:
    """The module that ``from module import name`` takes: what a door offers, before a file."""
    inner = f"{module}.{name}"
    if inner not in MODULES:
        return module
    offered = () if module == "pyrovae" else getattr(importlib.import_module(module), "__all__", ())
    return module if name in offered else inner


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of the package that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [whence(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "pyrovae")


def room(module: str) -> str:
    """The top-level room of a module."""
    return module.split(".")[1]


def place(module: str) -> str:
    """The same, but for the two floors inside of the mixture."""
    name = ".".join(module.split(".")[1:3])
    return name if name in LEVEL else room(module)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pyrovae"])
def test_a_room_imports_only_from_rooms_before_it(name: str) -> None:
    assert place(name) in LEVEL, f"{name} has no place in ROOMS"
    for other, line in imports(MODULES[name]):
        if other == "pyrovae":
            assert room(name) == "command", f"{name}:{line} imports the front door"
            continue
        same = place(other) == place(name)
        assert same or LEVEL[place(other)] <= LEVEL[place(name)], f"{name}:{line} imports {other}"


def test_no_import_goes_in_a_circle() -> None:
    graph = {
        name: {other for other, _ in imports(path)} - {"pyrovae"} for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


FOLDERS = sorted(path for path in PACKAGE.rglob("*") if (path / "__init__.py").exists())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_room_s_door_says_what_it_is_for_and_where_to_start(folder: Path) -> None:
    door, *body = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
    assert isinstance(door, ast.Expr) and isinstance(door.value, ast.Constant)
    said = str(door.value.value)
    starts = re.findall(r"Start with\s+``(\w+\.py)``", said)
    assert len(starts) == 1 and (folder / starts[0]).exists(), said
    assert all(isinstance(node, ast.ImportFrom | ast.Assign) for node in body)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "pyrovae"])
def test_imports_between_rooms_go_through_doors(name: str) -> None:
    for other, line in imports(MODULES[name]):
        if other == "pyrovae" or room(other) in GROUND | {room(name)}:
            continue
        door = other.count(".") == 1 or other in DOORS or (name, other) in PAST_A_DOOR
        assert door, f"{name}:{line} reaches into {other}"


def test_the_drawing_in_contributing_is_that_of_the_imports() -> None:
    drawn = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+) +← ([\w ]+)", line):
            drawn[match[1]] = set(match[2].split()) - {"nothing"}
    actual: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name != "pyrovae" and room(name) not in GROUND | {"__main__", "testing"}:
            rooms = {room(other) for other, _ in imports(path) if other != "pyrovae"}
            actual.setdefault(room(name), set()).update(rooms - GROUND - {room(name)})
    assert drawn == actual


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


def requirements(*, without: tuple[str, ...] = ()) -> list[Requirement]:
    metadata = project()
    wanted = list(metadata["dependencies"])  # type: ignore[call-overload]
    for name, extra in metadata["optional-dependencies"].items():  # type: ignore[attr-defined]
        wanted += [] if name in without else extra
    found = [Requirement(text) for text in wanted]
    return [requirement for requirement in found if requirement.name != "pyrovae"]


def test_every_dependency_is_pinned_to_a_version_in_its_range() -> None:
    pinned = pins("constraints.txt")
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    pinned = pins("constraints-lowest.txt")
    for requirement in requirements(without=("docs",)):  # one set of versions builds the site
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        lowest = Version(pinned[requirement.name.lower()])
        assert (
            Version(bound.version).release == lowest.release[: len(Version(bound.version).release)]
        )


# -- the front door --------------------------------------------------------------------------------


def test_a_name_of_the_front_door_is_what_a_type_checker_takes_it_for() -> None:
    """It is found when it is first used, in the first room that has one of that name."""
    (block,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    )
    declared = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            declared[alias.name] = str(node.module)
    assert set(declared) == set(pyrovae.__all__)
    for name, module in declared.items():
        if module == "pyrovae":
            found: object = importlib.import_module(f"pyrovae.{name}")
        else:
            found = getattr(importlib.import_module(module), name)
        assert getattr(pyrovae, name) is found, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pyrovae.nothing  # noqa: B018


def test_every_public_object_has_an_example() -> None:
    documented = [name for name in pyrovae.__all__ if name != "plots"]
    assert [n for n in documented if ">>>" not in (getattr(pyrovae, n).__doc__ or "")] == []


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, pyrovae, pyrovae.command; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
