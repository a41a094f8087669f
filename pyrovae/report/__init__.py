"""One self-contained page that says what was found, for a person to read.

``render`` makes the page from a diagnosis: the advice first, then what to be careful about, then
every number. The words are in ``answers.py``, ``findings.py`` and ``glossary.py``, the tables in
``tables.py``. Start with ``html.py``.
"""

from pyrovae.report.glossary import measure_name
from pyrovae.report.html import render, write
from pyrovae.report.numbers import number

__all__ = [
    "measure_name",
    "number",
    "render",
    "write",
]
