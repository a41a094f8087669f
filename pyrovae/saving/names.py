"""The names that results have in files, which stay when a class or a module gets another."""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from pyrovae.errors import InputError

#: The rooms whose doors offer the results. They stand above this one, so that they are looked up
#: when a file is written or read, and not imported before.
ROOMS = {
    "pyrovae.estimates": ("Estimate",),
    "pyrovae.mixture": ("Bounds", "ClassMeans", "Reduction", "Responsibilities"),
    "pyrovae.training": ("Fit", "History"),
    "pyrovae.ex_post": ("Candidate", "ExPostPrior"),
    "pyrovae.evidence": ("Annealing", "Evidence", "Sandwich"),
    "pyrovae.export": ("ExportedDraws",),
    "pyrovae.calibration": ("Calibration", "LocalCalibration"),
    "pyrovae.diagnostics": (
        "Attributions", "Baselines", "Codes", "Collapse", "Copies", "Diagnosis",
        "Effort", "Gaps", "GuideCheck", "Holes", "Information", "Memorisation", "NutsComparison",
        "Pictures", "Quality", "SampleQuality", "Surgery", "TwoSample",
    ),
    "pyrovae.populations": (
        "GroupComparison", "GroupContrast", "MemorisationScreen", "Novelty", "RefitMemorisation",
    ),
    "pyrovae.runs": ("Comparison", "Imputation", "Scores"),
}  # fmt: skip
HOME = {name: room for room, names in ROOMS.items() for name in names}
#: What results were once called.
FORMER = {"Beside": "NutsComparison", "Labelled": "ExportedDraws"}
#: What their fields were once called, by the name of the result today.
FORMER_FIELDS = {"Diagnosis": {"guide": "guide_check", "labelled": "exported"}}
#: Fields that once also held text, and those that hold it today, by the name of the result.
FORMER_TEXTS = {"Diagnosis": {"sample_quality": "quality_refused"}}


def name_of(kind: type) -> str | None:
    """The name of a result in files; ``None`` for a class that is none."""
    name = kind.__name__
    return name if name in HOME and class_of(name) is kind else None


@cache
def class_of(name: str) -> Any:
    """The class of a result from its name, today's or a former one.

    Raises:
        InputError: if there is none of that name.
    """
    name = FORMER.get(name, name)
    if name not in HOME:
        raise InputError(f"expected a result of pyrovae; got {name!r}.")
    return getattr(importlib.import_module(HOME[name]), name)


def fields_of(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass or of a named tuple."""
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind))
    return getattr(kind, "_fields", ()) if issubclass(kind, tuple) else ()


def build(name: str, content: Mapping[str, Any]) -> Any:
    """A result from its name and its fields.

    Raises:
        InputError: if there is no such result, or it has other fields, or of another type.
    """
    kind = class_of(name)
    former = FORMER_FIELDS.get(kind.__name__, {})
    content = {former.get(field, field): value for field, value in content.items()}
    texts = FORMER_TEXTS.get(kind.__name__, {})
    content = {
        texts.get(field, field) if isinstance(value, str) else field: value
        for field, value in content.items()
    }
    unknown = sorted(content.keys() - set(fields_of(kind)))
    missing = sorted(_needed(kind) - content.keys())
    if unknown or missing:
        raise InputError(
            f"expected the fields of {kind.__name__}; got "
            + " and ".join(
                [f"none named {field!r}" for field in missing]
                + [f"{field!r}, which this version doesn't know" for field in unknown]
            )
        )
    hints = _hints(kind)
    for field, value in content.items():
        if not fits(value, hints[field]):
            _refuse(f"{kind.__name__}.{field}", hints[field], value)
    return kind(**content)


def _needed(kind: type) -> set[str]:
    """The fields without a default."""
    if is_dataclass(kind):
        optional = (MISSING, MISSING)
        return {f.name for f in fields(kind) if (f.default, f.default_factory) == optional}
    return set(fields_of(kind)) - set(getattr(kind, "_field_defaults", ()))


_hints = cache(get_type_hints)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field declares; a whole number may be a float's."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _fit(value, arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is np.ndarray:
        return isinstance(value, np.ndarray)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items()
        )
    if hint in (int, float):
        return isinstance(value, hint | int) and not isinstance(value, bool)
    return isinstance(value, torch.distributions.Distribution if _density(hint) else hint)


def _fit(values: tuple[Any, ...], hints: Sequence[Any]) -> bool:
    if len(hints) == 2 and hints[1] is ...:
        hints = [hints[0]] * len(values)
    return len(values) == len(hints) and all(map(fits, values, hints))


def _density(hint: Any) -> bool:
    """Whether it is the distribution of Pyro that every other one counts as."""
    return hint.__name__ == "Distribution" and hint.__module__.startswith("pyro.")


def _refuse(field: str, hint: Any, value: Any) -> NoReturn:
    wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise InputError(f"expected {wanted} as {field}; got {type(value).__name__}.")
