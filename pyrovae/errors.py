"""The one error for input that can't be used."""

from __future__ import annotations


class InputError(ValueError):
    """An input that can't be used as it is.

    The message says what was expected, what came instead, and what to do about it. A caller can
    catch it, or any ``ValueError``, and show the message. Any other exception is a bug, in the
    library or in the code that was passed to it.
    """
