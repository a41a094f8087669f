"""Distributions of one family built anew from the arguments of its constructor."""

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

PLAIN = (type(None), bool, int, float, str)
ALTERNATIVES = (
    ("logits", "probs"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
    ("gate", "gate_logits"),
    ("correlation", "weighted_correlation"),
)


def rebuild(parts: Sequence[dist.Distribution], edit: Edit) -> dist.Distribution:
    """Distributions of a family with a constructor of its own, of edited arguments.

    Args:
        parts: of one family, each with its batch of the same rank.
        edit: makes one tensor of those of all parts; it leaves event dimensions alone.

    Raises:
        InputError: if the constructor can't be called with what the distribution keeps, or makes
            something else of it.
    """
    first, names = parts[0], parameters(parts[0])
    tensors, others = zip(*(arguments(part, names) for part in parts), strict=True)
    differing = [name for name in {**tensors[0], **others[0]} if not _shared(name, tensors, others)]
    if differing:
        raise InputError(
            f"expected {type(first).__name__} with the same {', '.join(differing)} for all; got "
            "several. Encode all data by one guide."
        )
    edited = {name: edit([held[name] for held in tensors]) for name in tensors[0]}
    rest = {name: _edited(value, parts, edit) for name, value in others[0].items()}
    rank = len(first.batch_shape)
    leading = {t.shape[: rank + t.dim() - tensors[0][n].dim()] for n, t in edited.items()}
    if "validate_args" in rest and any(0 in shape for shape in leading):
        rest["validate_args"] = False  # torch can't look at no rows
    rebuilt = build(type(first), **edited, **rest)
    if leading != {rebuilt.batch_shape} or rebuilt.event_shape != first.event_shape:
        raise _refusal(first, "its parameters have other batch dimensions than itself")
    if "has_rsample" in vars(first):  # set with .has_rsample_(...)
        rebuilt.has_rsample = first.has_rsample
    if type(first).__module__.partition(".")[0] not in ("pyro", "torch"):
        _check(first, rebuilt, edited)
    return rebuilt


def tensors(part: dist.Distribution) -> list[Tensor]:
    """What `rebuild` edits, in that order.

    Raises:
        InputError: if the distribution does not keep an argument.
    """
    held, others = arguments(part, parameters(part))
    shared = [value for value in others.values() if isinstance(value, Tensor)]
    return [*held.values(), *(value.reshape(()).expand(part.batch_shape) for value in shared)]


def _edited(value: Any, parts: Sequence[dist.Distribution], edit: Edit) -> Any:
    """An argument that all rows share; a tensor of one number goes where the parameters go."""
    if not isinstance(value, Tensor):
        return value
    rows = edit([value.reshape(()).expand(part.batch_shape) for part in parts]).reshape(-1)
    return rows[0].reshape(value.shape) if len(rows) else value.to(rows)


def _shared(name: str, tensors: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> bool:
    """Whether an argument is of one kind in all parts and, unless it has rows, of one value."""
    if name in tensors[0]:
        return all(name in held for held in tensors)
    values: list[Any] = [held.get(name) for held in others]
    if any(isinstance(value, Tensor) for value in values):
        return all(isinstance(v, Tensor) and torch.equal(v, values[0]) for v in values)
    return name == "validate_args" or all(value == values[0] for value in values)


def build(kind: Any, **arguments: Any) -> dist.Distribution:
    """A distribution by its constructor.

    Raises:
        InputError: with the name of the family, if the constructor refuses the arguments.
    """
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise _refusal(kind, str(error).strip().rstrip(".")) from error


def _check(first: dist.Distribution, rebuilt: dist.Distribution, given: dict[str, Tensor]) -> None:
    """Refuse a constructor, of which nothing is known, that does not keep what it is given."""
    for name, tensor in given.items():
        found = getattr(rebuilt, name)
        close = 100 * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        if found.shape != tensor.shape or not torch.allclose(
            found, tensor, rtol=close, atol=close, equal_nan=True
        ):
            raise _refusal(first, f"its constructor changes {name}")
    for name, value in vars(first).items():
        if _plain(value) and name != "_batch_shape" and getattr(rebuilt, name, None) != value:
            raise _refusal(first, f"its constructor does not take {name}")


def _refusal(found: Any, reason: str) -> InputError:
    name: str = found.__name__ if isinstance(found, type) else type(found).__name__
    return InputError(
        f"expected a family that can be built anew from its parameters; got {name}: {reason}. Use "
        "another family, such as Normal, or let its constructor take the names in arg_constraints "
        "and keep every other argument as an attribute of that name."
    )


def parameters(distribution: dist.Distribution) -> list[str]:
    """The parameters a distribution is built from; of alternatives, the one that it was given."""
    try:
        names = list(distribution.arg_constraints)
    except NotImplementedError:  # torch's own base class names none
        names = []
    if not names:
        raise _refusal(distribution, "it is not made of parameter tensors")
    for group in ALTERNATIVES:
        present = [name for name in group if name in names]
        if len(present) > 1:
            chosen = (_given(distribution, present) or present)[0]
            names = [name for name in names if name not in present or name == chosen]
    return names


def _given(distribution: dist.Distribution, alternatives: list[str]) -> list[str]:
    """Of alternative parameters, the one that a distribution, or what it is made of, was given."""
    if "scale_tril" in alternatives:  # by which densities are evaluated, whatever was given
        return ["scale_tril"]
    held = vars(distribution)
    named = [name for name in alternatives if name in held]
    if "_param" in held:  # the other one may have been computed in the meantime
        named = [name for name in named if held[name] is held["_param"]] or named
    if named:
        return named[:1]
    inner = [v for v in held.values() if isinstance(v, torch.distributions.Distribution)]
    return next((found for part in inner if (found := _given(part, alternatives))), [])


@lru_cache
def _accepted(kind: type) -> tuple[str, ...]:
    """Names that a constructor takes; for ``*args`` and ``**kwargs``, those of the next in line."""
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
    """What its constructor was given: tensors with the batch dimensions in front, and the rest.

    Raises:
        InputError: if it does not keep an argument.
    """
    kind: Any = type(distribution)
    accepted = _accepted(kind)
    other = {name for group in ALTERNATIVES if {*group} & {*names} for name in group} - {*names}
    tensors, rest, lost = {}, {}, [name for name in names if name not in accepted]
    for name in accepted:
        if name == "validate_args":
            rest[name] = vars(distribution).get("_validate_args")
        elif name not in other:
            value = getattr(distribution, name, getattr(distribution, "_" + name, NotImplemented))
            if isinstance(value, Tensor) and (name in names or value.numel() != 1):
                tensors[name] = _batched(distribution, value)
            elif isinstance(value, Tensor) or _plain(value):
                rest[name] = value
            else:
                lost.append(name)
    if lost:
        raise _refusal(distribution, f"it keeps no tensor or number {', '.join(lost)}")
    return tensors, rest


def _plain(value: Any) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(isinstance(number, PLAIN) for number in numbers)


def _batched(part: dist.Distribution, parameter: Tensor) -> Tensor:
    """A parameter with all batch dimensions of a distribution in front."""
    batch = part.batch_shape
    if parameter.shape[: len(batch)] == batch:
        return parameter
    event = max(parameter.dim() - len(batch), 0)
    try:
        return parameter.expand(*batch, *parameter.shape[parameter.dim() - event :])
    except RuntimeError as error:
        found = f"shape {tuple(parameter.shape)} for batch shape {tuple(batch)}"
        raise _refusal(part, f"it has a parameter of {found}") from error
