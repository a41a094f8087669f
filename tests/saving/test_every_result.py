"""What `save` takes `load` gives back: every kind of result, and what is made of plain parts."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import types
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import example as including
from hypothesis import strategies as st
from torch import Tensor

import pyrovae as pv
from pyrovae import diagnostics, evidence
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.mixture.mixture import Mixture
from pyrovae.saving import names, write_archive
from pyrovae.saving.results import FORMAT, _pack

MODULES = (
    *(f"pyrovae.evidence.{info.name}" for info in pkgutil.iter_modules(evidence.__path__)),
    *(f"pyrovae.diagnostics.{info.name}" for info in pkgutil.iter_modules(diagnostics.__path__)),
    "pyrovae.calibration.joint", "pyrovae.calibration.local",
    "pyrovae.estimates", "pyrovae.training.history", "pyrovae.mixture.by_label",
    "pyrovae.mixture.divergence", "pyrovae.mixture.reduction",
    "pyrovae.mixture.kernel.component_scores", "pyrovae.ex_post.selection", "pyrovae.export.groups",
    "pyrovae.runs.compare", "pyrovae.runs.imputation", "pyrovae.runs.scores",
    "pyrovae.populations.groups", "pyrovae.populations.novel_rows", "pyrovae.populations.refits",
    "pyrovae.populations.screen",
)  # fmt: skip
NO_RESULTS = {
    "Fitted",
    "Ladder",
    "LocalMixture",
    "Modes",
    "Moments",
    "NormalComponents",
    "Normals",
    "Pairs",
    "Path",
    "Point",
    "Product",
    "Proposal",
    "ProposalPath",
    "Target",
    "Tilted",
    "Tuning",
}  # what a computation goes through


def result_types() -> dict[str, type]:
    """Every public dataclass in the modules of results that holds no function."""
    kinds = {}
    for name in MODULES:
        for kind in vars(importlib.import_module(name)).values():
            own = inspect.isclass(kind) and is_dataclass(kind) and kind.__module__ == name
            if own and kind.__name__[0] != "_" and kind.__name__ not in NO_RESULTS:
                kinds[kind.__name__] = kind
    return kinds


KINDS = result_types()


def example(hint: Any) -> Any:
    """A value of a type, in NumPy's own numbers where a careless hand may have left some."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in EXAMPLES:
        return EXAMPLES[hint]()
    if origin is Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return example(next(kind for kind in arguments if kind is not type(None)))
    if origin is tuple:
        return tuple(example(kind) for kind in arguments if kind is not ...)
    if origin is list:
        return [example(arguments[0])]
    if origin is np.ndarray:
        return np.arange(3.0)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return {example(arguments[0]): example(arguments[1])}
    if is_dataclass(hint) or (inspect.isclass(hint) and hasattr(hint, "_fields")):
        return made(hint)
    raise NotImplementedError(f"no example of {hint}")


def mixture() -> pv.AggregatedPosterior:
    return pv.AggregatedPosterior(dist.Normal(torch.eye(3), 1.0).to_event(1))


EXAMPLES: dict[Any, Any] = {
    float: lambda: np.float64(0.5),
    int: lambda: np.int64(100),
    bool: lambda: np.bool_(True),
    str: lambda: np.str_("z"),
    object: lambda: np.float32(0.5),
    Any: lambda: np.float32(0.5),
    Tensor: lambda: torch.arange(3.0),
    np.ndarray: lambda: np.arange(3)[::-1],
    dist.Distribution: lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    torch.Size: lambda: torch.Size([2, 3]),
    Mixture: lambda: mixture(),
    pv.AggregatedPosterior: lambda: mixture(),
}


def made(kind: Any) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else kind._fields
    return kind(**{name: example(hints[name]) for name in names})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(), other.nan_to_num()) and one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc") and (
            one.dtype.newbyteorder("=") == other.dtype and one.shape == other.shape
        )
    if isinstance(one, torch.distributions.Distribution):
        z = torch.zeros(one.event_shape)
        return type(one) is type(other) and torch.equal(one.log_prob(z), other.log_prob(z))
    if is_dataclass(one):
        parts = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
        return type(one) is type(other) and all(same(a, b) for a, b in parts)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        names = getattr(one, "_fields", None) == getattr(other, "_fields", None)
        same_kind = isinstance(other, tuple) == isinstance(one, tuple) and names
        return same_kind and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float | np.floating) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_result_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    result = made(KINDS[name])
    pv.save(result, tmp_path / "result.pt")
    again = pv.load(tmp_path / "result.pt")
    assert same(result, again)
    assert repr(type(again)) == repr(type(result))
    if name != "Diagnosis":  # which is shown by what its parts measure, and these are made up
        assert len(repr(again)) < 1_000
        assert not hasattr(again, "_repr_html_") or "<table" in again._repr_html_()


