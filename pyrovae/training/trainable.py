"""What a pair holds that training changes: parameters, buffers and modes, wherever they live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.data import Batch, row_count
from pyrovae.errors import InputError
from pyrovae.pairs import PyroFunction, evaluating, modules_of, parameters_behind
from pyrovae.training.objectives import Objective


@dataclass(frozen=True)
class Trainable:
    """Everything that training changes in a pair.

    Args:
        parameters: leaf tensors by name, those of ``pyro.param`` statements and those of modules.
        modules: the outermost modules that the pair runs.
    """

    parameters: dict[str, Tensor]
    modules: tuple[nn.Module, ...]

    def state(self) -> dict[str, Tensor]:
        """A copy of every parameter and buffer."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Write a :meth:`state` back in place, so that modules and the parameter store both see it.

        Raises:
            InputError: if names or shapes are not those of this pair.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        got = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if own != got:
            differing = sorted(dict(own.items() ^ got.items()))
            raise InputError(
                f"expected the parameters of this pair; got others at {differing[:5]}. "
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
    def modes_kept(self) -> Iterator[None]:
        """Put the train/eval mode of every module back afterwards."""
        modes = {m: m.training for root in self.modules for m in root.modules()}
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def train(self, mode: bool) -> None:
        """Training mode, or evaluation mode."""
        for module in self.modules:
            module.train(mode)

    def _tensors(self) -> dict[str, Tensor]:
        buffers = {
            f"{i}.{name}": buffer
            for i, module in enumerate(self.modules)
            for name, buffer in module.named_buffers()
        }
        return self.parameters | buffers


@dataclass(frozen=True)
class Survey:
    """What one run of a pair shows: what can be trained, and how many rows its plate speaks of."""

    trainable: Trainable
    plate_size: int


def survey(objective: Objective, model: PyroFunction, guide: PyroFunction, batch: Batch) -> Survey:
    """Run the pair once in evaluation mode and note what it touches.

    Raises:
        InputError: if there is nothing to train, a parameter that is nowhere to be found, or no
            plate over the rows.
    """
    notes = _Notes()
    # fork_rng: a survey may fall between two training steps and must not change their draws.
    with torch.random.fork_rng(), torch.enable_grad(), evaluating(modules_of(model, guide)), notes:
        value = objective(model, guide, *batch)
    roots = modules_of(model, guide)  # a guide may make some in its first run
    store = dict(pyro.get_param_store().named_parameters())
    named = {name: store[name] for name in notes.names if name in store}
    known = {id(parameter) for parameter in named.values()}
    for i, root in enumerate(roots):
        for name, parameter in root.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                named[f"{i}.{name}"] = parameter
    _check_all_found(value, named.values())
    return Survey(Trainable(named, roots), notes.plate_size(row_count(batch)))


def _check_all_found(value: Tensor, found: Iterable[Tensor]) -> None:
    """Raise if the objective depends on a parameter that would not be trained."""
    known = {id(parameter) for parameter in found}
    for leaf in parameters_behind(value):
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            raise InputError(
                "expected networks that model or guide name, or register with pyro.module; got a "
                f"parameter of shape {tuple(leaf.shape)} that is in none of them. Register its "
                "network in the model or guide: pyro.module(name, network)."
            )


@dataclass(eq=False)
class _Notes(Messenger):
    """Take down the names of parameters and the plates around sample sites."""

    names: dict[str, None] = field(default_factory=dict)
    frames: Counter[tuple[str, int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        self.names[msg["name"]] = None

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        for frame in msg["cond_indep_stack"]:
            full = frame.size if frame.full_size is None else frame.full_size
            self.frames[frame.name, int(frame.size), int(full)] += 1

    def plate_size(self, rows: int) -> int:
        """Full size of the plate over the rows: the one that most sites stand in."""
        for (_, size, full), _ in self.frames.most_common():
            if rows in (size, full):  # or the plate chooses some of them by itself
                return full
        found = {name: size for name, size, _ in self.frames}
        if -1 in found.values():  # pyro.plate("data"), which has as many rows as come
            return rows
        raise InputError(
            f"expected a plate over the {rows} rows of a batch; got plates {found}. Write "
            'with pyro.plate("data", len(x)): around the latent and the observed site.'
        )
