"""``run.toml``: what a run folder is about and which files it has, as text that people can read."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyrovae.data import Dataset
from pyrovae.errors import InputError

NAME = "run.toml"
FORMAT = 1
TITLE = "# A run of pyrovae, to go on with: pyrovae.load_run(folder), or pyrovae sample FOLDER\n"
#: The tables of the file, with the keys that each must have and the type of their values.
NEEDED: dict[str, dict[str, type]] = {
    "data": {"name": str, "rows": int, "shape": list, "digest": str},
    "options": {"seed": int},
    "model": {"kind": str},
    "samples": {"source": str, "recommended": str},
    "files": {},
    "versions": {},
}

Manifest = Mapping[str, Mapping[str, Any]]


def to_toml(command: str, manifest: Manifest) -> str:
    """The text of ``run.toml``.

    Args:
        command: the command that made the folder.
        manifest: tables of text, numbers, truth values and lists of them; ``None`` is left out.
    """
    lines = [TITLE, f"format = {FORMAT}\n", f"command = {_value(command)}\n"]
    for table, entries in manifest.items():
        lines.append(f"\n[{table}]\n")
        for key, value in entries.items():
            if value is not None:
                lines.append(f"{_value(key) if '.' in key else key} = {_value(value)}\n")
    return "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # A file name may have bytes that are no text.
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read(folder: Path) -> Manifest:
    """The tables of a folder's ``run.toml``.

    Raises:
        InputError: if the folder has none, as one of an unfinished run, or it is damaged or of
            another version.
    """
    path = folder / NAME
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"expected the folder of a finished run; got {str(folder)!r}, without {NAME}. Name the "
            "folder that pyrovae analyze has written, or finish it there."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if content.get("format") != FORMAT:
        raise _damaged(path, f"its format is {content.get('format')!r}, not {FORMAT}")
    for table, entries in NEEDED.items():
        if not isinstance(content.get(table), dict):
            raise _damaged(path, f"it has no table [{table}]")
        for key, kind in entries.items():
            value = content[table].get(key)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise _damaged(path, f"{key} in [{table}] is {value!r}")
    return content


def _damaged(path: Path, reason: str) -> InputError:
    reason = " ".join(reason.split()).rstrip(".")
    return InputError(
        f"expected a {NAME} as pyrovae has written it; got {str(path)!r}: {reason}. Take the "
        "folder as it was written, or read it with the version that wrote it."
    )


def digest_of_file(path: Path) -> str:
    """A checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_of_data(data: Dataset) -> str:
    """A checksum of all numbers and categories, their shape and names; labels don't count."""
    values = data.values.detach().cpu().contiguous()
    about: tuple[Any, ...] = (tuple(values.shape), str(values.dtype), data.columns)
    kinds = () if data.info is None else data.info.columns
    if any(column.categories for column in kinds):
        about = (*about, tuple(column.categories for column in kinds))
    checksum = hashlib.blake2b(repr(about).encode("utf-8", "replace"), digest_size=16)
    checksum.update(values.numpy().tobytes())
    if data.obs_mask is not None:
        checksum.update(data.obs_mask.cpu().contiguous().numpy().tobytes())
    return checksum.hexdigest()
