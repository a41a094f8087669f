"""What training changes in a pair: parameters, buffers and modes, wherever they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.data import Batch, row_count
from pyrovae.errors import InputError
from pyrovae.pairs import PyroFunction, evaluating, modules_of, parameters_behind
from pyrovae.training.objectives import Objective


@dataclass(frozen=True)
class Trainable:
    """Everything that training changes in a pair.

    Args:
        parameters: leaf tensors by name, from ``pyro.param`` statements and from modules.
        modules: the outermost modules that the pair calls.
    """

    parameters: dict[str, Tensor]
    modules: tuple[nn.Module, ...]

    def state(self) -> dict[str, Tensor]:
        """A copy of every parameter and buffer."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Write a :meth:`state` back in place, so that modules and the parameter store both see it.

        Raises:
            InputError: if names or shapes differ from those of this pair.
        """
        own_shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if own_shapes != shapes:
            names = sorted(dict(own_shapes.items() ^ shapes.items()))
            raise InputError(
                f"expected the parameters of this pair; got others at {names[:5]}. "
                "Resume with the pair that wrote the checkpoint."
            )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state[name])

    def to(self, device: torch.device) -> None:
        """Move parameters and buffers to a device; every reference to them stays valid."""
        for module in self.modules:
            module.to(device)
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device)

    @contextmanager
    def modes_restored(self) -> Iterator[None]:
        """Put the train/eval mode of every module back afterwards."""
        modes = {module: module.training for root in self.modules for module in root.modules()}
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def train(self, mode: bool) -> None:
        """Set training mode, or evaluation mode."""
        for module in self.modules:
            module.train(mode)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffers of the modules by name, themselves and not copies."""
        return {
            f"{i}.{name}": buffer
            for i, module in enumerate(self.modules)
            for name, buffer in module.named_buffers()
        }

    def _tensors(self) -> dict[str, Tensor]:
        return self.parameters | self.buffers


@dataclass(frozen=True)
class Survey:
    """What one run of a pair shows.

    Args:
        trainable: what can be trained.
        plate_size: full size of the plate over the rows.
        drawing: plates that draw rows by themselves.
        outside: sample sites, factors among them, in no plate over the rows.
    """

    trainable: Trainable
    plate_size: int
    drawing: tuple[str, ...]
    outside: tuple[str, ...]


def survey(objective: Objective, model: PyroFunction, guide: PyroFunction, batch: Batch) -> Survey:
    """Run the pair once in evaluation mode and record its parameters and plates.

    Raises:
        InputError: if the objective depends on a parameter that the pair doesn't show, or there
            is no plate over the rows.
    """
    recorder, modules = _Recorder(), modules_of(model, guide)
    # fork_rng: a survey may fall between two training steps and must not change their draws.
    with torch.random.fork_rng(), torch.enable_grad(), evaluating(modules), recorder:
        value = objective(model, guide, *batch)
    roots = modules_of(model, guide)  # again, as a guide may make modules in its first run
    store = dict(pyro.get_param_store().named_parameters())
    parameters = {name: store[name] for name in recorder.names if name in store}
    in_store = {id(parameter) for parameter in parameters.values()}
    for i, root in enumerate(roots):
        for name, parameter in root.named_parameters():
            if parameter.requires_grad and id(parameter) not in in_store:
                parameters[f"{i}.{name}"] = parameter
    _check_complete(parameters.values(), value)
    rows = row_count(batch)
    return Survey(
        Trainable(parameters, roots),
        recorder.plate_size(rows),
        tuple(recorder.drawing),
        recorder.outside(rows),
    )


def _check_complete(parameters: Iterable[Tensor], value: Tensor) -> None:
    """Raise if the objective depends on a parameter that would not be trained."""
    known = {id(parameter) for parameter in parameters}
    for leaf in parameters_behind(value):
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            raise InputError(
                "expected networks that model or guide name, or register with pyro.module; got a "
                f"parameter of shape {tuple(leaf.shape)} that is in none of them. Register its "
                "network in the model or guide: pyro.module(name, network)."
            )


@dataclass(eq=False)
class _Recorder(Messenger):
    """Record the names of parameters, and sample sites with the plates around them."""

    names: dict[str, None] = field(default_factory=dict)
    frames: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    drawing: dict[str, None] = field(default_factory=dict)
    sites: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        self.names[msg["name"]] = None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if site_is_subsample(msg) and msg["value"] is None:
            size, subsample_size = msg["fn"].size, msg["fn"].subsample_size
            if subsample_size is not None and subsample_size < size:
                self.drawing[msg["name"]] = None

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        sizes = set()
        for frame in msg["cond_indep_stack"]:
            full = frame.size if frame.full_size is None else frame.full_size
            self.frames[frame.name, int(frame.size), int(full)] += 1
            sizes |= {int(frame.size), int(full)}
        if not site_is_subsample(msg) and not msg["infer"].get("_deterministic"):
            self.sites[msg["name"]] = sizes

    def outside(self, rows: int) -> tuple[str, ...]:
        """Sites with no plate around them that fits the rows."""
        return tuple(
            name
            for name, sizes in self.sites.items()
            if not any(number in (rows, -1) for number in sizes)
        )

    def plate_size(self, rows: int) -> int:
        """Full size of the plate over the rows: of those that fit, the one around most sites."""
        for (_, size, full), _ in self.frames.most_common():
            if rows in (size, full):  # full, if the plate subsamples the rows by itself
                return full
        sizes = {name: size for name, size, _ in self.frames}
        if -1 in sizes.values():  # pyro.plate("data") without a size, which fits any batch
            return rows
        raise InputError(
            f"expected a plate over the {rows} rows of a batch; got plates {sizes}. Write "
            'with pyro.plate("data", len(x)): around the latent and the observed site.'
        )
