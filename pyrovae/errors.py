"""The one error for input that can't be used."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was handed in can't be used as it is.

    The message is one sentence for each part: what was expected, what came instead, and what to do
    about it. Whoever calls the library may catch it, or any ``ValueError``, and show the message.
    An exception of another kind is a fault of the library or of the code that was handed in.
    """
