"""Recorded tensor operations, made ready to run again and again, with the same bits each time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

Run = Callable[[Sequence[Tensor]], list[Any]]  # of inputs, the results

_aten = torch.ops.aten
DEPENDS = "what it computes depends on the numbers in a tensor"


class NotRepeatable(Exception):
    """Operations that need not mean the same the next time; the reason in words."""


class NotFaster(NotRepeatable):
    """Operations that can be run again, but not in the faster way tried; the reason in words."""


def _backward(operation: Any) -> Callable[..., Any]:
    """A derivative's kernel that writes into memory that is there."""

    def run(*args: Any, out: Tensor, **kwargs: Any) -> object:
        return operation(*args, grad_input=out, **kwargs)

    return run


def _subtracted(tensor: Tensor, other: Any, alpha: Any = 1, *, out: Tensor) -> object:
    """``other - alpha * tensor``."""
    return torch.sub(other, tensor, alpha=alpha, out=out)


def _log_sigmoid(x: Tensor, *, out: tuple[Tensor, Tensor]) -> object:
    """The logarithm, and what its derivative needs."""
    return _aten.log_sigmoid_forward.output(x, output=out[0], buffer=out[1])


# The same kernels by functions that write into memory that is there, and cost less to call. Those
# of the first table may write over an argument.
_POINTWISE: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.mul.Tensor: torch.mul,
    _aten.mul.Scalar: torch.mul,
    _aten.div.Tensor: torch.div,
    _aten.rsub.Scalar: _subtracted,
    _aten.neg.default: torch.neg,
    _aten.exp.default: torch.exp,
    _aten.log.default: torch.log,
    _aten.log1p.default: torch.log1p,
    _aten.sqrt.default: torch.sqrt,
    _aten.reciprocal.default: torch.reciprocal,
    _aten.tanh.default: torch.tanh,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.pow.Tensor_Scalar: torch.pow,
    _aten.silu.default: torch._C._nn.silu,
    _aten.softplus.default: torch._C._nn.softplus,
    _aten.silu_backward.default: _backward(_aten.silu_backward.grad_input),
    _aten.softplus_backward.default: _backward(_aten.softplus_backward.grad_input),
    _aten.sigmoid_backward.default: _backward(_aten.sigmoid_backward.grad_input),
    _aten.tanh_backward.default: _backward(_aten.tanh_backward.grad_input),
    _aten.threshold_backward.default: _backward(_aten.threshold_backward.grad_input),
}
_INTO: dict[Any, Callable[..., Any]] = {
    **_POINTWISE,
    _aten.mm.default: torch.mm,
    _aten.addmm.default: torch.addmm,
    _aten.bmm.default: torch.bmm,
    _aten.sum.dim_IntList: torch.sum,
    _aten.cat.default: torch.cat,
    _aten.log_sigmoid_forward.default: _log_sigmoid,
}
_EMPTY = (_aten.empty.memory_format, _aten.empty_like.default)
# What they give has the shape of an argument, and none of its numbers.
_SHAPED = (
    *(_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default),
    *(_aten.new_ones.default, _aten.new_zeros.default, _aten.new_full.default),
)


def _binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Any:
    """What torch's kernel does, by operations that need no new memory in each run.

    The system clears new memory of some megabytes page by page, which takes a third of the time.
    """
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    log_sigmoid, _ = _aten.log_sigmoid_forward(logits)
    return (1 - target).mul(logits).sub(log_sigmoid)


_TAKEN_APART = {_aten.binary_cross_entropy_with_logits.default: _binary_cross_entropy}


@dataclass(frozen=True)
class _Register:
    """Stands for a tensor that is another one in each run: an input, or a result of its own."""

    place: int


@dataclass(frozen=True)
class Replay:
    """Operations in order, most of them on tensors that stay where they are."""

    operations: list[Callable[[], object]]
    registers: list[Any]
    outputs: tuple[Any, ...]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        """The results for inputs of the same shapes; the next run writes over them."""
        self.registers[: len(inputs)] = inputs
        for operation in self.operations:
            operation()
        return [self.registers[o.place] if isinstance(o, _Register) else o for o in self.outputs]


def record(
    run: Callable[..., Any],
    fixed: Sequence[Tensor],
    inputs: Sequence[Tensor],
    compiler: Callable[[fx.GraphModule, Sequence[Tensor], Sequence[Tensor]], Run] | None = None,
) -> Run:
    """Record the tensor operations of a function, and make them ready to run.

    What depends on no tensor is computed here, once; views of memory that stays are taken here;
    and results of the commonest operations get memory that stays, which later results share.

    Args:
        run: a function of ``*fixed, *inputs``, and of no other tensors that change; it may as well
            have these very tensors from elsewhere. It returns a list of tensors.
        fixed: tensors that stay where they are; their numbers may change.
        inputs: examples of those that each run is given.
        compiler: what makes a function of ``inputs`` of them in another way.

    Returns:
        the operations, as a function of ``inputs``.

    Raises:
        NotRepeatable: if they may be other ones next time.
    """
    try:
        recorded = make_fx(run, _TAKEN_APART)(*fixed, *inputs)
        with torch.no_grad():
            surveyed = _survey(recorded, [*fixed, *inputs])
            if compiler is not None:
                return compiler(recorded, fixed, inputs)
            return _Builder(*surveyed).build(len(fixed))
    except NotRepeatable:
        raise
    except Exception as error:  # whatever torch has in the way: the caller has another way
        words = str(error).strip().partition("\n")[0]
        depends = "get value out of a tracing tensor" in words
        reason = DEPENDS if depends else f"torch can't record it ({type(error).__name__}: {words})"
        raise NotRepeatable(reason) from error


