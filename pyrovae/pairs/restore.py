"""Leave a pair as it was: modes, parameters, state of guides, random state, argument checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine import runtime
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.pairs.reachable_modules import PyroFunction, modules_of
from pyrovae.torch_modes import isolated

__all__ = [
    "AsFound",
    "PyroFunction",
    "apart",
    "check_parameters",
    "evaluating",
    "measuring",
    "modules_in_reach",
    "modules_of",
]

_FLAGS = tuple(
    f"validate_{name}" for name in ("distributions_pyro", "distributions_torch", "infer", "poutine")
)
_CONTAINERS = (dict, list, set)
_FRAMEWORKS = ("torch", "pyrovae")


@dataclass(frozen=True)
class _Measured:
    """What is measured just now.

    Args:
        functions: models and guides.
        modules: by the id of a function, the function with the networks in its reach.
    """

    functions: tuple[PyroFunction, ...] = ()
    modules: dict[int, tuple[PyroFunction, tuple[nn.Module, ...]]] = field(default_factory=dict)


_measured: ContextVar[_Measured | None] = ContextVar("measured", default=None)


@contextmanager
def measuring(*functions: PyroFunction) -> Iterator[None]:
    """Measure a pair and leave everything as it was.

    Meanwhile every module that the pair can reach is in evaluation mode, no other thread measures,
    and inference mode and autocast are off. Afterwards the modes, what guides set up in a run,
    Pyro's parameter store, the argument checks of Pyro and torch and the random state are as they
    were; what a ``pyro.param`` statement has created is gone. Inside another ``measuring`` such
    parameters stay until the outer one ends.

    Args:
        functions: models and guides.

    Raises:
        InputError: if their parameters were made in inference mode.
    """
    with isolated():
        outer = _measured.get()
        around = outer or _Measured()
        new = [f for f in functions if not any(f is measured for measured in around.functions)]
        modules = modules_of(*new) if new else ()
        check_parameters(modules)
        before = AsFound(modules, store=outer is None)
        by_function = around.modules | {id(f): (f, modules) for f in new}
        token = _measured.set(_Measured((*around.functions, *new), by_function))
        flags: Any = pyro.settings.context(**{name: pyro.settings.get(name) for name in _FLAGS})
        random_state = pyro.util.get_rng_state()
        try:
            with torch.random.fork_rng(), flags, evaluating(modules):
                yield
        finally:
            _measured.reset(token)
            pyro.util.set_rng_state(random_state)
            before.put_back()


def modules_in_reach(function: PyroFunction) -> tuple[nn.Module, ...]:
    """The networks that a function can run, looked for once within one `measuring`."""
    measured = _measured.get()
    if measured is None:
        return modules_of(function)
    if id(function) not in measured.modules:
        measured.modules[id(function)] = (function, modules_of(function))
    return measured.modules[id(function)][1]


def check_parameters(modules: Iterable[nn.Module]) -> None:
    """Raise if parameters were made in inference mode: they can't have a gradient outside it.

    Raises:
        InputError: naming one of them.
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
    """Put modules into evaluation mode for a while; those already in it are not touched."""
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
    """The state of modules and of Pyro's parameter store, to go back to after a run.

    A guide of ``pyro.infer.autoguide`` or ``pyro.contrib.easyguide`` makes its parameters and
    plates for the rows that it is first called with. Only which objects are there counts, not the
    numbers in tensors.

    Args:
        modules: modules that may change, with those inside them.
        store: whether the parameter store is included.
    """

    def __init__(self, modules: Iterable[nn.Module], *, store: bool = True) -> None:
        every = dict.fromkeys(m for root in modules for m in root.modules())
        # Runs may change the attributes of any but torch's own; ours do so on purpose.
        changeable = [m for m in every if type(m).__module__.partition(".")[0] not in _FRAMEWORKS]
        self._modules = {module: _Attributes(module) for module in changeable}
        self._store = pyro.get_param_store().get_state() if store else None

    @property
    def changed(self) -> bool:
        """Whether something is no longer as it was."""
        return self._store_changed() or any(state.changed for state in self._modules.values())

    def put_back(self) -> None:
        """Make everything as it was."""
        for state in self._modules.values():
            state.put_back()
        if self._store is not None and self._store_changed():
            store = pyro.get_param_store()
            store.clear()
            store.set_state(self._store)

    def _store_changed(self) -> bool:
        if self._store is None:
            return False
        parameters: dict[str, Tensor] = self._store["params"]
        return not _same(parameters, dict(pyro.get_param_store().named_parameters()))


class _Attributes:
    """The attributes of one module, and the contents of those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.values = {name: value for name, value in vars(module).items() if name != "training"}
        self.contents = {
            name: value.copy()
            for name, value in self.values.items()
            if isinstance(value, _CONTAINERS)
        }

    @property
    def changed(self) -> bool:
        now = {name: value for name, value in vars(self.module).items() if name != "training"}
        return type(self.module) is self.kind and not (
            _same(self.values, now)
            and all(_same(content, self.values[name]) for name, content in self.contents.items())
        )

    def put_back(self) -> None:
        if not self.changed:
            return
        for name, content in self.contents.items():
            container: Any = self.values[name]
            if not _same(content, container):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        attributes = vars(self.module)
        for name in [n for n in attributes if n not in self.values and n != "training"]:
            del attributes[name]
        attributes.update(self.values)


def _same(before: Any, after: Any) -> bool:
    """Whether two containers hold the very same objects, by the same names or in the same order."""
    if len(before) != len(after):
        return False
    if isinstance(before, dict):
        return all(name in after and after[name] is value for name, value in before.items())
    if isinstance(before, set):
        return bool(before == after)
    return all(left is right for left, right in zip(before, after, strict=True))


@contextmanager
def apart() -> Iterator[None]:
    """Run Pyro functions unseen by the handlers and plates around the call."""
    stack, plates = runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack
    saved = list(stack), list(plates)
    stack.clear()
    plates.clear()
    try:
        yield
    finally:
        stack[:], plates[:] = saved
