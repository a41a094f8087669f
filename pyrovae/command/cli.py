"""The command ``pyrovae``: it reads arguments, calls the library once, prints a table and paths."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pyrovae.command.terminal import encodable, spelling_out
from pyrovae.command.wording import for_command, warnings_in_words
from pyrovae.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from pyrovae.command.analysis import Analysis
    from pyrovae.diagnostics import Diagnosis

NUTS_ROWS = 4  # data points that --check-guide measures
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

ABOUT = """\
Measure what the latent space of a variational autoencoder holds.

A VAE's encoder turns every data point into a Gaussian. pyrovae treats the mixture of all of them,
the aggregated posterior, as a distribution: it evaluates it exactly, compares it with the prior,
and says which density to draw new data from.

  pyrovae analyze                  try it on 1,797 images of handwritten digits
  pyrovae analyze my.csv           analyze your own data
  pyrovae analyze --help           see what is measured, and all options
"""

ANALYZE = """\
Train a VAE on DATA, measure its latent space and write a report. The report answers:

  * Is the latent distribution a mixture of N Gaussians? How far is it from the prior?
  * How many latent units does the model use, and what does each of them hold?
  * How likely are data that it has not seen: log p(x), with standard errors?
  * Where should z be drawn from to get good samples: the prior, the mixture, or in between?

A fifth of the data is held out for the measures, a tenth for early stopping.
"""

EXAMPLES = """\
examples:
  pyrovae analyze                                    scikit-learn's digits, about a minute
  pyrovae analyze images.npy --latent 20             an array whose first axis counts the images
  pyrovae analyze data.npz:x_train                   one array of an archive
  pyrovae analyze table.csv --likelihood normal      one row per data point, all columns numbers
  pyrovae analyze images.npy --out run1 --resume     go on with an interrupted run
  pyrovae analyze images.npy --prior vamp            a prior that learns pseudo-inputs
  pyrovae analyze table.csv --check-guide            compare the guide with the exact posterior
  pyrovae analyze data.npy --pair mine:make          your own Pyro model and guide

files in --out:
  report.html       start here: tables and plots in one file
  measures.csv      every number with its standard error and sample size
  diagnosis.nc      draws for ArviZ: arviz.from_netcdf("diagnosis.nc")
  parameters.pt     the trained network

exit codes: 0 done; 1 training failed; 2 the input can't be used; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: the arguments, ``sys.argv[1:]`` if not given.
    """
    with spelling_out(), warnings_in_words():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options: dict[str, Any] = {}
    try:
        options |= vars(_parser().parse_args(words))
        command = options.pop("command", None)
        if options.pop("version", False):
            sys.stdout.write(f"{_versions()}\n")
        elif command is None:
            sys.stdout.write(_parser().format_help())
        else:
            _analyze(options)
    except KeyboardInterrupt:
        return _fail(_interruption(words, options), INTERRUPTED)
    except ArithmeticError as error:
        return _fail(str(error), FAILED)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        place = f" at {str(error.filename)!r}" if error.filename else ""
        return _fail(f"expected to read and write files; got: {reason}{place}.", BAD_INPUT)
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(
            f"expected more memory; got: {str(error) or 'out of memory'}. Give fewer rows, or "
            "smaller --latent and --hidden.",
            BAD_INPUT,
        )
    return OK


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no memory left, of the processor or of a GPU."""
    words = ("can't allocate memory", "out of memory", "buffer size")  # those of torch
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pyrovae: {' '.join(for_command(message).split())}\n")
    return code


def _interruption(words: Sequence[str], options: dict[str, Any]) -> str:
    """What an interruption leaves behind, and how to go on."""
    from pyrovae.command.run_checks import CHECKPOINT

    if not (options.get("out", Path("pyrovae-report")) / CHECKPOINT).exists():
        return "interrupted before the first epoch was over; nothing was saved."
    arguments = " ".join(map(_quoted, [*words, *([] if options.get("resume") else ["--resume"])]))
    return f"interrupted; the last epoch was saved. Go on with: pyrovae {arguments}"


def _quoted(word: str) -> str:
    """A word for the shell; bytes that are no text as bash and zsh take them, $'\\xff'."""
    if not any("\udc80" <= letter <= "\udcff" for letter in word):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{encodable(escaped, 'utf-8')}'"


# -- the one command -----------------------------------------------------------------------------


