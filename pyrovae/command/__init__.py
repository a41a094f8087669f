"""The command line: from a file to a report in one call.

``pyrovae analyze`` loads, splits, trains, diagnoses and writes; an error is one line and exit
code 2. Whatever can be checked before the work begins is checked then, by ``run_checks.py`` among
others. Start with ``cli.py``; ``analysis.py`` has the one function that it calls.
"""

from pyrovae.command.cli import main

__all__ = [
    "main",
]
