"""Text for a terminal that can't show every letter: ≥ becomes >= where there is no ≥."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any, TextIO, cast

SPELLED = {
    "−": "-", "–": "-", "±": "+/-", "≥": ">=", "≤": "<=", "≠": "!=", "…": "...", "‖": "||",
    "×": "x", "·": "*", "→": "->", "←": "<-", "∞": "inf", "Σ": "sum ", "∫": "integral ",
    "∇": "grad ", "√": "sqrt ", "“": '"', "”": '"', "‘": "'", "’": "'", "²": "^2", "ₙ": "_n",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "-hat", "μ": "mu", "σ": "sigma", "χ": "chi", "β": "beta",
}  # fmt: skip


def encodable(text: str, encoding: str) -> str:
    r"""The text with what an encoding lacks spelled out, or written by its number.

    >>> encodable("k̂ ≥ 0.7 ± 0.1", "ascii")
    'k-hat >= 0.7 +/- 0.1'
    >>> encodable("k̂ ≥ 0.7 ± 0.1", "cp1252")
    'k-hat >= 0.7 ± 0.1'
    >>> encodable("猫.csv", "ascii"), encodable("猫.csv", "utf-8")
    ('\\u732b.csv', '猫.csv')
    """
    if _has(encoding, text):
        return text
    return "".join(c if _has(encoding, c) else _spelled(c) for c in text)


def _has(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _spelled(letter: str) -> str:
    if letter in SPELLED:
        return SPELLED[letter]
    if "\udc80" <= letter <= "\udcff":  # a byte of a file name that is no text
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("ascii", "backslashreplace").decode("ascii")


def quoted(word: str) -> str:
    """A word for the shell; bytes that are no text as bash and zsh take them, $'\\xff'."""
    if not any("\udc80" <= letter <= "\udcff" for letter in word):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{encodable(escaped, 'utf-8')}'"


class Terminal:
    """A text stream that takes every letter; in all else the stream that it is made of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, spelled out where the stream's encoding lacks a letter."""
        self._stream.write(encodable(text, self._stream.encoding or "utf-8"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def spelling_out() -> Iterator[None]:
    """Let standard output and standard error take every letter."""
    output, errors = (cast(IO[str], Terminal(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(output), redirect_stderr(errors):
        yield
