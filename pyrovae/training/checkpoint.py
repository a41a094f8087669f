"""Checkpoints: written whole or not at all, read without running anyone's code."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """All that a training run needs to go on after an epoch as if it had never stopped.

    There is no random state among it: the draws of an epoch are a function of the run's seed and
    the epoch's number.

    Args:
        fingerprint: settings and data of the run, as text by name.
        epoch: number of epochs done.
        state: parameters and buffers after that epoch.
        optimizer: the optimizer's ``state_dict()``.
        best_epoch: epoch with the best validation ELBO so far; the last one without validation.
        best: parameters and buffers after the best epoch; empty without validation.
        history: one list of numbers by column.
    """

    fingerprint: dict[str, str]
    epoch: int
    state: dict[str, Tensor]
    optimizer: dict[str, Any]
    best_epoch: int
    best: dict[str, Tensor]
    history: dict[str, list[float]]


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that ``path`` holds the old one or the new one at any moment."""
    temporary = path.with_name(path.name + ".partial")
    content = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, fingerprint: dict[str, str]) -> Checkpoint:
    """Read a checkpoint of the same settings and data; tensors come back on the CPU.

    Raises:
        InputError: if the file is no checkpoint of this library, or one of another run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("format")
        checkpoint = Checkpoint(**content)
    except (
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as e:
        raise InputError(
            f"expected a checkpoint of pyrovae.fit in {path}; got another or a damaged file "
            f"({type(e).__name__}). Name another file with checkpoint=."
        ) from e
    if version != FORMAT:
        raise InputError(
            f"expected a checkpoint of format {FORMAT} in {path}; got {version}. Train anew."
        )
    names = sorted(fingerprint.keys() | checkpoint.fingerprint.keys())
    differing = [
        f"{name} {fingerprint.get(name)} (checkpoint: {checkpoint.fingerprint.get(name)})"
        for name in names
        if fingerprint.get(name) != checkpoint.fingerprint.get(name)
    ]
    if differing:
        raise InputError(
            f"expected the settings and data that {path} was written with; got "
            f"{'; '.join(differing)}. Resume with the same ones, or name another checkpoint."
        )
    return checkpoint


def check_path(path: Path, *, resume: bool) -> None:
    """See that a checkpoint can be written to ``path`` without losing one.

    Raises:
        InputError: if the folder does not exist, or a checkpoint would be overwritten.
    """
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"expected a folder that can be written to; got {path.parent}. Create it first."
        )
    if path.is_dir():
        raise InputError(f"expected the name of a file; got the folder {path}. Append a file name.")
    if path.exists() and not resume:
        raise InputError(
            f"expected no file at {path}; got one. Go on from it with resume=True, or name another."
        )
