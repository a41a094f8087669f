"""A pair is left as it was found: modes, parameters, random state, argument checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro
import torch
from pyro.poutine import runtime
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

PyroFunction = Callable[..., Any]

_FLAGS = tuple(
    f"validate_{name}" for name in ("distributions_pyro", "distributions_torch", "infer", "poutine")
)
_inside: ContextVar[bool] = ContextVar("pyrovae_measuring", default=False)


@contextmanager
def measuring(*functions: PyroFunction) -> Iterator[None]:
    """Measure a pair without a trace of it.

    Meanwhile every module that the pair runs is in evaluation mode. Afterwards the modes, Pyro's
    parameter store, its and torch's argument checks and the random state are as they were; what a
    ``pyro.param`` statement created on the way is gone. Within another ``measuring`` the parameters
    stay until the outer one ends.

    Args:
        functions: models and guides; modules that none of them names are found when they run.
    """
    store = pyro.get_param_store()
    saved, outermost = store.get_state(), not _inside.get()
    token = _inside.set(True)
    flags: Any = pyro.settings.context(**{name: pyro.settings.get(name) for name in _FLAGS})
    state = pyro.util.get_rng_state()
    try:
        with torch.random.fork_rng(), flags, called_modules(*functions):
            yield
    finally:
        _inside.reset(token)
        pyro.util.set_rng_state(state)
        now = dict(store.named_parameters())
        same = now.keys() == saved["params"].keys() and all(
            now[name] is parameter for name, parameter in saved["params"].items()
        )
        if outermost and not same:
            store.clear()
            store.set_state(saved)


@contextmanager
def called_modules(*functions: PyroFunction) -> Iterator[dict[nn.Module, None]]:
    """Collect the modules that ``functions`` name and all that run, in evaluation mode meanwhile.

    A module that neither is called nor is named, such as one whose ``forward`` is bypassed by
    another of its methods, is not found.
    """
    called: dict[nn.Module, None] = {}
    modes: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: Any = None) -> None:
        if module not in modes:
            called[module] = None
            modes.update((m, m.training) for m in module.modules() if m not in modes)
            module.eval()

    for function in functions:
        for module in modules_of(function):
            note(module)
    handle = register_module_forward_pre_hook(note)
    try:
        yield called
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def apart() -> Iterator[None]:
    """Run Pyro functions out of sight of the handlers and plates that are in force."""
    stack, plates = runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack
    saved = list(stack), list(plates)
    stack.clear()
    plates.clear()
    try:
        yield
    finally:
        stack[:], plates[:] = saved


def modules_of(function: PyroFunction) -> list[nn.Module]:
    """The networks behind a model or guide: what it is, is bound to, or names in its body."""
    if isinstance(function, nn.Module):
        return [function]
    if inspect.ismethod(function):
        owner = function.__self__
        candidates = [owner, *vars(owner).values()]
    elif inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        candidates = [*names.nonlocals.values(), *names.globals.values()]
    else:  # partial, or a function under Pyro's handlers
        inner = [getattr(function, name, None) for name in ("func", "fn", "__wrapped__")]
        found = [module for f in inner if callable(f) for module in modules_of(f)]
        candidates = [*found, *getattr(function, "__dict__", {}).values()]
    return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]
