"""The command line: from a file to a report in one call.

``pyrovae analyze`` loads, splits, trains, diagnoses and writes, and an error is one line and exit
code 2. What can be found wrong is found before the work, in ``run_checks.py``. Start with
``cli.py``; ``analysis.py`` has the call that it makes.
"""

from pyrovae.command.cli import main

__all__ = [
    "main",
]