def test_each_has_a_name_in_files_that_its_room_offers() -> None:
    assert {name: names.class_of(name) for name in names.HOME} == KINDS


CHANGED: dict[str, tuple[Any, str]] = {
    "a name that is none": ({"name": "Diagnose"}, "expected a result of pyrovae; got 'Diagnose'"),
    "a function": ({"name": "diagnose"}, "expected a result of pyrovae; got 'diagnose'"),
    "a class elsewhere": ({"name": ["subprocess", "Popen"]}, "got 'Popen'"),
    "a field too many": ({"colour": 1.0}, "'colour', which this version doesn't know"),
    "text for a number": ({"value": "0.5"}, "expected float as Estimate.value; got str"),
    "truth for a number": ({"size": True}, "expected int as Estimate.size; got bool"),
    "a tensor for a number": ({"value": torch.ones(2)}, "expected float as Estimate.value"),
    "a word that is none of them": ({"bound": "above"}, "as Estimate.bound; got str"),
    "one end of an interval": (
        {"ends": {"kind": "tuple", "items": [1.0]}},
        "expected tuple.* as Estimate.ends; got tuple",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_file_of_other_names_or_types_is_refused(name: str, tmp_path: Path) -> None:
    change, message = CHANGED[name]
    result = _pack(Estimate(0.5, 0.1, 3))
    place = result if "name" in change else result["fields"]
    place |= change
    write_archive({"pyrovae": FORMAT, "result": result}, tmp_path / "changed.pt")
    with pytest.raises(InputError, match=message):
        pv.load(tmp_path / "changed.pt")


@pytest.mark.parametrize("field", ["value", "standard_error", "size"])
def test_a_file_without_a_field_is_refused(field: str, tmp_path: Path) -> None:
    result = _pack(Estimate(0.5, 0.1, 3))
    del result["fields"][field]
    write_archive({"pyrovae": FORMAT, "result": result}, tmp_path / "short.pt")
    with pytest.raises(InputError, match=f"got none named '{field}'"):
        pv.load(tmp_path / "short.pt")


class Named(NamedTuple):
    mean: float
    size: int


Plain = namedtuple("Plain", "a b")

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.floats(width=32).map(np.float32)
    | st.floats().map(np.float64)
    | st.integers(-100, 100).map(np.int16)
    | st.booleans().map(np.bool_)
    | st.text(max_size=5).map(np.str_)
    | st.lists(st.floats(), max_size=3).map(torch.tensor)
    | st.lists(st.integers(0, 9), max_size=3).map(torch.Size)
    | st.sampled_from(["f2", "f4", "f8", ">f8", "u1", "i2", ">i4", "?", "c16"]).map(
        lambda kind: np.ones((2, 3), kind)[:, ::-1]
    )
    | st.just(np.asarray(2.5))
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.builds(Named, inner, inner)
        | st.builds(Plain, inner, inner)
        | st.builds(Estimate, st.floats(), st.floats(), st.integers())
    ),
    max_leaves=8,
)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(value=NESTED)
@including(value=np.str_("a\0"))
def test_what_is_saved_is_read_as_it_was(value: Any, tmp_path: Path) -> None:
    pv.save(value, tmp_path / "value.pt")
    assert same(value, pv.load(tmp_path / "value.pt"))


class Subclass(Tensor):
    pass


ODD = {
    "complex number": 1j,
    "set": {1},
    "bytes": b"a",
    "date": np.datetime64("2026-01-01"),
    "long double": np.longdouble(1),
    "texts": np.array(["a", "b"]),
    "objects": np.array([object()]),
    "masked": np.ma.masked_array([1.0, 2.0], [False, True]),
    "tensor of another class": torch.ones(2).as_subclass(Subclass),
    "int of another class": type("Level", (int,), {})(3),
    "function": math.exp,
    "class": Estimate,
    "module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", ODD)
def test_what_would_not_be_read_as_it_was_is_not_written(name: str, tmp_path: Path) -> None:
    for value in (ODD[name], [ODD[name]], {"a": ODD[name]}, Estimate(ODD[name], 0.1, 3)):
        with pytest.raises(InputError, match=r"^expected a result"):
            pv.save(value, tmp_path / "value.pt")
    assert not list(tmp_path.iterdir())
