"""Training steps without Pyro: a pair's tensor operations, recorded once and run again.

What a pair computes from a minibatch, value and gradient, is recorded as operations on tensors,
the random draws among them. Run again, these draw the same numbers and give the same bits as the
pair, without its Python, Pyro's handlers and the autograd engine. Where that can't be, the pair
computes its steps itself, and :attr:`Steps.account` says why.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

from pyrovae.data import Batch
from pyrovae.errors import InputError
from pyrovae.pairs import AsFound, PyroFunction, Variables
from pyrovae.training.compiled import by_inductor, check_compile
from pyrovae.training.cuda_graph import as_graph, on_gpu
from pyrovae.training.replay import DEPENDS, NotFaster, NotRepeatable, record
from pyrovae.training.trainable import Trainable

Capture = Literal["auto", "graph", "off"]
Shapes = tuple[tuple[Any, ...], ...]
Evaluate = Callable[..., Tensor]  # of a batch and a KL weight, the mean objective per datum
Results = list[Any]  # tensors, or None for no gradient

# Recording takes 1.5 s where it is the first of a process, and saves some 2 ms a step.
LEAST_STEPS = 1000
# One step more in each epoch is computed, by the pair, to compare.
LEAST_STEPS_AN_EPOCH = 4

# Calls after which a step is judged by how often it was another one.
ENOUGH_CALLS = 20

# What compiled operations may be off by, relative to the norm of a result, or of the gradient.
TOLERANCE = 1e-4

_READING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)  # item() is refused by torch itself


def check_capture(mode: str, compile: bool) -> None:
    """Raise unless these are ways to compute steps.

    Raises:
        InputError: if they are not, or what is to be compiled can't be.
    """
    if mode not in get_args(Capture):
        raise InputError(
            f"expected capture='auto', 'graph' or 'off'; got {mode!r}. Leave it out for 'auto'."
        )
    check_compile(compile, mode)


class Way(NamedTuple):
    """How recorded operations are run again."""

    compiled: bool = False
    as_graph: bool = False

    def __str__(self) -> str:
        words = "compiled and replayed" if self.compiled else "replayed"
        return f"{words} as a CUDA graph" if self.as_graph else words


PLAIN = Way()


class CapturedStep:
    """The mean objective of a minibatch and its gradient, without the pair that they are of.

    Args:
        evaluate: computes the mean objective.
        trainable: parameters and buffers of the pair.
        batch: a minibatch of the shape that this will be for.
        weight: the KL weight.
        any_weight: whether each call may have another weight; it is a tensor to the pair then.
        way: how it is run again. If compiled, its results are compared within ``TOLERANCE``.

    Raises:
        NotFaster: if it can't be run this way, or is another one then.
        NotRepeatable: with the reason why the pair has to compute its steps itself.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        trainable: Trainable,
        batch: Batch,
        weight: float,
        *,
        any_weight: bool = False,
        way: Way = PLAIN,
    ) -> None:
        self._evaluate, self._trainable, self.way = evaluate, trainable, way
        self._parameters = list(trainable.parameters.values())
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self._parameters):
            raise NotRepeatable("a parameter has hooks on its gradient")
        if any(p.device.type not in ("cpu", "cuda") for p in self._parameters):
            raise NotRepeatable("it is on a device whose random state is not looked after")
        mean, *_ = self._of_pair(batch, weight)
        self._weight = torch.full_like(mean, weight) if any_weight else None
        kl_weight = weight if self._weight is None else self._weight
        fixed = [*self._parameters, *trainable.buffers.values()]
        fixed += [] if self._weight is None else [self._weight]
        batch, reading = _copies(batch), _Reading()

        def step(*_: Tensor) -> Results:
            with reading:
                results = self._gradients(batch, kl_weight)
            return [*results, *reading.conditions]

        with self._aside():
            self._replay = record(step, fixed, batch, by_inductor if way.compiled else None)
            if way.as_graph:
                self._replay = as_graph(self._replay, batch)
        self._answers, self._calls, self._others = reading.answers, 0, 0
        self._unchecked: tuple[Batch, float] | None = (batch, weight)
        self.end()

    def __call__(self, batch: Batch, weight: float) -> Results:
        """The mean objective, and the gradient of its negative by each parameter.

        The next call writes over them. Empty if a condition, such as ``x.sum() > 0``, is another
        one now than when this was recorded: the pair has to compute the step, with the random
        state that there was before.
        """
        if not self._answers:
            self._unchecked = batch, weight
            return self._run(batch, weight)
        buffers = list(self._trainable.buffers.values())
        before = _copies(buffers)
        results = self._run(_copies(batch), weight)
        count = 1 + len(self._parameters)
        self._calls += 1
        if [bool(condition) for condition in results[count:]] == self._answers:
            self._unchecked = batch, weight
            return results[:count]
        self._others += 1
        for buffer, numbers in zip(buffers, before, strict=True):
            buffer.copy_(numbers)
        return []

    @property
    def is_vain(self) -> bool:
        """Whether conditions are other ones so often that replaying saves nothing."""
        return self._calls >= ENOUGH_CALLS and self._others > self._calls / 4

    def checked(self, batch: Batch, weight: float) -> Results:
        """The same, compared with what the pair computes now, to the last bit unless compiled.

        Raises:
            NotRepeatable: if a result, a buffer or the random state after it differs, or the pair
                changes itself.
        """
        expected = self._of_pair(batch, weight)
        results = self(batch, weight)
        if results and not self._agree(expected, self._left_by(results)):
            kind = NotRepeatable if self.way == PLAIN else NotFaster
            done = "compiled" if self.way.compiled else "run again"
            raise kind(f"{done}, its operations do not give what it gives")
        if results:
            self._unchecked = None
        return results

    def _agree(self, expected: Results, found: Results) -> bool:
        """Whether two steps leave the same; if compiled, but for rounding."""
        if not self.way.compiled:
            return all(map(_same, expected, found))
        end = 1 + len(self._parameters)  # the gradient is one vector, some of it may be all noise
        rest = zip(expected[:1] + expected[end:], found[:1] + found[end:], strict=True)
        return _close(expected[1:end], found[1:end]) and all(_close([a], [b]) for a, b in rest)

    def _run(self, batch: Batch, weight: float) -> Results:
        with torch.no_grad():
            if self._weight is not None:
                self._weight.fill_(weight)
            return self._replay(batch)

    def end(self) -> None:
        """Compare so if the last call did not, with buffers and random state left as they are.

        Raises:
            NotRepeatable: as :meth:`checked`.
        """
        if self._unchecked is not None:
            batch, weight = self._unchecked
            with self._aside():
                self.checked(_copies(batch), weight)

    def _of_pair(self, batch: Batch, weight: float) -> Results:
        """Copies of what a step of the pair leaves, which is not taken.

        Raises:
            NotRepeatable: if it changes attributes or declares parameters, which are put back.
        """
        found = AsFound(self._trainable.modules)
        with self._aside():
            left = self._left_by(self._gradients(_copies(batch), weight))
            expected = [None if tensor is None else tensor.detach().clone() for tensor in left]
        if found.changed:
            found.put_back()
            raise NotRepeatable("it changes attributes of its modules or declares parameters")
        return expected

    def _gradients(self, batch: Batch, weight: float | Tensor) -> Results:
        mean = self._evaluate(batch, weight)
        if not all(parameter.requires_grad for parameter in self._parameters):
            raise NotRepeatable("a parameter is frozen")
        gradients = torch.autograd.grad(-mean, self._parameters, allow_unused=True)
        return [mean, *_as_accumulated(gradients, self._parameters)]

    def _left_by(self, results: Results) -> Results:
        """All that a step leaves: its results, the buffers and torch's random states."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return [*results, *self._trainable.buffers.values(), torch.get_rng_state(), *cuda]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Leave the random states and the buffers as they were.

        Raises:
            NotRepeatable: if there were draws from Python or NumPy.
        """
        before = random.getstate(), np.random.get_state()
        buffers = [(buffer, buffer.clone()) for buffer in self._trainable.buffers.values()]
        gpus = {p.device for p in self._parameters if p.device.type == "cuda"}
        with torch.random.fork_rng(gpus):
            try:
                yield
                drawn = str(before) != str((random.getstate(), np.random.get_state()))
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])
                with torch.no_grad():
                    for buffer, numbers in buffers:
                        buffer.copy_(numbers)
        if drawn:
            raise NotRepeatable("it draws from the random state of Python or NumPy")


