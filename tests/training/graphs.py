"""A stand-in for CUDA graphs on a machine without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae.training import captured

WAITS = "operation not permitted when stream is capturing"


class Graph(TorchDispatchMode):
    """Operations run again on the memory in which they were run first.

    Python is not run again. An operation that takes a number out of a tensor ends the recording, as
    CUDA has it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError(f"{WAITS}\nand more")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.operations:
            given = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
            now = func(*args, **kwargs)
            for tensor, numbers in zip(tensors(out), tensors(now), strict=True):
                if tensor.untyped_storage()._cdata not in given:
                    tensor.copy_(numbers)


class Stream:
    def wait_stream(self, stream: Stream) -> None:
        """There is nothing to wait for."""


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let the CPU be the GPU; the graphs that are made, in order."""
    made: list[Graph] = []

    @contextlib.contextmanager
    def capturing(graph: Graph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        with graph:
            yield
        made.append(graph)

    monkeypatch.setattr(captured, "on_gpu", lambda _: True)
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "device": contextlib.nullcontext,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda _: None,
        "graph": capturing,
        "stream": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
