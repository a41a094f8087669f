"""Rebuild distributions of one family by calling its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.errors import InputError

Edit = Callable[[Sequence[Tensor]], Tensor]

#: Types of arguments that have no rows.
PLAIN = (type(None), bool, int, float, str)
#: Parameters of which a constructor takes one.
ALTERNATIVES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
    ("gate", "gate_logits"),
    ("correlation", "weighted_correlation"),
)


def rebuild(parts: Sequence[dist.Distribution], edit: Edit) -> dist.Distribution:
    """One distribution built from edited arguments of several distributions of one family.

    Args:
        parts: the distributions, whose batch shapes have the same rank.
        edit: turns the tensors of all parts into one; it leaves event dimensions alone.

    Raises:
        InputError: if the constructor can't be called with the attributes of the distribution, or
            changes them.
    """
    first, names = parts[0], parameters(parts[0])
    tensors, settings = zip(*(arguments(part, names) for part in parts), strict=True)
    arguments_of_first = {**tensors[0], **settings[0]}
    differing = len(parts) > 1 and [
        name for name in arguments_of_first if not _agree(name, tensors, settings)
    ]
    if differing:
        raise InputError(
            f"expected {type(first).__name__} with the same {', '.join(differing)} for all; got "
            "several. Encode all data by one guide."
        )
    edited = {name: edit([by_name[name] for by_name in tensors]) for name in tensors[0]}
    rest = {
        name: _edit_setting(value, parts, edit) if isinstance(value, Tensor) else value
        for name, value in settings[0].items()
    }
    rank = len(first.batch_shape)
    leading = {t.shape[: rank + t.dim() - tensors[0][n].dim()] for n, t in edited.items()}
    if "validate_args" in rest and any(0 in shape for shape in leading):
        rest["validate_args"] = False  # torch can't validate an empty batch
    rebuilt = build(type(first), **edited, **rest)
    if leading != {rebuilt.batch_shape} or rebuilt.event_shape != first.event_shape:
        raise _cannot_rebuild(first, "its parameters have other batch dimensions than it does")
    if "has_rsample" in vars(first):  # set by .has_rsample_(...)
        rebuilt.has_rsample = first.has_rsample
    if type(first).__module__.partition(".")[0] not in ("pyro", "torch"):
        _check_rebuilt(first, rebuilt, edited)
    return rebuilt


def tensors(part: dist.Distribution) -> list[Tensor]:
    """The tensors that `rebuild` edits, in its order.

    Raises:
        InputError: if the distribution does not keep an argument of its constructor.
    """
    by_name, settings = arguments(part, parameters(part))
    shared = [value for value in settings.values() if isinstance(value, Tensor)]
    return [
        *by_name.values(),
        *(value.reshape(()).expand(part.batch_shape) for value in shared),
    ]


def _edit_setting(value: Tensor, parts: Sequence[dist.Distribution], edit: Edit) -> Tensor:
    """A one-number tensor that all rows share, edited like the parameters."""
    rows = edit([value.reshape(()).expand(part.batch_shape) for part in parts]).reshape(-1)
    return rows[0].reshape(value.shape) if len(rows) else value.to(rows)


def _agree(
    name: str, tensors: Sequence[dict[str, Any]], settings: Sequence[dict[str, Any]]
) -> bool:
    """Whether all parts have an argument as a tensor with rows, or all have the same value."""
    if name in tensors[0]:
        return all(name in by_name for by_name in tensors)
    values: list[Any] = [by_name.get(name) for by_name in settings]
    if any(isinstance(value, Tensor) for value in values):
        return all(isinstance(v, Tensor) and torch.equal(v, values[0]) for v in values)
    return name == "validate_args" or all(value == values[0] for value in values)


def build(kind: Any, **arguments: Any) -> dist.Distribution:
    """Call the constructor of a family.

    Raises:
        InputError: with the name of the family, if the constructor refuses the arguments.
    """
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise _cannot_rebuild(kind, str(error).strip().rstrip(".")) from error


def _check_rebuilt(
    first: dist.Distribution, rebuilt: dist.Distribution, edited: dict[str, Tensor]
) -> None:
    """Refuse an unknown constructor that changes its arguments or does not take them all."""
    for name, tensor in edited.items():
        rebuilt_value = getattr(rebuilt, name)
        tolerance = 100 * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        if rebuilt_value.shape != tensor.shape or not torch.allclose(
            rebuilt_value, tensor, rtol=tolerance, atol=tolerance, equal_nan=True
        ):
            raise _cannot_rebuild(first, f"its constructor changes {name}")
    for name, value in vars(first).items():
        if _is_plain(value) and name != "_batch_shape" and getattr(rebuilt, name, None) != value:
            raise _cannot_rebuild(first, f"its constructor does not take {name}")


def _cannot_rebuild(family: Any, reason: str) -> InputError:
    name: str = family.__name__ if isinstance(family, type) else type(family).__name__
    return InputError(
        f"expected a family that can be rebuilt from its parameters; got {name}: {reason}. Use "
        "another family, such as Normal, or let its constructor take the names in arg_constraints "
        "and keep every other argument as an attribute of that name."
    )


def parameters(distribution: dist.Distribution) -> list[str]:
    """The parameters that a distribution was built from; of alternatives, only the one used."""
    try:
        names = list(distribution.arg_constraints)
    except NotImplementedError:  # torch's base class declares none
        names = []
    if not names:
        raise _cannot_rebuild(distribution, "it has no parameter tensors")
    for group in ALTERNATIVES:
        named = [name for name in group if name in names]
        if len(named) > 1:
            chosen = (_constructor_choice(distribution, named) or named)[0]
            names = [name for name in names if name not in named or name == chosen]
    return names


def _constructor_choice(distribution: dist.Distribution, alternatives: list[str]) -> list[str]:
    """Which of alternative parameters a distribution, or one inside it, was built from."""
    if "scale_tril" in alternatives:  # torch evaluates densities with it, whatever was passed
        return ["scale_tril"]
    attributes = vars(distribution)
    choices = [name for name in alternatives if name in attributes]
    if "_param" in attributes:  # the other may have been computed since
        choices = [name for name in choices if attributes[name] is attributes["_param"]] or choices
    if choices:
        return choices[:1]
    inner = [v for v in attributes.values() if isinstance(v, torch.distributions.Distribution)]
    nested_choices = (_constructor_choice(part, alternatives) for part in inner)
    return next(filter(None, nested_choices), [])


@lru_cache
def _accepted_arguments(kind: type) -> tuple[str, ...]:
    """Names that a constructor takes, with those of its parents where it passes arguments on."""
    names: dict[str, None] = {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parent in kind.__mro__:
        if "__init__" in vars(parent):
            _, *arguments = inspect.signature(vars(parent)["__init__"]).parameters.values()
            names |= dict.fromkeys(a.name for a in arguments if a.kind not in variadic)
            if not any(a.kind in variadic for a in arguments):
                break
    return tuple(names)


def arguments(
    distribution: dist.Distribution, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arguments of its constructor: tensors with batch dimensions first, and the others.

    Raises:
        InputError: if the distribution does not keep one of them.
    """
    kind: Any = type(distribution)
    accepted, batch = _accepted_arguments(kind), distribution.batch_shape
    groups = [group for group in ALTERNATIVES if {*group} & {*names}]
    unused = {name for group in groups for name in group} - {*names}
    tensors, settings, missing = {}, {}, [name for name in names if name not in accepted]
    for name in accepted:
        if name == "validate_args":
            settings[name] = vars(distribution).get("_validate_args")
        elif name not in unused:
            value = getattr(distribution, name, getattr(distribution, "_" + name, NotImplemented))
            if isinstance(value, Tensor) and (name in names or value.numel() != 1):
                has_rows = value.shape[: len(batch)] == batch
                tensors[name] = value if has_rows else _batch_first(distribution, value)
            elif isinstance(value, Tensor) or _is_plain(value):
                settings[name] = value
            else:
                missing.append(name)
    if missing:
        raise _cannot_rebuild(distribution, f"it keeps no tensor or number {', '.join(missing)}")
    return tensors, settings


def _is_plain(value: Any) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(isinstance(number, PLAIN) for number in numbers)


def _batch_first(part: dist.Distribution, parameter: Tensor) -> Tensor:
    """A parameter expanded to all batch dimensions of the distribution, which come first."""
    batch = part.batch_shape
    event = max(parameter.dim() - len(batch), 0)
    try:
        return parameter.expand(*batch, *parameter.shape[parameter.dim() - event :])
    except RuntimeError as error:
        shapes = f"shape {tuple(parameter.shape)} for batch shape {tuple(batch)}"
        raise _cannot_rebuild(part, f"it has a parameter of {shapes}") from error
