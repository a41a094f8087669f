"""The report: one self-contained page with everything that a diagnosis measured.

``render`` makes the page: the advice first, then what to be careful about, then every number. The
sentences are in ``answers.py``, ``findings.py``, ``guide_words.py`` and ``glossary.py``, the tables
in ``tables.py``. Start with ``html.py``.
"""

from pyrovae.report.findings import concerns
from pyrovae.report.html import render, write
from pyrovae.report.numbers import show

__all__ = [
    "concerns",
    "render",
    "show",
    "write",
]