@dataclass
class Steps:
    """Which steps of a run are replayed, and why the others are not.

    Args:
        evaluate: computes the mean objective.
        trainable: parameters and buffers of the pair.
        mode: "auto", "graph" for a CUDA graph of them, or "off" for none.
        any_weight: whether the objective takes a tensor as KL weight, so that one record is enough.
        compile: whether the steps that are replayed are compiled where that can be done.
        account: how steps are computed, and why not otherwise, in words.
    """

    evaluate: Evaluate
    trainable: Trainable
    mode: Capture = "auto"
    any_weight: bool = False
    compile: bool = False
    account: str = field(init=False)
    _refused: dict[Shapes, list[str]] = field(default_factory=dict)
    _epoch: int = 0
    _first: int = 0
    _to_come: int = 0
    _weight: float = 1.0
    _watched: bool = False
    _before: Counter[Shapes] = field(default_factory=Counter)
    _counts: Counter[Shapes] = field(default_factory=Counter)
    _captured: dict[Shapes, CapturedStep] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode == "graph" and not on_gpu(self.trainable.parameters.values()):
            raise InputError(
                "expected a pair on a GPU by CUDA for capture='graph'; got one elsewhere. Move it "
                "there, as by vae.cuda(), or leave capture out."
            )
        short = f": with fewer than {LEAST_STEPS:,} steps, or {LEAST_STEPS_AN_EPOCH} an epoch, "
        why = ", as asked" if self.mode == "off" else f"{short}recording does not pay"
        self.account = f"by the pair itself{why}"

    def begin(self, epoch: int, to_come: int, weight: float) -> bool:
        """Begin an epoch; whether some of its steps may be replayed.

        Args:
            epoch: its number.
            to_come: how many epochs there may be yet, this one included.
            weight: the KL weight.
        """
        self._epoch, self._to_come, self._weight = epoch, to_come, weight
        self._before, self._counts = self._counts, Counter()
        if any(step.is_vain for step in self._captured.values()):
            self.give_up(DEPENDS)
        return any(map(self._pays, self._before))

    def captured(self, batch: Batch) -> Callable[[Batch, float], Results] | None:
        """What replays the step of a minibatch, recorded now if it wasn't yet; or none.

        In the last step of an epoch that compares with what the pair computes.

        Raises:
            NotRepeatable: if it can't be recorded, and steps of other shapes are replayed.
        """
        shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch)
        self._counts[shapes] += 1
        if not self._pays(shapes):
            return None
        if shapes not in self._captured:
            try:
                self._captured[shapes] = self._capture(batch, shapes)
            except NotRepeatable as error:
                if self._captured:
                    raise  # what is replayed has to be compared at the end of an epoch
                self.give_up(str(error))
                return None
            self._first = self._first or self._epoch
            self.account = self._of_captured()
        step = self._captured[shapes]
        return step.checked if self._counts[shapes] == self._before[shapes] else step

    @contextmanager
    def watching(self, *functions: PyroFunction) -> Iterator[None]:
        """See whether the first step of a run changes variables, as of a pair that counts steps.

        Recorded, it would count no more, and what it does after so many steps would never come.
        That is seen here before anything is recorded, as recording takes runs of its own.

        Args:
            functions: model, guide and objective.
        """
        if self._watched or self.mode == "off":
            yield
            return
        variables = Variables(*functions)
        yield
        self._watched = True
        if variables.changed:
            self.give_up("it changes attributes or variables that outlast a step")
        elif variables.has_iterators:
            self.give_up("it can reach an iterator, which may give something else in each step")

    def end(self) -> None:
        """Compare with what the pair computes where the last step of an epoch was another one.

        Raises:
            NotRepeatable: if there is a difference.
        """
        for step in self._captured.values():
            step.end()

    def give_up(self, reason: str) -> None:
        """Replay no step from this epoch on."""
        last, replayed = self._epoch - 1, ""
        if 0 < self._first <= last:
            replayed = f", those of epoch {self._first} to {last} apart"
        self.mode = "off"
        self.account = f"by the pair itself{replayed}: {reason}"
        self._captured.clear()

    def _capture(self, batch: Batch, shapes: Shapes) -> CapturedStep:
        capture = partial(
            CapturedStep,
            self.evaluate,
            self.trainable,
            batch,
            self._weight,
            any_weight=self.any_weight,
        )
        refused = self._refused[shapes] = []
        graph = self.mode == "graph"
        for way in dict.fromkeys([Way(self.compile, graph), Way(as_graph=graph)]):
            try:
                return capture(way=way)
            except NotFaster as error:
                lost = "compiled" if way.compiled else "as a CUDA graph"
                refused.append(f", not {lost} ({error})")
        return capture()

    def _of_captured(self) -> str:
        """How steps are computed that are not the pair's own."""
        found = {
            str(step.way) + "".join(self._refused[shapes])
            for shapes, step in self._captured.items()
        }
        first, *others = sorted(found, key=len)
        since = f"{',' if '(' in first else ''} from epoch {self._first} on"
        return first + since + "".join(f"; minibatches of some size {words}" for words in others)

    def _pays(self, shapes: Shapes) -> bool:
        """Whether recording is shorter than what it saves, going by the epoch before."""
        each = self._before[shapes]
        return (
            self.mode != "off"
            and (self.any_weight or self._weight == 1.0)
            and each >= LEAST_STEPS_AN_EPOCH
            and (shapes in self._captured or each * self._to_come >= LEAST_STEPS)
        )


