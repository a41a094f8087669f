"""The report: one self-contained page with everything that a diagnosis measured.

``render`` makes the page: whether the model fits and where to sample from first, then what to be
careful about, then every number. The sentences are in ``sampling.py``, ``answers.py``,
``findings.py``, ``guide_words.py`` and ``glossary.py``, the tables in ``tables.py``, the words for
those who can't see a picture in ``alternatives.py``. Start with ``html.py``.
"""

from pyrovae.report.findings import SHARED_NOISE, concerns, fit_in_words, notes
from pyrovae.report.html import MOST_CONCERNS, render, write
from pyrovae.report.numbers import show, show_measure
from pyrovae.report.sampling import guidance

__all__ = [
    "MOST_CONCERNS",
    "SHARED_NOISE",
    "concerns",
    "fit_in_words",
    "guidance",
    "notes",
    "render",
    "show",
    "show_measure",
    "write",
]
