"""The page of the explorer: one HTML file that needs no other and no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

from pyrovae.explorer.contents import contents
from pyrovae.runs import Run
from pyrovae.saving import replace
from pyrovae.torch_modes import plain

NAME = "explorer.html"


@plain()
def explore(run: Run, path: str | os.PathLike[str] | None = None, *, rows: bool = True) -> Path:
    """Write a run as one page in which a browser shows codes and decodes any point.

    The page asks for nothing from any network, and says so to the browser. It holds the means and
    scales of all encodings, the three densities, and the decoder's weights: whoever has it can
    decode every row's code.

    Args:
        run: what ``load_run`` returns; of a pair of your own with ``pair=``.
        path: the file to write; by default ``explorer.html`` in the run's folder.
        rows: whether the page may hold the rows of the data themselves, where they take little
            room.

    Returns:
        the path of the file.

    Raises:
        InputError: if the codes have one unit or the guide is not one of independent normals, or
            scikit-learn is not installed.

    >>> pv.explore(pv.load_run("pyrovae-report"))  # doctest: +SKIP
    PosixPath('pyrovae-report/explorer.html')
    """
    target = run.folder / NAME if path is None else Path(path)
    page = document(contents(run, rows=rows))
    return replace(target, lambda draft: draft.write_bytes(page.encode("utf-8", "replace")))


def document(held: dict[str, Any]) -> str:
    """The page with what it holds.

    Args:
        held: as `contents` returns it.
    """
    assets = resources.files("pyrovae.explorer") / "assets"
    script = (assets / "explorer.js").read_text(encoding="utf-8")
    style = (assets / "explorer.css").read_text(encoding="utf-8")
    body = (assets / "explorer.html").read_text(encoding="utf-8")
    # In a script of data, only "<" could end it.
    facts = json.dumps(_finite(held), separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": html.escape(policy, quote=True).replace("&#x27;", "'"),
        "title": html.escape(str(held["name"])),
        "style": style,
        "facts": facts,
        "script": script,
    }
    head, *pieces = body.split("{{")
    page = [head]
    for piece in pieces:
        name, _, after = piece.partition("}}")
        page += [parts[name.strip()], after]
    return "".join(page)


def _digest(text: str) -> str:
    found = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{found}'"


def _finite(value: Any) -> Any:
    """The same with ``None`` for numbers that JSON doesn't have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
