"""The command ``pyrovae``: arguments in, one call of the library, a table and a few paths out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pyrovae.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from pyrovae.command.analysis import Analysis

GAP_ROWS, NUTS_ROWS = 16, 4  # data points that --check-guide looks at
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

ABOUT = """\
What a variational autoencoder's latent space holds, measured.

A VAE's encoder turns every data point into a Gaussian. pyrovae takes the mixture of all of them,
the aggregated posterior, as a distribution of its own: it evaluates it exactly, compares it with
the prior, and says from which of them to draw new data.

  pyrovae analyze                  try it on 1,797 images of handwritten digits
  pyrovae analyze my.csv           your own data
  pyrovae analyze --help           what is measured, and all options
"""

ANALYZE = """\
Train a VAE on DATA, measure its latent space and write a report. It answers:

  * Is the latent distribution a mixture of N Gaussians? How far is it from the prior?
  * How many latent units does the model use, and what does each of them hold?
  * How likely are data that it has not seen: log p(x), with standard errors?
  * Where to draw z from to get good samples: the prior, the mixture or something between?

A fifth of the data is kept unseen for the measures, a tenth for early stopping.
"""

EXAMPLES = """\
examples:
  pyrovae analyze                                    scikit-learn's digits, about a minute
  pyrovae analyze images.npy --latent 20             an array whose first axis counts the images
  pyrovae analyze data.npz:x_train                   one array of an archive
  pyrovae analyze table.csv --likelihood normal      one row per data point, all columns numbers
  pyrovae analyze images.npy --out run1 --resume     go on with a run that was interrupted
  pyrovae analyze images.npy --prior vamp            a prior that learns pseudo-inputs
  pyrovae analyze table.csv --check-guide            the guide beside the exact posterior, too
  pyrovae analyze data.npy --pair mine:make          your own Pyro model and guide

what is written to --out:
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
    words = list(sys.argv[1:] if argv is None else argv)
    given = vars(_parser().parse_args(words))
    command = given.pop("command", None)
    try:
        if given.pop("version", False):
            sys.stdout.write(f"{_versions()}\n")
        elif command is None:
            sys.stdout.write(_parser().format_help())
        else:
            _analyze(given)
    except KeyboardInterrupt:
        return _fail(_interrupted(words, given), INTERRUPTED)
    except ArithmeticError as error:
        return _fail(str(error), FAILED)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        place = f" at {str(error.filename)!r}" if error.filename else ""
        return _fail(f"expected to read and write files; got: {reason}{place}.", BAD_INPUT)
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    return OK


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pyrovae: {' '.join(message.split())}\n")
    return code


def _interrupted(words: Sequence[str], given: dict[str, Any]) -> str:
    from pyrovae.command.run_checks import CHECKPOINT

    if not (given.get("out", Path("pyrovae-report")) / CHECKPOINT).exists():
        return "interrupted before the first epoch was over; nothing is kept."
    again = shlex.join([*words, *([] if given.get("resume") else ["--resume"])])
    return f"interrupted; the last epoch is kept. Go on with: pyrovae {again}"


# -- the one command -----------------------------------------------------------------------------


def _analyze(given: dict[str, Any]) -> None:
    """Load, analyse and show."""
    from pyrovae.data import load

    data = load(given.pop("data"), likelihood=given.get("likelihood"))
    given |= _pair(given)
    from pyrovae.command.analysis import AnalysisOptions, analyze
    from pyrovae.diagnostics import Effort

    if given.pop("check_guide", False):
        given["effort"] = Effort(gap_rows=GAP_ROWS, nuts_rows=NUTS_ROWS)
    _show(analyze(data, AnalysisOptions(**given)))