class _Reading(TorchFunctionMode):
    """Note the conditions that Python asks for, and let no other numbers out of tensors to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: list[Tensor] = []
        self.answers: list[bool] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READING:
            raise NotRepeatable(DEPENDS)
        if func is Tensor.__bool__ or (func is Tensor.item and args[0].dtype is torch.bool):
            condition = args[0].detach().clone()  # it may be written into later
            with disable_proxy_modes_tracing():
                self.answers.append(bool(condition))
            self.conditions.append(condition)
            return self.answers[-1]
        return func(*args, **(kwargs or {}))


def _copies(tensors: Iterable[Tensor]) -> Batch:
    """Tensors that may be written into."""
    return tuple(tensor.clone() for tensor in tensors)


def _as_accumulated(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Results:
    """Gradients as ``backward`` leaves them: each on its own, laid out as its parameter."""
    memory = {parameter.untyped_storage()._cdata for parameter in parameters}
    results: Results = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            if gradient.layout is not torch.strided:
                raise NotRepeatable("a gradient is sparse")
            own = gradient.untyped_storage()._cdata
            if own in memory or gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            memory.add(own)
        results.append(gradient)
    return results


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    if (one.dtype, one.size(), one.stride()) != (two.dtype, two.size(), two.stride()):
        return False
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, two)))


def _close(ones: Results, others: Results) -> bool:
    """Whether numbers are the same but for rounding, and all else, random states, to the bit."""
    differ = [i for i, pair in enumerate(zip(ones, others, strict=True)) if not _same(*pair)]
    for i in differ:
        one, two = ones[i], others[i]
        if one is None or two is None or not one.is_floating_point():
            return False
        if (one.dtype, one.size(), one.stride()) != (two.dtype, two.size(), two.stride()):
            return False
    error = sum(float((ones[i] - others[i]).double().square().sum()) for i in differ)
    size = sum(float(one.double().square().sum()) for one in ones if one is not None)
    return error <= TOLERANCE**2 * size
