"""Checkpoints: written completely or not at all, and read without running code from the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.saving import check_folder, from_archive, write_archive

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """All that a training run needs to go on after an epoch as if it had never stopped.

    It holds no random state: the draws of an epoch depend only on the run's seed and the epoch's
    number.

    Args:
        fingerprint: settings, data and pair of the run, as text by name.
        epoch: number of finished epochs.
        state: parameters and buffers after that epoch.
        probe: type of the device, and the objective of fixed rows and draws at that state.
        optimizer: the optimizer's ``state_dict()``.
        best_epoch: epoch with the best validation ELBO before averaging; the last one of these
            without validation.
        best: parameters and buffers after the best epoch; empty without validation.
        history: a list of numbers for each column.
        averaged_epochs: number of finished epochs that are averaged over, the last ones.
        averaged_steps: number of their steps.
        mean: mean parameters over these, with their buffers; empty before.
        lr_factors: factor on the learning rates in each epoch before averaging; empty if all are 1.
    """

    fingerprint: dict[str, str]
    epoch: int
    state: dict[str, Tensor]
    probe: tuple[str, float]
    optimizer: dict[str, Any]
    best_epoch: int
    best: dict[str, Tensor]
    history: dict[str, list[float]]
    averaged_epochs: int = 0
    averaged_steps: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)
    lr_factors: list[float] = field(default_factory=list)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that at any moment ``path`` holds either the old one or the new one.

    Raises:
        InputError: if it can't be written.
    """
    content = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    write_archive({"format": FORMAT, **content}, path)


def load(path: Path, fingerprint: dict[str, str]) -> Checkpoint:
    """Read a checkpoint of the same settings, data and pair; tensors come back on the CPU.

    Raises:
        InputError: if the file isn't a checkpoint of this library, or is one of another run.
    """
    checkpoint = _read(path)
    found = checkpoint.fingerprint
    differences = [
        _difference(name, *(facts.get(name, "missing") for facts in (fingerprint, found)))
        for name in {**fingerprint, **found}
        if fingerprint.get(name) != found.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(
            f"expected the settings, data and pair that {path} was written with; got "
            f"{'; '.join(differences[:4])}{more}. Resume with the same ones, or train anew into "
            "another file or folder."
        )
    return checkpoint


def _read(path: Path) -> Checkpoint:
    try:
        content = from_archive(path.read_bytes())
        version = content.pop("format")
        if version != FORMAT:
            raise ValueError(f"of format {version}, not {FORMAT}")
        return Checkpoint(**content)
    except (ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError | OSError) else "of another kind"
        raise InputError(
            f"expected a checkpoint of pyrovae.fit in {path}; got a file that is {reason}. Delete "
            "it and train anew, or name another."
        ) from error


def _difference(name: str, now: str, before: str) -> str:
    """Two texts about one thing; of an optimizer's many settings those that differ."""
    parts = [text[1:].replace("} for ", ", parameters ").split(", ") for text in (now, before)]
    if now[:1] == before[:1] == "{" and len(parts[0]) == len(parts[1]):
        apart = [pair for pair in zip(*parts, strict=True) if pair[0] != pair[1]]
        now, before = (", ".join(texts) for texts in zip(*apart, strict=True))
    return f"{name} {now} (checkpoint: {before})"


def check_path(path: Path, *, resume: bool) -> None:
    """Check that a checkpoint can be written to ``path`` without overwriting one.

    Raises:
        InputError: if the folder can't be written to, or a checkpoint would be overwritten.
    """
    check_folder(path.parent)
    if path.is_dir():
        raise InputError(f"expected the name of a file; got the folder {path}. Append a file name.")
    if path.exists() and not resume:
        raise InputError(
            f"expected no file at {path}; got one. Go on from it with resume=True, or name another."
        )
