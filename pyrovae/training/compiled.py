"""Recorded tensor operations, compiled by torch's Inductor: fewer kernels, and other rounding."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from pyrovae.errors import InputError
from pyrovae.training.replay import NotFaster, Run


def check_compile(wanted: bool, capture: str) -> None:
    """Raise unless steps can be compiled, where that is wanted.

    Raises:
        InputError: if steps are not to be recorded, or there is no C++ compiler.
    """
    if not isinstance(wanted, bool):
        raise InputError(f"expected compile=True or compile=False; got {wanted!r}.")
    if wanted and capture == "off":
        raise InputError(
            "expected capture='auto' beside compile=True, which compiles recorded steps; got "
            "capture='off'. Leave one of them out."
        )
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if wanted and not any(map(shutil.which, names)):
        raise InputError(
            f"expected a C++ compiler for compile=True; got none ({', '.join(names)}). Install "
            "one, on Debian and Ubuntu the package g++, or leave compile= out."
        )


def by_inductor(recorded: fx.GraphModule, fixed: Sequence[Tensor], inputs: Sequence[Tensor]) -> Run:
    """The recorded operations as a function of ``inputs``, compiled.

    Random draws are left to torch's own kernels, so that they are the very same.

    Args:
        recorded: a function of ``*fixed, *inputs``.
        fixed: tensors that stay where they are.
        inputs: examples of those that each run is given.

    Raises:
        NotFaster: if that can't be done.
    """
    stay = [tensor.detach() for tensor in fixed]
    try:
        with warnings.catch_warnings():  # torch warns of parts of its own
            warnings.simplefilter("ignore", DeprecationWarning)
            import torch._inductor  # here, as it takes a second

            run = torch._inductor.compile(
                recorded, [*stay, *inputs], options={"fallback_random": True}
            )
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        raise NotFaster(f"torch can't compile it ({type(error).__name__}: {words})") from error
    before = {tensor.untyped_storage()._cdata for tensor in stay}

    def apart(inputs: Sequence[Tensor]) -> list[Any]:
        """Results in memory of their own: a compiler gives equal ones the same."""
        taken, results = set(before), list(run(*stay, *inputs))
        for i, result in enumerate(results):
            if isinstance(result, Tensor):
                memory = result.untyped_storage()._cdata
                results[i] = result.clone() if memory in taken else result
                taken.add(memory)
        return results

    return apart
