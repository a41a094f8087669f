"""A pair is left as it was found: modes, parameters, guides' own state, random state, checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro
import torch
from pyro.poutine import runtime
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.isolation import alone, plain
from pyrovae.pairs.reachable_modules import PyroFunction, modules_of

__all__ = [
    "AsFound",
    "PyroFunction",
    "apart",
    "check_parameters",
    "evaluating",
    "measuring",
    "modules_of",
]

_FLAGS = tuple(
    f"validate_{name}" for name in ("distributions_pyro", "distributions_torch", "infer", "poutine")
)
_CONTAINERS = (dict, list, set)
_measured: ContextVar[tuple[PyroFunction, ...] | None] = ContextVar("measured", default=None)


@contextmanager
def measuring(*functions: PyroFunction) -> Iterator[None]:
    """Measure a pair without a trace of it.

    Meanwhile every module that the pair can reach is in evaluation mode, no other thread measures,
    and inference mode and autocast are off. Afterwards the modes, what guides keep of a run, Pyro's
    parameter store, its and torch's argument checks and the random state are as they were; what a
    ``pyro.param`` statement created on the way is gone. Within another ``measuring`` the parameters
    stay until the outer one ends.

    Args:
        functions: models and guides.

    Raises:
        InputError: if their parameters were made in inference mode.
    """
    with alone(), plain():
        outer = _measured.get()
        new = [f for f in functions if not any(f is known for known in outer or ())]
        modules = modules_of(*new)
        check_parameters(modules)
        found = AsFound(modules, store=outer is None)
        token = _measured.set((*(outer or ()), *new))
        flags: Any = pyro.settings.context(**{name: pyro.settings.get(name) for name in _FLAGS})
        state = pyro.util.get_rng_state()
        try:
            with torch.random.fork_rng(), flags, evaluating(modules):
                yield
        finally:
            _measured.reset(token)
            pyro.util.set_rng_state(state)
            found.put_back()


def check_parameters(modules: Iterable[nn.Module]) -> None:
    """Raise if parameters were made in inference mode, which can't have a gradient outside of it.

    Raises:
        InputError: naming one.
    """
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.is_inference():
                raise InputError(
                    "expected networks that were made outside of torch.inference_mode; got "
                    f"{name} of {type(module).__name__} from inside. Make them outside, or take "
                    "copy.deepcopy of them there."
                )


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Modules and all in them in evaluation mode; nothing is written to those that already are."""
    roots = [root for root in modules if any(m.training for m in root.modules())]
    modes = {module: module.training for root in roots for module in root.modules()}
    try:
        for root in roots:
            root.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class AsFound:
    """What running a function may leave in its modules and in Pyro's parameter store.

    A guide of ``pyro.infer.autoguide`` or ``pyro.contrib.easyguide`` makes its parameters and
    plates for the rows that it is first called with. The numbers in tensors are not looked at.

    Args:
        modules: which; those inside of them too.
        store: whether to look at the parameter store.
    """

    def __init__(self, modules: Iterable[nn.Module], *, store: bool = True) -> None:
        own = dict.fromkeys(m for root in modules for m in root.modules() if _keeps_state(m))
        self._modules = {module: _Attributes(module) for module in own}
        self._store = pyro.get_param_store().get_state() if store else None

    @property
    def changed(self) -> bool:
        """Whether something is no longer as it was found."""
        return self._store_changed() or any(held.changed for held in self._modules.values())

    def put_back(self) -> None:
        """Make everything as it was found."""
        for held in self._modules.values():
            held.put_back()
        if self._store is not None and self._store_changed():
            store = pyro.get_param_store()
            store.clear()
            store.set_state(self._store)

    def _store_changed(self) -> bool:
        if self._store is None:
            return False
        held: dict[str, Tensor] = self._store["params"]
        return not _same(held, dict(pyro.get_param_store().named_parameters()))


class _Attributes:
    """The attributes of one module, and what is in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.held = {name: value for name, value in vars(module).items() if name != "training"}
        self.inside = {
            name: value.copy()
            for name, value in self.held.items()
            if isinstance(value, _CONTAINERS)
        }

    @property
    def changed(self) -> bool:
        now = {name: value for name, value in vars(self.module).items() if name != "training"}
        return type(self.module) is self.kind and not (
            _same(self.held, now)
            and all(_same(content, self.held[name]) for name, content in self.inside.items())
        )

    def put_back(self) -> None:
        if not self.changed:
            return
        for name, content in self.inside.items():
            container: Any = self.held[name]
            if not _same(content, container):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        attributes = vars(self.module)
        for name in [n for n in attributes if n not in self.held and n != "training"]:
            del attributes[name]
        attributes.update(self.held)


def _keeps_state(module: nn.Module) -> bool:
    """Whether runs may leave attributes: not in torch's own modules, nor, on purpose, in ours."""
    return type(module).__module__.partition(".")[0] not in ("torch", "pyrovae")


def _same(one: Any, other: Any) -> bool:
    """Whether two containers hold the very same objects, by the same names or in the same order."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return all(name in other and other[name] is value for name, value in one.items())
    if isinstance(one, set):
        return bool(one == other)
    return all(left is right for left, right in zip(one, other, strict=True))


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