def _analyze(options: dict[str, Any]) -> None:
    """Load, analyse and show."""
    from pyrovae.data import load

    data = load(options.pop("data"), likelihood=options.get("likelihood"))
    options |= _pair_option(options)
    from pyrovae.command.analysis import AnalysisOptions, analyze
    from pyrovae.diagnostics import Effort

    effort = {"evidence_draws": options.pop("draws")} if "draws" in options else {}
    if options.pop("check_guide", False):
        effort |= {"nuts_rows": NUTS_ROWS}
    options["effort"] = Effort(**effort)
    _show(analyze(data, AnalysisOptions(**options)))


def _pair_option(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the user's own pair gathered into one, and taken out of the others.

    Raises:
        InputError: if an option makes no sense with ``--pair``, or makes sense only with it.
    """
    pair_names = ("no_fit", "params", "site", "observed", "data_plate")
    pair_options = {name: options.pop(name) for name in pair_names if name in options}
    vae_names = ("likelihood", "latent", "prior", "components", "hidden")
    if "pair" not in options:
        if pair_options:
            raise InputError(
                f"expected --pair with --{next(iter(pair_options)).replace('_', '-')}; got none. "
                "Name the pair: --pair package.module:factory"
            )
        return {}
    if vae_options := [name for name in vae_names if name in options]:
        raise InputError(
            f"expected no --{vae_options[0]} with --pair, which has a model of its own; got one. "
            "Leave it out."
        )
    from pyrovae.command.foreign_pair import PairOptions

    fit = not pair_options.pop("no_fit", False)
    if "site" in pair_options:
        sites = tuple(pair_options["site"].split(","))
        pair_options["site"] = sites if len(sites) > 1 else sites[0]
    return {"pair": PairOptions(options["pair"], fit=fit, **pair_options)}


# -- what is printed at the end ------------------------------------------------------------------


def _show(analysis: Analysis) -> None:
    from rich.console import Console

    console = Console(highlight=False)

    def spelled(text: str) -> str:
        return encodable(text, console.encoding)

    console.print(_table(analysis.diagnosis, spelled))
    console.print(spelled(analysis.diagnosis.advice), markup=False)
    if (calibration := analysis.diagnosis.guide_check.calibration) is not None:
        console.print(spelled(f"The guide: {calibration.statement}"), markup=False)
    for concern in analysis.diagnosis.concerns:
        sentence = spelled(f"Careful: {for_command(concern)}")
        console.print(sentence, markup=False, style="yellow")
    console.print()
    if analysis.netcdf is not None:
        console.print(f"draws for ArviZ: {analysis.netcdf}", soft_wrap=True, markup=False)
    console.print(f"report: {analysis.report}", soft_wrap=True, markup=False)


def _table(diagnosis: Diagnosis, spelled: Callable[[str], str]) -> Table:
    """A table with a row for each measure and columns for training and held-out data.

    Args:
        diagnosis: has the measures.
        spelled: spells out letters that the terminal lacks, before columns are made as wide.
    """
    from rich.table import Table

    from pyrovae.diagnostics import LABELS
    from pyrovae.report import show

    cells: dict[str, dict[str, str]] = {}
    for data, measure, estimate in diagnosis.estimates():
        if data != "simulated":  # a sentence below the table has these
            is_difference = measure.endswith("_minus_prior")
            cells.setdefault(LABELS[measure], {})[data] = show(estimate, signed=is_difference)
    table = Table(
        title="What the latent space holds (nats, unless it says bits)", title_justify="left"
    )
    table.add_column("measure")
    for name in ("training", "held-out"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, values in cells.items():
        row = (label, values.get("training", ""), values.get("held-out", ""))
        table.add_row(*map(spelled, row))
    return table


# -- arguments -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        sentence = message if "expected" in message else f"expected known arguments; got {message}"
        self.exit(_fail(f"{sentence.rstrip('.')}. See {self.prog} --help", BAD_INPUT))


def _parser() -> argparse.ArgumentParser:
    settings: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "argument_default": argparse.SUPPRESS,
    }
    parser = _Parser(prog="pyrovae", description=ABOUT, **settings)
    parser.add_argument("--version", action="store_true", help="print versions and exit")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="", prog="pyrovae")
    analyze = commands.add_parser(
        "analyze",
        description=ANALYZE,
        epilog=EXAMPLES,
        help="train a VAE on data, measure its latent space, write a report",
        usage="pyrovae analyze [DATA] [options]",
        **settings,
    )
    analyze.add_argument(
        "data",
        nargs="?",
        default="digits",
        metavar="DATA",
        help="digits (the default), or a .npy, .npz, .csv or .parquet file of at least 20 rows",
    )
    _add_model_options(analyze.add_argument_group("the model"))
    _add_pair_options(analyze.add_argument_group("a pair of your own"))
    _add_run_options(analyze.add_argument_group("the run"))
    return parser


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--likelihood",
        metavar="NAME",
        help="bernoulli (values in [0, 1]; those between are drawn as 0 or 1), normal (any "
        "numbers), categorical (0, 1, 2, …), logistic (grey levels 0–255) or negative_binomial "
        "(counts, given their total in a row); by default bernoulli if all values are 0 or 1, else "
        "normal",
    )
    group.add_argument(
        "--latent",
        type=_whole("--latent", 1),
        metavar="D",
        help="number of latent units (default 10)",
    )
    group.add_argument(
        "--prior",
        metavar="NAME",
        help="p(z), trained with the rest: standard (normal, the default), mixture (of Gaussians), "
        "vamp (a mixture of the encodings of learned pseudo-inputs), flow, or exemplar (a mixture "
        "of the encodings of the training data)",
    )
    group.add_argument(
        "--components",
        type=_whole("--components", 1),
        metavar="K",
        help="number of Gaussians of a mixture (default 20), or of pseudo-inputs of vamp "
        "(default 100, at most a tenth of the training data)",
    )
    group.add_argument(
        "--hidden",
        type=_sizes,
        metavar="SIZES",
        help="sizes of the hidden layers, from the data inwards (default 256,256)",
    )


def _add_pair_options(group: Any) -> None:
    group.add_argument(
        "--pair",
        metavar="MODULE:FACTORY",
        help="a Pyro model and guide: a function, in an installed module or one in this folder, "
        "that takes the training data and returns (model, guide) or an object with both",
    )
    group.add_argument(
        "--no-fit", action="store_true", help="measure the pair as it is, without training"
    )
    group.add_argument(
        "--params",
        type=_path,
        metavar="FILE",
        help="a file with its parameters: a saved parameter store, a state_dict, or parameters.pt",
    )
    group.add_argument(
        "--site",
        metavar="NAME",
        help="its latent site, or several separated by commas (default z)",
    )
    group.add_argument("--observed", metavar="NAME", help="its observed site, if it has several")
    group.add_argument("--data-plate", metavar="NAME", help="its plate over the data, if unclear")


def _add_run_options(group: Any) -> None:
    group.add_argument(
        "--epochs",
        type=_whole("--epochs", 1),
        metavar="N",
        help="passes over the data at most; training stops early (default 300)",
    )
    group.add_argument(
        "--seed",
        type=_whole("--seed", 0),
        metavar="N",
        help="fixes all random choices; the same seed gives the same numbers (default 0)",
    )
    group.add_argument(
        "--out",
        type=_path,
        metavar="DIR",
        help="folder for the report, created if missing (default pyrovae-report)",
    )
    group.add_argument(
        "--check-guide",
        action="store_true",
        help="also measure, on a few held-out data points, how the guide compares with the exact "
        "posterior, sampled by NUTS; takes minutes",
    )
    group.add_argument(
        "--draws",
        type=_whole("--draws", 2),
        metavar="S",
        help="draws for each estimate of log p(x), under each density (default 500)",
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default cpu)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in --out, if there is one",
    )


def _path(text: str) -> Path:
    from pyrovae.data import expanded

    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole(option: str, least: int) -> Callable[[str], int]:
    """A function that reads whole numbers from ``least`` to 2³² - 1."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 1 << 32:
            raise argparse.ArgumentTypeError(
                f"expected a whole number ≥ {least}; got {text!r}. Try {option} {max(least, 10)}"
            )
        return value

    return read


def _sizes(text: str) -> tuple[int, ...]:
    words = text.split(",")
    # Of a number of more than ten digits none of the machine's memories would hold the layer.
    if not all(w.strip().isdecimal() and len(w) <= 10 and int(w) > 0 for w in words):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers ≥ 1 separated by commas; got {text!r}. Try --hidden 256,256"
        )
    return tuple(int(word) for word in words)


def _versions() -> str:
    from pyrovae import __version__

    parts = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "pyro-ppl", "arviz"):
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    return f"pyrovae {__version__} ({', '.join(parts)})"