@dataclass
class _Builder:
    """Makes operations of nodes.

    Args:
        nodes: those that are needed, in order.
        values: the result of each in one run, all kept.
        written: memory that an operation writes into.
    """

    nodes: list[fx.Node]
    values: dict[fx.Node, Any]
    written: set[int]
    now: dict[fx.Node, Any] = field(default_factory=dict)  # a tensor that stays, or a register
    constants: set[fx.Node] = field(default_factory=set)
    slots: dict[int, Tensor] = field(default_factory=dict)  # by the memory that it stands for
    free: list[Tensor] = field(default_factory=list)
    registers: list[Any] = field(default_factory=list)
    operations: list[Callable[[], object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.last_use: dict[int | fx.Node, int] = {}  # of memory, and of results
        for i, node in enumerate(self.nodes):
            end = len(self.nodes) if node.op == "output" else i
            self.last_use.update(dict.fromkeys(self._read(node) | _memory(self.values[node]), end))
            self.last_use.update(dict.fromkeys(node.all_input_nodes, end))

    def build(self, fixed: int) -> Replay:
        """The operations of all nodes, of which the first few are tensors that stay."""
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        for node in placeholders[fixed:]:
            self.now[node] = self._register()
        for i, node in enumerate(self.nodes):
            if node.op == "output":
                outputs = map_arg(node.args[0], self.now.__getitem__)
            elif node.op == "call_function":
                self.now[node] = self._result(i, node)
                self._release(i, node)
            else:
                self.now.setdefault(node, self.values[node])
        return Replay(self.operations, self.registers, tuple(outputs))  # type: ignore[arg-type]

    def _result(self, i: int, node: fx.Node) -> Any:
        """What stands for the result of a node, with the operation that computes it appended."""
        value = self.values[node]
        target: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), self.now.__getitem__)
        stays = not any(isinstance(leaf, _Register) for leaf in tree_leaves((args, kwargs)))
        memory, read = _memory(value), self._read(node)
        if self._is_constant(node):
            self.constants.add(node)
            return _compact(value) if all(n.target in _POINTWISE for n in node.users) else value
        if stays and memory and memory <= read and not _is_mutable(target):
            return target(*args, **kwargs)  # a view
        is_dense = all(map(_is_dense, value if isinstance(value, tuple) else (value,)))
        if memory.isdisjoint(read) and is_dense and (target in _INTO or target in _EMPTY):
            out = self._slots(i, node)
            if target in _INTO:
                self._append(i, node, partial(_INTO[target], out=out), args, kwargs)
            return out
        written = _written(node)
        if stays and len(written) == 1 and isinstance(value, Tensor) and memory <= read:
            self._append(i, node, target, args, kwargs)
            return self.now[written[0]]
        register = self._register()
        self._append(i, node, target, args, kwargs, register.place)
        return register

    def _append(
        self, i: int, node: fx.Node, run: Any, args: Any, kwargs: Any, place: int | None = None
    ) -> None:
        places = [a.place for a in tree_leaves((args, kwargs)) if isinstance(a, _Register)]
        if place is None and not places:
            self.operations.append(partial(run, *args, **kwargs))
            return
        ended = [n for n in node.all_input_nodes if self.last_use[n] == i]
        done = [r.place for n in ended if isinstance(r := self.now[n], _Register)]
        self.operations.append(_on_registers(self.registers, run, args, kwargs, place, done))

    def _register(self) -> _Register:
        self.registers.append(None)
        return _Register(len(self.registers) - 1)

    def _read(self, node: fx.Node) -> set[int]:
        return _memory([self.values[n] for n in node.all_input_nodes])

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether a result is the same in every run, and nothing writes into it."""
        if _is_mutable(node.target) or _is_random(node.target) or node.target in _EMPTY:
            return False
        if not _memory(self.values[node]).isdisjoint(self.written):
            return False
        is_number = node.target is _aten.lift_fresh_copy.default  # of a torch.tensor(2.0)
        return (
            is_number
            or node.target in _SHAPED
            or all(n in self.constants for n in node.all_input_nodes)
        )

    def _slots(self, i: int, node: fx.Node) -> Any:
        """Memory for a result, or for each of several."""
        value = self.values[node]
        if isinstance(value, tuple):
            return tuple(self._slot(part) for part in value)
        ended = self._ended(i, node, value)
        return self._slot(value) if ended is None else ended

    def _ended(self, i: int, node: fx.Node, value: Tensor) -> Tensor | None:
        """The memory of an argument which is not needed any more, if it may be written over."""
        if node.target not in _POINTWISE:
            return None
        (memory,) = _memory(value)
        for argument in node.all_input_nodes:
            (own,) = _memory(self.values[argument])
            others = [self.values[n] for n in node.all_input_nodes if n is not argument]
            ends = own in self.slots and self.last_use[own] == i and own not in _memory(others)
            if ends and _layout(self.values[argument]) == _layout(value):
                self.slots[memory] = self.slots.pop(own)
                out: Tensor = self.now[argument]
                return out
        return None

    def _slot(self, value: Tensor) -> Tensor:
        """Memory that no result needs any more, or new."""
        (memory,) = _memory(value)
        kind = value.nbytes, value.device
        fits = next((slot for slot in self.free if (slot.nbytes, slot.device) == kind), None)
        if fits is None:
            fits = torch.empty(value.nbytes, dtype=torch.uint8, device=value.device)
        self.free = [slot for slot in self.free if slot is not fits]
        self.slots[memory] = fits
        return fits.view(value.dtype).as_strided(value.size(), value.stride())

    def _release(self, i: int, node: fx.Node) -> None:
        """Let later results have the memory that this node was the last to read."""
        for memory in self._read(node):
            if self.last_use[memory] == i and memory in self.slots:
                self.free.append(self.slots.pop(memory))


def _survey(
    recorded: fx.GraphModule, examples: Iterable[Tensor]
) -> tuple[list[fx.Node], dict[fx.Node, Any], set[int]]:
    """The needed nodes, what each of them gives in one run, and the memory that is written into."""
    nodes, written = _needed(recorded.graph), set()
    values: dict[fx.Node, Any] = {}
    remaining = iter(examples)
    for node in nodes:
        if node.op == "placeholder":
            values[node] = next(remaining)
        elif node.op == "get_attr":
            values[node] = getattr(recorded, str(node.target))
        elif node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            _check_repeatable(node.target, args, kwargs)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            written |= _memory([values[n] for n in _written(node)])
        else:
            values[node] = map_arg(node.args[0], values.__getitem__)
            written |= _memory(values[node])  # by those who are given it, as gradients are clipped
    return nodes, values, written


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """The nodes in order, without those whose results nobody uses and that do nothing else."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        acts = node.op in ("placeholder", "output")
        if acts or node in needed or _is_mutable(node.target) or _is_random(node.target):
            needed |= {node, *node.all_input_nodes}
    return [node for node in graph.nodes if node in needed]


