"""The one error for input that can't be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """An input that can't be used as it is.

    The message says what was expected, what came instead, and what to do about it. A caller can
    catch it, or any ``ValueError``, and show the message. Any other exception is a bug, in the
    library or in the code that was passed to it.

    >>> import pyrovae as pv
    >>> try:
    ...     pv.Effort(codes=-1)
    ... except pv.InputError as error:
    ...     print(error)
    expected codes of at least 20, a whole number; got -1.
    """


def nearest(word: str, names: Iterable[str], also: Mapping[str, str] | None = None) -> str:
    """The question whether a name was meant that is near to a word; empty if none is.

    Args:
        word: what was given.
        names: those that there are.
        also: other words for some of them, such as ``{"gaussian": "normal"}``.

    >>> nearest("analise", ["analyze", "sample"]), nearest("gaussian", [], {"gaussian": "normal"})
    (" Did you mean 'analyze'?", " Did you mean 'normal'?")
    >>> nearest("xyz", ["analyze", "sample"])
    ''
    """
    words = {name: name for name in names} | dict(also or {})
    close = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.5)
    return f" Did you mean {words[close[0]]!r}?" if close else ""
