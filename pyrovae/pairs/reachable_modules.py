"""The networks that a model or guide can run, and the parameters behind a result."""

from __future__ import annotations

import io
import re
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyrovae.errors import InputError

PyroFunction = Any

# Their objects may run whatever they hold, so their own code need not be read.
_FRAMEWORKS = {"torch", "pyro", "pyrovae"}
_LIBRARIES = _FRAMEWORKS | {"numpy", "pandas", "scipy", "sklearn", "matplotlib"}
_LEAVES = (type(None), bool, int, float, complex, str, bytes, Tensor, np.ndarray, np.generic)
_ALWAYS = ("__call__", "forward", "guide")  # methods that run without being named
_BY_ANY_NAME = {"getattr", "vars", "__dict__"}  # a body that names these may reach any attribute
_SPEAKS_OF_DTYPE = re.compile("dtype|scalar type|input type", re.IGNORECASE)
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()  # those of every module


def modules_of(*functions: PyroFunction) -> tuple[nn.Module, ...]:
    """The outermost networks that models or guides can run.

    They are looked for in what a function is, is bound to or wraps, in its closure, and in what is
    named by its body and the bodies of all that it calls: globals, attributes of objects and Python
    modules, at any depth, in containers too. Nothing is run. A network that the function looks up
    by a computed name, or makes anew in each call, is not reached.
    """
    walk = _Walk()
    walk.take(functions)
    nested = {m for root in walk.modules for m in root.modules() if m is not root}
    return tuple(module for module in walk.modules if module not in nested)


class Variables:
    """What the variables hold that models or guides can reach, to see whether a run changes them.

    Reached is what :func:`modules_of` reaches. Parameters and buffers of the networks don't count,
    nor does what an array holds; what an iterator has yet to give can't be seen.
    """

    def __init__(self, *functions: PyroFunction) -> None:
        walk = _Walk()
        walk.take(functions)
        own = {id(tensor) for m in walk.modules for tensor in (*m.parameters(), *m.buffers())}
        self._functions = functions
        self.has_iterators = any(map(_is_iterator, walk.seen.values()))
        self._values = [(v, _writes(v)) for v in walk.leaves if id(v) not in own]

    @property
    def changed(self) -> bool:
        """Whether one of them holds something else now."""
        now = Variables(*self._functions)._values
        return len(now) != len(self._values) or not all(map(_unchanged, self._values, now))


def _is_iterator(value: Any) -> bool:
    """Whether this may give something else each time it is asked, as ``itertools.count`` does."""
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase)


