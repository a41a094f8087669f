"""A user's own pair, from its name: import it, build it, load and save its parameters."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.data import Batch, Dataset, as_batch
from pyrovae.errors import InputError
from pyrovae.pairs import PyroFunction, evaluating, modules_of
from pyrovae.saving import from_archive, write_archive

STORE = {"params", "constraints"}  # the entries of a saved parameter store


@dataclass(frozen=True)
class PairOptions:
    """Which pair to use, and the names of its sites.

    Args:
        factory: ``"package.module:factory"``, or the function itself. It is called with the
            training part of the data and returns ``(model, guide)``, or an object with ``model``
            and ``guide``. If the object has a method ``arguments(data)``, it makes the pair's
            arguments from a part of the data, as a tuple of tensors; otherwise the pair is called
            with the values.
        fit: whether to train it.
        params: file with its parameters, written by ``pyro.get_param_store().save``, by an earlier
            analysis or, for a module, by ``torch.save(module.state_dict())``.
        site, observed, data_plate: as for :func:`pyrovae.diagnose`.
    """

    factory: str | Callable[[Dataset], Any]
    fit: bool = True
    params: Path | None = None
    site: str | tuple[str, ...] = "z"
    observed: str | None = None
    data_plate: str | None = None

    @property
    def name(self) -> str:
        """What to call the pair in a report."""
        if isinstance(self.factory, str):
            return self.factory
        return getattr(self.factory, "__qualname__", type(self.factory).__name__)

    def by_name(self) -> dict[str, Any]:
        """What was chosen, under the names of the command line's options."""
        names = self.site if isinstance(self.site, str) else ",".join(self.site)
        return {
            "pair": self.name,
            "no_fit": not self.fit or None,
            "params": None if self.params is None else str(self.params),
            "site": names,
            "observed": self.observed,
            "data_plate": self.data_plate,
        }


@dataclass(frozen=True)
class OwnPair:
    """A pair as its factory made it.

    Args:
        model, guide: the two functions.
        arguments: makes the pair's arguments from a part of the data.
        module: the module that holds the parameters, if there is one.
    """

    model: PyroFunction
    guide: PyroFunction
    arguments: Callable[[Dataset], Batch]
    module: nn.Module | None = field(default=None)

    def save(self, path: Path, batch: Batch) -> None:
        """Write all parameters: those of the parameter store and those of the modules.

        Args:
            path: the file to write.
            batch: rows to run the pair on once, so that it declares all its parameters.
        """
        self._run(batch)
        modules = [module.state_dict() for module in modules_of(self.guide, self.model)]
        write_archive({"store": pyro.get_param_store().get_state(), "modules": modules}, path)

    def to(self, device: torch.device) -> None:
        """Move all parameters to a device, both those of modules and those of the store."""
        for module in modules_of(self.guide, self.model):
            module.to(device)
        for _, parameter in pyro.get_param_store().named_parameters():
            parameter.data = parameter.data.to(device)

    def load(self, path: Path, batch: Batch) -> None:
        """Read parameters into both the parameter store and the modules.

        Args:
            path: file that this pair, Pyro's parameter store or ``torch.save`` has written.
            batch: rows to run the pair on, to see which parameters it has.

        Raises:
            InputError: if it isn't such a file, or doesn't hold the parameters of this pair.
        """
        state, store = _read(path), pyro.get_param_store()
        old_state = store.get_state()
        try:
            if set(state) == {"store", "modules"}:
                store.set_state(state["store"])
                self._load_modules(state["modules"], path)
                self._fill(state["store"]["params"], path, batch)
            elif set(state) == STORE:
                store.set_state(state)
                self._fill(state["params"], path, batch)
                self._check_statistics(path)
            else:
                self._load_module(state, path)
                self._fill({}, path, batch)
        except InputError:
            store.clear()
            store.set_state(old_state)
            raise

    def _run(self, batch: Batch) -> None:
        """Run guide and model in evaluation mode."""
        with (
            torch.no_grad(),
            torch.random.fork_rng(),
            evaluating(modules_of(self.guide, self.model)),
        ):
            for function in (self.guide, self.model):
                pyro.poutine.trace(function).get_trace(*batch)

    def _fill(self, stored: dict[str, Tensor], path: Path, batch: Batch) -> None:
        """Copy the parameters in the store into the modules, and check that none is missing."""
        loaded = [] if self.module is None else list(self.module.parameters())
        with _ModuleFiller(stored, loaded, path) as filler:
            self._run(batch)
        if filler.missing:
            names = ", ".join(map(repr, list(stored)[:4])) or "those of the module alone"
            raise InputError(
                f"expected the parameters of this pair in {str(path)!r}; got none for "
                f"{', '.join(map(repr, list(filler.missing)[:4]))}: it holds {names}. Name the "
                "file of this pair; pyro.get_param_store().save writes all that pyro.param and "
                "pyro.module declare."
            )

    def _load_modules(self, states: Sequence[dict[str, Tensor]], path: Path) -> None:
        modules = modules_of(self.guide, self.model)
        if len(modules) != len(states):
            raise InputError(
                f"expected the parameters of this pair in {str(path)!r}, of {len(modules)} "
                f"modules; got those of {len(states)}. Name the file of this pair."
            )
        for module, state in zip(modules, states, strict=True):
            _load_state(module, state, path)

    def _load_module(self, state: dict[str, Tensor], path: Path) -> None:
        if self.module is None:
            raise InputError(
                f"expected a saved parameter store in {str(path)!r}, as the pair isn't one module; "
                "got a module's state. Save the store: pyro.get_param_store().save(...)."
            )
        _load_state(self.module, state, path)

    def _check_statistics(self, path: Path) -> None:
        """Raise if the pair normalises by running means, which no parameter store holds."""
        for module in modules_of(self.guide, self.model):
            for part in module.modules():
                if getattr(part, "num_batches_tracked", None) == 0:
                    raise InputError(
                        f"expected the running means of {type(part).__name__}, too; got the "
                        f"parameters alone in {str(path)!r}. Save both: torch.save({{'store': "
                        "pyro.get_param_store().get_state(), 'modules': [module.state_dict()]}, "
                        "path)."
                    )


