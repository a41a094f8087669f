"""Results in files that are read without the code of the pair they are about.

A file holds tensors, numbers and names; nothing in it is ever unpickled as an object. What
``save`` has written, ``load`` can read, and every file is written whole or not at all. Start with
``results.py``.
"""

from pyrovae.saving.atomic import (
    check_folder,
    check_room,
    draft,
    from_archive,
    replace,
    unwritable,
    write_archive,
)
from pyrovae.saving.results import load, save

__all__ = [
    "check_folder",
    "check_room",
    "draft",
    "from_archive",
    "load",
    "replace",
    "save",
    "unwritable",
    "write_archive",
]
