"""Operations that are run again, as a CUDA graph: a GPU is told once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyrovae.training.replay import NotFaster, Run

# Runs before the one that becomes the graph: libraries set themselves up in these.
WARM_UP = 3


def on_gpu(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them are on a GPU by CUDA."""
    return all(tensor.device.type == "cuda" for tensor in tensors)


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
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = run(own)
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        raise NotFaster(f"CUDA can't take it ({type(error).__name__}: {words})") from error

    def replay(inputs: Sequence[Tensor]) -> list[Tensor]:
        for tensor, numbers in zip(own, inputs, strict=True):
            tensor.copy_(numbers)
        graph.replay()
        return list(results)

    return replay
