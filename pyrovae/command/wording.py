"""What the library says, in the words of the command line: options, not arguments in Python.

Errors and concerns name what helps where most people read them, in Python. ``for_command`` names
what helps here: an option, a change to the file or the pair, or, where the command has neither, the
function in Python. A remedy of the library that names an argument needs a line below, unless the
general ones put it right; a test looks for it.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROWWISE = "Write a guide that computes them from the row: the command measures held-out rows, too."
TRAINED = "train a pair in Python {}, and measure it with --pair, --no-fit and --params"
FIRST = r"\1"  # what the pattern has in brackets

SENTENCES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        # draws and weights
        (r"^(log p\(x\)(?: under [^:]+)?: .*\b[Tt]ake more draws)(?= *[.,])", r"\1 with --draws"),
        (r"^(Guide beside NUTS: .*\b[Tt]ake more draws)(?= *[.,])",
         r"\1 with pyrovae.beside_nuts, in Python"),
        (r"^(Gaps: .*\b[Tt]ake more draws)(?= *[.,])",
         r"\1 with pyrovae.inference_gaps, in Python"),
        (r"\b(Take more warm-up and draws)\.", r"\1 with pyrovae.beside_nuts, in Python."),
        (r"\b([Tt]ake more temperatures|[Tt]ake more chains|more temperatures or chains)(?= *[.,])",
         r"\1 with pyrovae.Annealing, in Python"),
        (r"(?<!own with )\ba wider guide\b", "a pair of your own with a wider guide (--pair)"),
        (r"\bWiden the guide or check the likelihood\.",
         "Check the likelihood (--likelihood), or give a pair of your own with a wider guide "
         "(--pair)."),
        (r"\bmethod='prior'\.", 'the method "prior" of pyrovae.log_evidence, in Python.'),
        (r"(?:log_evidence(?:'s| with) )?\bmethod='(\w+)'",
         r'the method "\1" of pyrovae.log_evidence, in Python'),
        (r"Annealing\(start='prior'\)", "pyrovae.Annealing in Python, with the start 'prior'"),
        (r"Pass fewer rows, or a smaller effort= \(codes, evidence_rows, evidence_draws\)\.",
         "Give a file of fewer rows, or smaller --draws."),
        (r"Take more: Effort\(two_sample=…\) says how many\.", "Give a file of more rows."),
        (r"Raise it: max_cost= of log_evidence, evidence_cost= of an Effort, for raw q_agg its "
         r"q_agg_rows=\.",
         "Raise it in Python: by evidence_cost of a pyrovae.Effort, for raw q_agg by q_agg_rows."),
        # what the command has no option for
        (r"Compare the aggregated posterior with a prior of your own by passing prior=\.",
         "Compare it with a prior of your own in Python: pyrovae.diagnose takes one."),
        (r"Give the density of several as prior= to log_evidence, with site= as it is here\.",
         "Give the density of several to pyrovae.log_evidence, in Python."),
        (r"Give the density as prior= to log_evidence, with the model as it is\.",
         "Give the density to pyrovae.log_evidence in Python, with the model as it is."),
        (r"Give the model with model=, or leave", "Leave"),
        (r"Where there are parameters for each row, as in AutoNormal, just these rows can go to "
         r"pyrovae\.aggregate, with batch_size= their number, and to pyrovae\.log_evidence\.",
         "Where there are parameters for each row, as in AutoNormal, just these rows can go to "
         "pyrovae.aggregate and pyrovae.log_evidence, in Python."),
        (r"or use pyrovae\.log_evidence, which does without\.",
         "or use pyrovae.log_evidence in Python, which does without."),
        (r'Write pyro\.plate\("data", len\(x\)\), or, if the plate has a fixed size, give as many '
         r"rows as that: to encode and aggregate all of them at once, with batch_size= their "
         r"number\.",
         'Write pyro.plate("data", len(x)).'),
        (r"Give all rows that it was trained on at once: (?:to encode and aggregate with )?"
         r"batch_size= their number\.", ROWWISE),
        (r"Train with batch_size= the number of rows and without validation=, or write a guide "
         r"that computes them from the row\.", ROWWISE),
        (r", give batch_size=\d+ or, to a DataLoader, drop_last=True, or use", " or use"),
        (r"\bgive batch_size=\S+ or, to a DataLoader, drop_last=True, ", ""),
        (r"Try a smaller learning rate, clip_norm=, or a scale that is bounded away from 0\.",
         "Take a smaller --learning-rate, look for outliers in the data, or, in your own pair, "
         "bound scales away from 0."),
        (r"Put the file back as it was, or name it with data=\.",
         "Put the file back as it was, or name it with --data."),
        (r"Name it with pair=\.", "Name it with --pair."),
        (r"Draw the rows, without mean=\.", "Draw the rows, without --mean."),
        (r"expected no pair= for", "expected no --pair for"),
        (r"or sum it out with objective=(pyro\.infer\.TraceEnum_ELBO)\(\)\.",
         f"or {TRAINED.format('by ' + FIRST)}."),
        (r"Pass objective=(pyro\.infer\.Trace_ELBO)\(\) or TraceEnum_ELBO\(\)\.",
         f"T{TRAINED[1:].format('by ' + FIRST + ' or TraceEnum_ELBO')}."),
        (r"Draw them from grey values in \[0, 1\]: anew for each minibatch by "
         r"fit\(\.\.\., transform=pyrovae\.binarise\), and once for the measures\.",
         "Give a file of zeros and ones, drawn from grey values by pyrovae.binarise in Python."),
        (r", to_csv\(\.\.\., index=False\),", ","),
        (r"Go on from it with resume=True", "Go on from it with --resume"),
        (r"channels='first' or 'last'\.", "--channels first or --channels last."),
        (r"expected channels '(\w+)' or '(\w+)'; got '([^']*)'\.",
         r"expected --channels \1 or \2; got '\3'."),
        (r"(?<![\w'\"/\\.-])layer='([^']*)'", r"--layer \1"),
        (r"(?<![\w'\"/\\.-])(channels|layer)=(?![\w('])", r"--\1"),
        # arguments that are options
        (r"(?<![\w'\"/\\.-])(index|header)=True", r"--\1"),
        (r"(?<![\w'\"/\\.-])index=False", "--no-index"),
        (r"(?<![\w'\"/\\.-])header=False", "--no-header"),
        (r"(?<![\w'\"/\\.-])(drop|id|label|index|header|delimiter)=(?![\w(])", r"--\1"),
        (r"(?<![\w'\"/\\.-])site=\(([^()]*)\)", lambda match: f"--site {_listed(match[1])}"),
        (r"(?<![\w'\"/\\.-])site='([^']*)'", r"--site \1"),
        (r"(?<![\w'\"/\\.-])(seed|epochs)=(?=\d)", r"--\1 "),
        (r"(?<![\w'\"/\\.-])(site|observed)=(?![\w(])", r"--\1"),
        (r"(?<![\w'\"/\\.-])data_plate=(?![\w(])", "--data-plate"),
    )
)  # fmt: skip


def for_command(text: str) -> str:
    """A sentence of the library with remedies that work on the command line.

    >>> for_command("expected one plate; got 2. Name the one over the data with data_plate=.")
    'expected one plate; got 2. Name the one over the data with --data-plate.'
    >>> for_command("Name all of them as one: site=('z', 'y').")
    'Name all of them as one: --site z,y.'
    """
    for pattern, words in SENTENCES:
        text = pattern.sub(words, text)
    return text


def _listed(names: str) -> str:
    return ",".join(name.strip().strip("'\"") for name in names.split(",") if name.strip())


@contextmanager
def warnings_in_words() -> Iterator[None]:
    """Show the library's own warnings as one line each, in the words of the command line."""
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, *rest: object
        ) -> None:
            if package in Path(filename).parents:
                text = " ".join(for_command(str(message)).split())
                sys.stderr.write(f"pyrovae: careful: {text}\n")
            else:
                others(message, category, filename, *rest)  # type: ignore[arg-type]

        warnings.showwarning = show  # type: ignore[assignment]
        yield