def _load_state(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"expected the parameters of this pair in {str(path)!r}; got others: {reason}. Name "
            "the file of this pair."
        ) from error


class _ModuleFiller(Messenger):
    """Copy stored parameters into the modules that ``pyro.module`` registers.

    Args:
        stored: parameters in Pyro's parameter store, by name.
        loaded: parameters of modules that have their values already.
        path: the file that all of them came from.
    """

    def __init__(self, stored: dict[str, Tensor], loaded: Sequence[Tensor], path: Path) -> None:
        super().__init__()
        self.stored, self.path = stored, path
        self.loaded = {id(parameter) for parameter in loaded}
        self.missing: dict[str, None] = {}

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        name, value = msg["name"], msg["value"]
        if name not in self.stored:
            if id(value.unconstrained()) not in self.loaded:
                self.missing[name] = None
            return
        initial = msg["args"][1] if len(msg["args"]) > 1 else None
        template = initial() if callable(initial) else initial
        if isinstance(template, Tensor) and template.shape != value.shape:
            raise self._mismatch(name, f"of shape {tuple(value.shape)} for {tuple(template.shape)}")
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if not bool(constraint.check(value).all()):
            raise self._mismatch(name, f"outside of {constraint}")
        if isinstance(initial, nn.Parameter) and initial is not value:
            initial.copy_(value)
            # Module and store share one tensor, so that either may be trained further.
            pyro.get_param_store()[name] = initial

    def _mismatch(self, name: str, problem: str) -> InputError:
        return InputError(
            f"expected the parameters of this pair in {str(self.path)!r}; got {name!r} {problem}. "
            "Name the file of this pair."
        )


def make_pair(options: PairOptions, data: Dataset) -> OwnPair:
    """Call a pair's factory, and load its parameters if there is a file of them.

    Args:
        options: which pair.
        data: the training part of the data.

    Raises:
        InputError: if the factory can't be imported or doesn't return a pair, or its parameters
            can't be read.
    """
    factory = _import(options.factory) if isinstance(options.factory, str) else options.factory
    product = factory(data)
    if isinstance(product, tuple) and len(product) == 2:
        model, guide = product
    else:
        model, guide = getattr(product, "model", None), getattr(product, "guide", None)
    if not (callable(model) and callable(guide)):
        raise InputError(
            f"expected {options.name} to return (model, guide), or an object with both; got "
            f"{type(product).__name__}. Return two functions, or an object that has them."
        )
    arguments = getattr(product, "arguments", None) or (lambda part: part.values)
    pair = OwnPair(model, guide, lambda part: as_batch(arguments(part)), _module(product))
    if options.params is not None:
        pair.load(options.params, pair.arguments(data))
    return pair


def _module(product: Any) -> nn.Module | None:
    """The module that the pair's functions belong to, if there is exactly one."""
    if isinstance(product, nn.Module):
        return product
    if not isinstance(product, tuple):
        return None
    owners = [getattr(function, "__self__", function) for function in product]
    modules = dict.fromkeys(owner for owner in owners if isinstance(owner, nn.Module))
    return next(iter(modules)) if len(modules) == 1 else None


def _import(name: str) -> Callable[[Dataset], Any]:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute or module_name.startswith("."):
        raise InputError(
            f"expected package.module:factory as --pair; got {name!r}. Name the module, a colon "
            "and the function in it that returns model and guide."
        )
    with _current_folder_importable():
        try:
            target: Any = importlib.import_module(module_name)
        except ImportError as error:
            raise InputError(
                f"expected a module {module_name!r} for --pair; got {type(error).__name__}: "
                f"{error}. Run the command in the module's folder, or install it."
            ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            names = [n for n, v in vars(target).items() if callable(v) and not n.startswith("_")]
            raise InputError(
                f"expected {attribute!r} in {module_name!r} for --pair; got none. Choose among its "
                f"functions: {', '.join(names) or 'it has none'}."
            )
        target = getattr(target, part)
    return target


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Let modules in the current folder be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _read(path: Path) -> dict[str, Any]:
    types = [value for value in vars(constraints).values() if isinstance(value, type)]
    try:
        state = from_archive(path.read_bytes(), sealed=False, known=types)
    except OSError as error:
        raise InputError(
            f"expected a file of parameters as --params; got {str(path)!r}: {error.strerror}. "
            "Check the path."
        ) from error
    except ValueError as error:
        raise InputError(
            f"expected parameters that pyro.get_param_store().save or torch.save has written in "
            f"{str(path)!r}; got a file that is {error}. Save the parameters again."
        ) from error
    if not isinstance(state, dict):
        raise InputError(
            f"expected a parameter store or a state_dict in {str(path)!r}; got "
            f"{type(state).__name__}. Save one of these."
        )
    return state
