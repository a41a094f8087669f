"""The command line: from a file to a report in one call.

``pyrovae analyze`` loads, splits, trains, diagnoses and writes; the other subcommands, in
``on_runs.py``, go on with what it has written. An error is one line and exit code 2. Whatever can
be checked before the work begins is checked then, by ``run_checks.py`` among others. Start with
``cli.py``; ``arguments.py`` has the options, ``analysis.py`` the function behind ``analyze``.
"""

from pyrovae.command.cli import main

__all__ = [
    "main",
]
