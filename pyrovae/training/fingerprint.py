"""What a resumed run must share with the interrupted one, as text by name."""

from __future__ import annotations

import hashlib
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.training.trainable import Trainable

PLAIN = (type(None), bool, int, float, str)


def of_pair(trainable: Trainable) -> dict[str, str]:
    """Names, shapes and dtypes of parameters and buffers, and the types of all modules."""
    tensors = {
        f"tensor {name}": f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
        for name, tensor in trainable.state().items()
    }
    modules = {
        f"module {i}.{name}".rstrip("."): f"{type(module).__qualname__}({module.extra_repr()})"
        for i, root in enumerate(trainable.modules)
        for name, module in root.named_modules()
    }
    return tensors | modules


def of_optimizer(optimizer: torch.optim.Optimizer, trainable: Trainable) -> dict[str, str]:
    """The type of the optimizer, and the settings and parameters of every group."""
    names = {id(tensor): name for name, tensor in trainable.parameters.items()}
    groups = {}
    for i, group in enumerate(optimizer.param_groups):
        settings = {name: value for name, value in group.items() if name != "params"}
        members = str([names.get(id(tensor)) for tensor in group["params"]])
        groups[f"optimizer's group {i}"] = f"{described(settings)} for {_digest(members)}"
    return {"optimizer": type(optimizer).__name__, **groups}


def described(value: Any) -> str:
    """A value as text that is the same in every process: names of functions, types and settings."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().reshape(-1).tolist()
        return f"tensor {tuple(value.shape)} {value.dtype} {_digest(str(numbers))}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {described(v)}' for k, v in value.items())}}}"
    if isinstance(value, partial):
        return f"{described(value.func)} of {described(value.args)} {described(value.keywords)}"
    if isinstance(value, nn.Module):
        return f"{value!r} {described(list(value.state_dict().values()))}"
    owner = value if hasattr(value, "__qualname__") else type(value)
    name = f"{owner.__module__}.{owner.__qualname__}"
    if inspect.ismethod(value):
        return f"{name} of {described(value.__self__)}"
    if inspect.isroutine(value) or isinstance(value, type):
        return name
    settings = {k: v for k, v in getattr(value, "__dict__", {}).items() if isinstance(v, PLAIN)}
    return f"{name} {settings}" if settings else name


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