def _pair(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a pair of one's own as one, if there is one.

    Raises:
        InputError: if options are given that have no meaning with it, or none without.
    """
    names = ("no_fit", "params", "site", "observed", "data_plate")
    chosen = {name: given.pop(name) for name in names if name in given}
    built = ("likelihood", "latent", "prior", "components", "hidden")
    idle = [name for name in built if name in given]
    if "pair" not in given and chosen:
        raise InputError(
            f"expected --pair with --{next(iter(chosen)).replace('_', '-')}; got none. Name the "
            "pair: --pair package.module:factory"
        )
    if "pair" not in given:
        return {}
    if idle:
        raise InputError(
            f"expected no --{idle[0]} with --pair, which has a model of its own; got one. Leave it "
            "out."
        )
    from pyrovae.command.foreign_pair import PairOptions

    fit = not chosen.pop("no_fit", False)
    if "site" in chosen:
        sites = tuple(chosen["site"].split(","))
        chosen["site"] = sites if len(sites) > 1 else sites[0]
    return {"pair": PairOptions(given["pair"], fit=fit, **chosen)}


# -- what a person reads at the end --------------------------------------------------------------


def _show(analysis: Analysis) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(analysis.diagnosis.summary()))
    console.print(analysis.diagnosis.advice, markup=False)
    if (calibration := analysis.diagnosis.guide.calibration) is not None:
        console.print(f"The guide: {calibration.statement}", markup=False)
    for concern in analysis.diagnosis.concerns:
        console.print(f"Careful: {concern}", markup=False, style="yellow")
    console.print()
    if analysis.netcdf is not None:
        console.print(f"draws for ArviZ: {analysis.netcdf}", soft_wrap=True, markup=False)
    console.print(f"report: {analysis.report}", soft_wrap=True, markup=False)


def _table(summary: Any) -> Table:
    """Measures by row, training and held-out data by column, in the order they first appear."""
    from rich.table import Table

    from pyrovae.report import measure_name, number

    sides = {"lower": "≥ ", "upper": "≤ "}
    cells: dict[str, dict[str, str]] = {}
    for row in summary.to_dict("records"):
        difference = " − " in row["measure"]
        value = number(row["value"], row["standard_error"], signed=difference)
        if row["data"] == "simulated":  # said in a sentence below
            continue
        text = row["unresolved"] or sides.get(row["bound"], "") + value
        cells.setdefault(row["measure"], {})[row["data"]] = text
    table = Table(
        title="What the latent space holds (nats, unless it says bits)", title_justify="left"
    )
    table.add_column("measure")
    for name in ("training", "held-out"):
        table.add_column(name, justify="right", no_wrap=True)
    for measure, values in cells.items():
        table.add_row(measure_name(measure), values.get("training", ""), values.get("held-out", ""))
    return table


# -- arguments -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        sentence = message if "expected" in message else f"expected known arguments; got {message}"
        self.exit(_fail(f"{sentence.rstrip('.')}. See {self.prog} --help", BAD_INPUT))


def _parser() -> argparse.ArgumentParser:
    shape: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "argument_default": argparse.SUPPRESS,
    }
    parser = _Parser(prog="pyrovae", description=ABOUT, **shape)
    parser.add_argument("--version", action="store_true", help="print versions and exit")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="", prog="pyrovae")
    analyze = commands.add_parser(
        "analyze",
        description=ANALYZE,
        epilog=EXAMPLES,
        help="train a VAE on data, measure its latent space, write a report",
        usage="pyrovae analyze [DATA] [options]",
        **shape,
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
        help="bernoulli (values in [0, 1]; grey ones are drawn as 0 or 1), normal (any numbers), "
        "categorical (0, 1, 2, …), logistic (grey levels 0–255) or negative_binomial (counts, "
        "given their total in a row); by default bernoulli if all values are 0 or 1, else normal",
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
        "vamp (of the encodings of learned pseudo-inputs), flow, or exemplar (of the encodings of "
        "the training data)",
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
        help="a Pyro model and guide: a function, in a module in this folder or installed, that "
        "takes the training data and returns (model, guide) or an object with both",
    )
    group.add_argument(
        "--no-fit", action="store_true", help="measure the pair as it is, without training"
    )
    group.add_argument(
        "--params",
        type=Path,
        metavar="FILE",
        help="its parameters: a saved parameter store, a state_dict, or parameters.pt",
    )
    group.add_argument(
        "--site",
        metavar="NAME",
        help="its latent site, or several with commas between (default z)",
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
        help="names all random choices; the same seed gives the same numbers (default 0)",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the report, made if need be (default pyrovae-report)",
    )
    group.add_argument(
        "--check-guide",
        action="store_true",
        help="also measure, on a few held-out data points, where the ELBO is lost and how the "
        "guide compares with the exact posterior by NUTS; takes minutes",
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default cpu)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in --out, if there is one",
    )


def _whole(option: str, least: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``least`` to 2³² - 1."""

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
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers ≥ 1 with commas between; got {text!r}. Try --hidden 256,256"
        )
    return tuple(int(word) for word in words)


def _versions() -> str:
    from pyrovae import __version__

    parts = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "pyro-ppl", "arviz"):
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    return f"pyrovae {__version__} ({', '.join(parts)})"
