"""Images: folders of PNG and JPEG files, and where arrays have their colour channels."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.errors import InputError
from pyrovae.extras import needed_for

Array = np.ndarray[Any, Any]

ENDINGS = (".png", ".jpg", ".jpeg")
#: The modes of pillow whose pixels are numbers with one meaning, and their number of channels.
MODES = {"1": 1, "L": 1, "RGB": 3}
COLOURS = (1, 3)  # channels by which an array is known to hold images
LEVELS = 255
NAMED = 20  # files that an error names, at most


@dataclass(frozen=True)
class Images:
    """What a folder of image files holds.

    Args:
        name: what to call it in an error or a report.
        array: true or false, or levels 0, …, 255, shape ``(N, H, W)`` or, in colour,
            ``(N, 3, H, W)``.
        ids: the names of the files, in order.
        labels: the number of each file's folder, if the files lie in several, shape ``(N,)``.
        note: what was taken, in words.
        label_names: what the folders are called, in the order of their numbers.
    """

    name: str
    array: Array
    ids: tuple[str, ...]
    labels: Array | None
    note: str
    label_names: tuple[str, ...] = ()


def is_image(event_shape: Sequence[int]) -> bool:
    """Whether a row is an image, ``(H, W)`` or ``(C, H, W)``, so that all entries have one unit.

    >>> [is_image(shape) for shape in ((8, 8), (3, 32, 32), (13,), (5, 2, 2))]
    [True, True, False, False]
    """
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[0] in COLOURS)


def size_in_words(event_shape: Sequence[int]) -> str:
    """What an image is, in words.

    >>> size_in_words((3, 32, 48)), size_in_words((8, 8))
    ('colour images of 32 × 48 pixels', 'images of 8 × 8 pixels')
    """
    kind = "colour images" if len(event_shape) == 3 and event_shape[0] == 3 else "images"
    return f"{kind} of {event_shape[-2]} × {event_shape[-1]} pixels"


def channel_axis(
    event_shape: Sequence[int],
    name: str,
    *,
    channels: str | None = None,
    like: Sequence[int] | None = None,
) -> str | None:
    """Where an array has the channels of its images: ``"first"``, ``"last"``, or not at all.

    An axis of 1 or 3 is taken for them if it is the first or the last of a row's three.

    Args:
        event_shape: shape of one row.
        name: what to call the array in an error.
        channels: what the user says.
        like: shape of a row, channels first, that these have to be like.

    Raises:
        InputError: if both axes may be the channels and nothing tells which, or the user names one
            in rows that don't have three.
    """
    shape = tuple(event_shape)
    if channels not in (None, "first", "last"):
        raise InputError(
            f"expected channels 'first' or 'last'; got {channels!r}. Leave it out if there are "
            "none."
        )
    if like is not None and len(like) == 3:
        if shape == tuple(like):
            return "first"
        return "last" if shape == (*like[1:], like[0]) else None
    if len(shape) != 3:
        if channels is None:
            return None
        raise InputError(
            f"expected images with an axis of channels in {name}; got rows of shape {shape}. "
            "Leave out channels=, or give an array of shape (N, H, W, C) or (N, C, H, W)."
        )
    if channels is not None:
        return channels
    first, last = shape[0] in COLOURS, shape[-1] in COLOURS
    if first and last:
        raise InputError(
            f"expected images whose channels are the first or the last axis of a row, of 1 or 3; "
            f"got both in {name}, rows of shape {shape}. Say which: channels='first' or 'last'."
        )
    return "first" if first else "last" if last else None


# -- folders of files ----------------------------------------------------------------------------


def find(source: str, path: Path) -> list[Path] | None:
    """The image files that a folder or a pattern names, in order; ``None`` if it names neither.

    Args:
        source: the words of the user, with ``*``, ``?`` or ``[`` for a pattern.
        path: the same as a path, its home folder filled in.

    Raises:
        InputError: if there is no image among them.
    """
    if path.is_dir():
        inside = [p for p in path.iterdir() if not p.name.startswith(".")]
        files = [p for p in inside if _is_named_image(p)]
        for folder in [] if files else inside:
            files += [p for p in folder.glob("*") if _is_named_image(p)]
    elif not path.exists() and any(sign in source for sign in "*?["):
        files = [Path(p) for p in glob.glob(str(path)) if _is_named_image(Path(p))]
    else:
        return None
    if not files:
        raise InputError(
            f"expected a file, or images ending in {', '.join(ENDINGS)}; got "
            f"{'a directory' if path.is_dir() else 'a pattern'} without any: {str(path)!r}. Name "
            "their folder, or a pattern in quotes: 'photos/*.png'."
        )
    return sorted(files)


def _is_named_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def read(files: Sequence[Path], name: str) -> Images:
    """Images of one size and mode.

    Args:
        files: their paths; those in several folders get the folders as labels.
        name: what to call them.

    Raises:
        InputError: naming all files that can't be read, or differ in size or mode.
    """
    with needed_for("reading images"):
        from PIL import Image

    arrays: list[Array] = []
    found: dict[Path, tuple[int, int, str]] = {}
    faults: dict[Path, str] = {}
    for file in files:
        try:
            with Image.open(file) as image:
                found[file] = (image.height, image.width, image.mode)
                if image.mode in MODES:
                    arrays.append(np.asarray(image))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            found.pop(file, None)
            faults[file] = f"unreadable, {_reason(error)}"
    most = _most(found.values())
    for file, kind in found.items():
        if kind != most or kind[2] not in MODES:
            faults[file] = _kind(kind)
    if faults:
        raise _unlike(name, faults, most)
    folders = sorted({file.parent for file in files})
    labels = np.array([folders.index(file.parent) for file in files]) if folders[1:] else None
    array = np.stack(arrays)
    note = f"{len(files):,} files"
    if labels is not None:
        note += f", labelled by their folders {', '.join(folder.name for folder in folders)}"
    colours = array.ndim == 4
    ids = tuple(f"{file.parent.name}/{file.name}" if folders[1:] else file.name for file in files)
    called = tuple(folder.name for folder in folders) if folders[1:] else ()
    if len(set(called)) < len(called):  # folders of one name in different places
        called = tuple(map(str, folders))
    return Images(name, np.moveaxis(array, -1, 1) if colours else array, ids, labels, note, called)


def _reason(error: Exception) -> str:
    return str(error).partition(" '")[0].strip().rstrip(".") or type(error).__name__


def _most(kinds: Iterable[tuple[int, int, str]]) -> tuple[int, int, str] | None:
    """The size and mode that most files have, among those that can be taken."""
    counts = Counter(kind for kind in kinds if kind[2] in MODES)
    return counts.most_common(1)[0][0] if counts else None


def _kind(kind: tuple[int, int, str]) -> str:
    height, width, mode = kind
    return f"{height} × {width} {mode}"


def _unlike(name: str, faults: dict[Path, str], most: tuple[int, int, str] | None) -> InputError:
    listed = [f"{file.name} ({fault})" for file, fault in sorted(faults.items())]
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    height, width, mode = most or (64, 64, "RGB")
    like = "" if most is None else f", as most are {_kind(most)}"
    return InputError(
        f"expected images of one size in {name!r}, grey (L) or in colour (RGB){like}; got "
        f"{', '.join(listed[:NAMED])}{more}. Convert them with pillow, "
        f"image.convert({mode!r}).resize(({width}, {height})), or name only the others: "
        "'photos/a*.png'."
    )