def _check_repeatable(target: Any, args: Any, kwargs: Any) -> None:
    if target is operator.getitem:
        return
    if not isinstance(target, torch._ops.OpOverload):
        raise NotRepeatable(f"it calls {target}, which is no plain tensor operation")
    leaves = tree_leaves((args, kwargs))
    index = any(isinstance(a, Tensor) and a.dtype in (torch.bool, torch.uint8) for a in leaves[1:])
    if torch.Tag.dynamic_output_shape in target.tags and (index or target not in _INDEXING):
        raise NotRepeatable(DEPENDS)
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise NotRepeatable("it draws from a generator of its own")


_INDEXING = (_aten.index.Tensor,)  # by numbers its result has the shape of these; not by a mask


def _is_mutable(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _written(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operation writes into."""
    if not _is_mutable(node.target):
        return []
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip([a.name for a in arguments], node.args, strict=False)) | node.kwargs
    writes = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    nodes: list[fx.Node] = []
    map_arg([given.get(name) for name in writes], nodes.append)
    return nodes


def _memory(values: Any) -> set[int]:
    """The blocks of memory in which tensors lie."""
    return {t.untyped_storage()._cdata for t in tree_leaves(values) if isinstance(t, Tensor)}


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.size(), tensor.stride(), tensor.dtype


def _is_dense(value: Any) -> bool:
    """Whether this is a tensor with its memory to itself, every place of it used once."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or not value.numel():
        return False
    whole = value.untyped_storage().nbytes() == value.nbytes
    return whole and torch.empty_like(value).stride() == value.stride()


def _compact(value: Any) -> Any:
    """A tensor whose numbers are all the same as an expanded one, so that less is read."""
    if not isinstance(value, Tensor) or value.numel() < 2:
        return value
    first = value[(0,) * value.dim()]
    same = bool(first != 0) and bool((value == first).all())
    return first.clone().expand(value.size()) if same else value


def _on_registers(
    registers: list[Any], run: Any, args: Any, kwargs: Any, place: int | None, done: list[int]
) -> Callable[[], None]:
    """An operation that reads or writes registers, and empties those that nobody needs after it."""

    def current(leaf: Any) -> Any:
        return registers[leaf.place] if isinstance(leaf, _Register) else leaf

    simple = not kwargs and not any(isinstance(a, list | tuple) for a in args)

    def operation() -> None:
        if simple:
            result = run(*[registers[a.place] if type(a) is _Register else a for a in args])
        else:
            now_args, now_kwargs = tree_map(current, (args, kwargs))
            result = run(*now_args, **now_kwargs)
        if place is not None:
            registers[place] = result
        for number in done:
            registers[number] = None

    return operation
