"""Operations that are run again, as a CUDA graph: a GPU is told once for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.training.replay import NotFaster, Run

# Runs before the one that becomes the graph: libraries set themselves up in these.
WARM_UP = 3


def on_gpu(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them are on a GPU by CUDA."""
    return {tensor.device.type for tensor in tensors} == {"cuda"}


def as_graph(run: Run, inputs: Sequence[Tensor]) -> Run:
    """The same operations on tensors that stay where they are, run at one call.

    What is computed elsewhere than on the GPU would be done this once only: whoever calls has to
    compare results.

    Args:
        run: operations on inputs of some shapes and tensors that stay, which write results into
            memory that the next run may write over.
        inputs: examples of those that each run is given, on a GPU.

    Raises:
        NotFaster: if that can't be done, as where operations wait for the CPU.
    """
    own = [tensor.clone() for tensor in inputs]
    try:
        with torch.no_grad(), torch.cuda.device(own[0].device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run(own)
                with _refusing_to_wait():  # what fails in a capture can leave CUDA unusable
                    run(own)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # A stream of this device, as torch's own is on the first that it was made for; and out
            # of it again even if the capture fails, where torch stays in it.
            # What other threads ask of CUDA, such as one that loads data, is no part of it.
            capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
            with torch.cuda.stream(stream), capture:
                results = run(own)
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        raise NotFaster(f"CUDA can't take it ({type(error).__name__}: {words})") from error

    return _Graph(run, own, graph, results)


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Let operations that wait for the CPU fail."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # torch says once that it doesn't find all of them
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass(frozen=True)
class _Graph:
    """A graph, with all the memory that it reads and writes.

    CUDA knows addresses only: of memory that was there before, nobody but ``run`` may know.
    """

    run: Run
    own: list[Tensor]
    graph: torch.cuda.CUDAGraph
    results: list[Any]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        """The results for inputs of the same shapes; the next run writes over them."""
        for tensor, numbers in zip(self.own, inputs, strict=True):
            tensor.copy_(numbers)
        self.graph.replay()
        return list(self.results)