def _writes(value: Any) -> int:
    """How often an operation has written into a tensor."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _unchanged(before: tuple[Any, int], now: tuple[Any, int]) -> bool:
    (one, writes), (two, writes_now) = before, now
    if isinstance(one, (Tensor, np.ndarray)) or one is two:
        return one is two and writes == writes_now
    return type(one) is type(two) and bool(one == two)


def parameters_behind(value: Tensor) -> list[Tensor]:
    """The tensors that require a gradient and that a value was computed from."""
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = {None}
    leaves: dict[int, Tensor] = {}
    while waiting:
        step = waiting.pop()
        if step not in seen:
            seen.add(step)
            waiting.extend(earlier for earlier, _ in step.next_functions)
            if (leaf := getattr(step, "variable", None)) is not None:
                leaves[id(leaf)] = leaf
    return list(leaves.values())


def check_dtypes(error: RuntimeError, batch: Iterable[Tensor], *functions: PyroFunction) -> None:
    """Raise in torch's place if functions failed since rows have another dtype than networks.

    Args:
        error: what a run has raised.
        batch: the rows.
        functions: the model or the guide, or both.

    Raises:
        InputError: naming both dtypes.
    """
    reason = str(error).splitlines()[0]
    own = {p.dtype for module in modules_of(*functions) for p in module.parameters()}
    others = {array.dtype for array in batch if array.is_floating_point()} - own
    if not _SPEAKS_OF_DTYPE.search(reason) or len(own) != 1 or not others:
        return
    (expected,), other = own, min(others, key=str)
    raise InputError(
        f"expected rows of the dtype of the pair's networks, {expected}; got {other}: "
        f"{reason}. Convert them: x.to({expected}), of a tensor x."
    ) from error


class _Walk:
    """A search through objects, with all that it has reached so far."""

    def __init__(self) -> None:
        self.modules: dict[nn.Module, None] = {}
        self.names: dict[str, None] = dict.fromkeys(_ALWAYS)
        self.seen: dict[int, Any] = {}
        self.partly: list[Any] = []  # objects of which only attributes that a body names count
        self.leaves: list[Any] = []

    def take(self, start: Iterable[Any]) -> None:
        """Visit everything that can be reached from some objects."""
        waiting, names = list(start)[::-1], -1
        while waiting or names < len(self.names):
            if not waiting:  # new names may be those of attributes that were passed over
                names = len(self.names)
                waiting = [value for owner in self.partly for value in self._named(owner)]
            while waiting:
                value = waiting.pop()
                if isinstance(value, _LEAVES):
                    self.leaves.append(value)
                    continue
                if id(value) in self.seen:
                    continue
                self.seen[id(value)] = value
                if not isinstance(value, nn.Module):
                    waiting += reversed([*self._next(value)])
                    continue
                self.modules[value] = None
                if not type(value).__module__.startswith("torch."):
                    waiting += reversed(self._of_instance(value))
                waiting += reversed(value._modules.values())

    def _next(self, value: Any) -> Iterable[Any]:
        """What an object leads to directly."""
        match value:
            case FunctionType():
                return self._of_function(value)
            case MethodType():
                return (value.__self__, value.__func__)
            case partial():
                return (value.func, value.args, value.keywords)
            case dict():
                return value.values()
            case list() | tuple() | set() | frozenset() | deque():
                return value
            case staticmethod() | classmethod():
                return (value.__func__,)
            case property():
                return (value.fget,)
            case cached_property():
                return (value.func,)
            case weakref.ref():
                return (value(),)
            case type() | ModuleType():
                name = value.__module__ if isinstance(value, type) else value.__name__
                if _is_library(name):
                    return ()
                self.partly.append(value)
                return getattr(value, "__bases__", ())
        return self._of_instance(value)

    def _of_function(self, function: FunctionType) -> list[Any]:
        led: list[Any] = []
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a name that has no value yet
                led.append(cell.cell_contents)
        led += vars(function).values()
        led += function.__defaults__ or ()
        led += (function.__kwdefaults__ or {}).values()
        if _is_library(function.__module__):
            return led
        names = dict.fromkeys(_names(function.__code__))
        self.names |= names
        for name in names:
            if name in function.__globals__:
                led.append(function.__globals__[name])
            elif name in sys.modules:  # imported in the body
                led.append(sys.modules[name])
        return led

    def _of_instance(self, value: Any) -> list[Any]:
        led: list[Any] = []
        root = type(value).__module__.partition(".")[0]
        attributes = getattr(value, "__dict__", {})
        if root not in _FRAMEWORKS:
            self.partly.append(value)
            led.append(type(value))
        else:
            led += [v for name, v in attributes.items() if name not in _MODULE_ATTRIBUTES]
        if "__wrapped__" in attributes:  # functools.lru_cache and the like
            led.append(value.__wrapped__)
        return led

    def _named(self, owner: Any) -> Iterator[Any]:
        """The attributes of an object that some body names."""
        attributes = getattr(owner, "__dict__", {})
        all_count = not _BY_ANY_NAME.isdisjoint(self.names)
        yield from (value for name, value in attributes.items() if all_count or name in self.names)
        for kind in type(owner).__mro__:
            for name, slot in vars(kind).items():
                if isinstance(slot, MemberDescriptorType) and (all_count or name in self.names):
                    yield getattr(owner, name, None)


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes in a body and in the functions defined inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_library(name: str | None) -> bool:
    root = (name or "builtins").partition(".")[0]
    return root in _LIBRARIES or root in sys.stdlib_module_names
