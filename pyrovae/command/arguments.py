"""The command's arguments: what each subcommand takes, and how a word becomes a value."""

from __future__ import annotations

import argparse
import csv
import io
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pyrovae.errors import InputError, nearest

ABOUT = """\
Measure what the latent space of a variational autoencoder holds.

A VAE's encoder turns every data point into a Gaussian. pyrovae treats the mixture of all of them,
the aggregated posterior, as a distribution: it evaluates it exactly, compares it with the prior,
and says which density to draw new data from.

  pyrovae analyze                  try it on 1,797 images of handwritten digits
  pyrovae analyze my.csv           analyze your own data
  pyrovae sample pyrovae-report    draw new data from what was trained
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
  pyrovae analyze table.csv --drop name --label sex  numbers, texts, dates, with missing cells
  pyrovae analyze photos --network conv              a folder of PNG or JPEG files of one size
  pyrovae analyze cells.h5ad --layer counts          AnnData: one row per cell
  pyrovae analyze images.npy --out run1 --resume     go on with an interrupted run
  pyrovae analyze images.npy --prior vamp            a prior that learns pseudo-inputs
  pyrovae analyze table.csv --check-guide            compare the guide with the exact posterior
  pyrovae analyze data.npy --pair mine:make          your own Pyro model and guide
  pyrovae analyze --config run1/run.toml --seed 1    another run with the options of one

files in --out:
  report.html       start here: tables and plots in one file
  measures.csv      every number with its standard error and sample size
  codes.csv         mean and scale of the code of each row
  samples.npy       1,000 new rows, in the data's own units
  diagnosis.nc      draws for ArviZ: arviz.from_netcdf("diagnosis.nc")
  parameters.pt     the trained network
  run.toml          the options and versions; with the rest it is what the other commands go on with

exit codes: 0 done; 1 training failed; 2 the input can't be used; 130 interrupted
"""

SAMPLE = """\
Draw new rows in the data's own units: codes from a density, then a row from p(x | z) of each. The
report says which density to draw from. A table becomes .csv, with its columns' names, anything else
.npy, with the channels of images where the data had them.
"""

ENCODE = """\
Write mean and scale of each latent unit for each row of DATA. The columns of a table are found by
their names.
"""

SCORE = """\
Write for each row of DATA its log p(x), with standard error and k̂, and a p-value: how rare so low a
log p(x) is among rows like those held out in the run. If a row is like the data, its p-value is
below 0.05 in 5 of 100 cases.
"""

COMPARE = """\
Show the measures of two or more runs side by side. Where runs have measured the same held-out rows,
their differences in log p(x) to the first are paired by row.
"""

EXPLORE = """\
Write a run as one page, DIR/explorer.html, in which a browser shows its codes and decodes any
point. The page needs no network and no other file. It holds the codes of all rows, the decoder and,
where they take little room, the rows themselves: hand it on only to those who may see them.
"""

COMMANDS = ("analyze", "sample", "encode", "score", "compare", "report", "explore")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help in which no option and no word is broken at a hyphen, so that each can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


SETTINGS: dict[str, Any] = {
    "formatter_class": Formatter,
    "allow_abbrev": False,
    "argument_default": argparse.SUPPRESS,
}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are the library's."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments, in one line."""
        missing = message.partition("the following arguments are required: ")[2]
        if missing:
            sentence = (
                f"expected {missing.replace(', ', ' and ')} after {self.prog}; got too few words"
            )
        elif "expected" in message:
            sentence = message
        else:
            sentence = f"expected known arguments; got {message}"
        end = "" if sentence.endswith("?") else "."
        raise InputError(f"{sentence.rstrip('.')}{end} See {self.prog} --help")


def read(words: Sequence[str]) -> dict[str, Any]:
    """The options that the words give, by name; those of ``--config`` where they give no other.

    Raises:
        InputError: for a command or an option that there is not, or a value that it can't take.
    """
    parser, commands = build()
    command = next(iter(words), "")
    if command and not command.startswith("-") and command not in COMMANDS:
        hint = nearest(command, COMMANDS) or " See pyrovae --help"
        raise InputError(f"expected a command out of {', '.join(COMMANDS)}; got {command!r}.{hint}")
    options = _read(parser, commands, words)
    if config := options.pop("config", None):
        defaults = _read(parser, commands, [command, *_words_in(config, named="data" in options)])
        options = defaults | options
    return options


def _read(parser: Parser, commands: dict[str, Parser], words: Sequence[str]) -> dict[str, Any]:
    found, unknown = parser.parse_known_args(words)
    options = vars(found)
    if unknown:
        used = commands.get(options.get("command", ""), parser)
        hint = nearest(unknown[0].partition("=")[0], used._option_string_actions)
        if not unknown[0].startswith("-"):
            hint = ""
        used.error(
            f"expected known arguments; got unrecognized arguments: {' '.join(unknown)}.{hint}"
        )
    return options


def _words_in(path: Path, *, named: bool) -> list[str]:
    """The words of a command line that say what stands in a file of options.

    Args:
        path: the file.
        named: whether the command line names the data.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"expected a file of options in TOML as --config; got {str(path)!r}: "
            f"{reason.rstrip('.')}. Write lines such as latent = 20."
        ) from error
    options = content
    if isinstance(content.get("options"), dict):  # the run.toml of a run
        options = dict(content["options"])
        about = content.get("data")
        if isinstance(about, dict) and "source" in about:
            options["data"] = about["source"]
        elif isinstance(about, dict) and not named:
            raise InputError(
                f"expected data to analyze; got {str(path)!r}, whose run had them from no file. "
                "Name a file with the same rows: pyrovae analyze FILE --config ..."
            )
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name in ("config", "help"):
            raise InputError(
                f"expected options of an analysis in {str(path)!r}; got {name}. Leave it out."
            )
        if isinstance(value, dict):
            raise InputError(
                f"expected lines such as latent = 20 in {str(path)!r}; got a table [{name}]. "
                "Write the options at the top of the file, or all in a table [options]."
            )
        if name == "data":
            words.insert(0, str(value))
        elif value is True:
            words.append(option)
        elif value is False and name in ("index", "header"):
            words.append({"index": "--no-index", "header": "--no-header"}[name])
        elif value is not False:
            words.append(f"{option}={_joined(value) if isinstance(value, list) else value}")
    return words


def _joined(values: Sequence[Any]) -> str:
    """Values with commas between them, in quotes where they have some of their own."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def build() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command, and that of each subcommand by its name."""
    parser = Parser(prog="pyrovae", description=ABOUT, **SETTINGS)
    parser.add_argument("--version", action="store_true", help="print versions and exit")
    group: Any = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", prog="pyrovae"
    )
    commands = {
        "analyze": _analyze(group),
        "sample": _on_run(
            group, "sample", "DIR", SAMPLE, "draw new data from what a run has trained"
        ),
        "encode": _on_run(group, "encode", "DIR DATA", ENCODE, "write the codes of new rows"),
        "score": _on_run(
            group, "score", "DIR DATA", SCORE, "write log p(x) of new rows, and how novel they are"
        ),
        "compare": _on_run(group, "compare", "DIR DIR ...", COMPARE, "show runs side by side"),
        "report": _on_run(
            group, "report", "DIR", "Write the report of a run again.", "write a run's report again"
        ),
        "explore": _on_run(group, "explore", "DIR", EXPLORE, "write a page to explore a run in"),
    }
    _add_outputs(commands)
    return parser, commands


def _analyze(group: Any) -> Parser:
    analyze: Parser = group.add_parser(
        "analyze",
        description=ANALYZE,
        epilog=EXAMPLES,
        help="train a VAE on data, measure its latent space, write a report",
        usage="pyrovae analyze [DATA] [options]",
        **SETTINGS,
    )
    analyze.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="digits (the default), a .npy, .npz, .csv, .parquet or .h5ad file of at least 20 "
        "rows, or a folder of PNG or JPEG files of one size ('photos/*.png' takes some of them)",
    )
    _add_table_options(analyze.add_argument_group("a table"))
    _add_data_options(analyze.add_argument_group("images and cells"))
    _add_model_options(analyze.add_argument_group("the model"))
    _add_pair_options(analyze.add_argument_group("a pair of your own"))
    _add_training_options(analyze.add_argument_group("the training"))
    _add_measure_options(analyze.add_argument_group("the measures"))
    _add_run_options(analyze.add_argument_group("the run"))
    return analyze


def _on_run(group: Any, name: str, places: str, about: str, short: str) -> Parser:
    """The parser of a subcommand on a finished run."""
    parser: Parser = group.add_parser(
        name,
        description=about,
        help=short,
        usage=f"pyrovae {name} {places} [options]",
        **SETTINGS,
    )
    several = {"nargs": "+"} if name == "compare" else {}
    help_text = "the folder of a finished run, --out of pyrovae analyze"
    parser.add_argument("run", type=path, metavar="DIR", help=help_text, **several)  # type: ignore[arg-type]
    if "DATA" in places:
        help_text = "a file, or a folder of images, of rows like the run's"
        parser.add_argument("new", metavar="DATA", help=help_text)
    if name in ("sample", "encode", "score", "explore"):
        help_text = "a run of a pair of your own: the function that makes it, which is then run"
        parser.add_argument("--pair", metavar="MODULE:FACTORY", help=help_text)
        help_text = "the file that the run's data are in now, if it was moved"
        parser.add_argument("--data", metavar="FILE", help=help_text)
    return parser


def _add_outputs(commands: dict[str, Parser]) -> None:
    sample, encode, score, compare = (
        commands[name] for name in ("sample", "encode", "score", "compare")
    )
    sample.add_argument(
        "-n", type=whole("-n", 1), metavar="N", help="number of rows (default 1000)"
    )
    sample.add_argument(
        "--mean", action="store_true", help="take the mean of p(x | z), without its noise"
    )
    advised = "the one that the run's advice names, ex-post where it can't tell"
    for parser, default in ((sample, advised), (score, "prior")):
        parser.add_argument(
            "--from",
            dest="source",
            metavar="DENSITY",
            help="the density over codes: prior, the model's own; q_agg, the mixture of all codes; "
            f"or ex-post, the one fitted to it after training (default {default})",
        )
        parser.add_argument(
            "--seed", type=whole("--seed", 0), metavar="N", help="fixes all draws (default 0)"
        )
    explore = commands["explore"]
    explore.add_argument(
        "--no-rows", action="store_true", help="leave the rows of the data out of the page"
    )
    outputs = {
        explore: "DIR/explorer.html",
        sample: "samples.csv or samples.npy",
        encode: "codes.csv",
        score: "scores.csv",
        compare: "none",
    }
    for parser, default in outputs.items():
        kinds = {compare: ".csv", explore: ".html", sample: ".csv, .parquet or .npy"}.get(
            parser, ".csv or .parquet"
        )
        counted = "" if parser in (compare, explore) else "; a number is added if there is one"
        parser.add_argument(
            "-o",
            "--out",
            type=path,
            metavar="FILE",
            help=f"file to write, {kinds} (default {default}{counted})",
        )
        parser.add_argument("--force", action="store_true", help="write over that file")


def _add_data_options(group: Any) -> None:
    group.add_argument(
        "--channels",
        metavar="first|last",
        help="where an array has the channels of its images, if both ends may be it",
    )
    group.add_argument(
        "--layer", metavar="NAME", help="the layer of an .h5ad file to take (default X)"
    )


def _add_table_options(group: Any) -> None:
    group.add_argument(
        "--columns", type=names, metavar="A,B", help="the only columns to take, in this order"
    )
    group.add_argument("--drop", type=names, metavar="A,B", help="columns to leave out")
    group.add_argument(
        "--id", metavar="NAME", help="a column that names the rows: codes are given under them"
    )
    group.add_argument(
        "--label",
        metavar="NAME",
        help="a column of classes, which no model sees, for plots; of an .h5ad file one of obs",
    )
    group.add_argument(
        "--index",
        action=argparse.BooleanOptionalAction,
        help="whether the first column names the rows; found out if neither is given",
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line names the columns; found out if neither is given",
    )
    group.add_argument(
        "--delimiter", metavar="C", help="the character between cells; found out if not given"
    )


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--likelihood",
        metavar="NAME",
        help="bernoulli (values in [0, 1]; those between are drawn as 0 or 1), normal (any "
        "numbers), categorical (0, 1, 2, …), logistic (grey levels 0–255) or negative_binomial "
        "(counts, given their total in a row) or mixed (a table: normal for numbers, bernoulli for "
        "truth values, categorical for texts, missing cells left out); by default mixed for a "
        "table that asks for it, bernoulli if all values are 0 or 1, else normal",
    )
    group.add_argument(
        "--latent",
        type=whole("--latent", 1),
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
        type=whole("--components", 1),
        metavar="K",
        help="number of Gaussians of a mixture (default 20), or of pseudo-inputs of vamp "
        "(default 100, at most a tenth of the training data)",
    )
    group.add_argument(
        "--hidden",
        type=sizes,
        metavar="SIZES",
        help="sizes of the hidden layers, from the data inwards (default 256,256; of conv: "
        "channels, 32,64)",
    )
    group.add_argument(
        "--network",
        metavar="NAME",
        help="mlp (layers that take all entries of a row alike, the default), or conv "
        "(convolutions, for images)",
    )
    group.add_argument(
        "--noise",
        metavar="NAME",
        help="of the likelihood normal: shared by all entries of a row (default), or each its own, "
        "for data in which some entries hardly vary",
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
        type=path,
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


def _add_training_options(group: Any) -> None:
    group.add_argument(
        "--epochs",
        type=whole("--epochs", 1),
        metavar="N",
        help="passes over the data at most; training stops early (default 300; fewer for "
        "more than 23,000 rows, down to 20)",
    )
    group.add_argument(
        "--batch-size",
        type=whole("--batch-size", 1),
        metavar="N",
        help="rows in a minibatch (default a 300th of the rows, from 100 to 1,000)",
    )
    group.add_argument(
        "--learning-rate",
        type=rate,
        metavar="R",
        help="of Adam (default 0.001)",
    )
    group.add_argument(
        "--kl-warmup",
        type=whole("--kl-warmup", 0),
        metavar="N",
        help="epochs over which the weight on the KL grows to 1 (default 0)",
    )
    group.add_argument(
        "--average",
        type=whole("--average", 0),
        metavar="N",
        help="epochs after these over whose steps the parameters are averaged (default 0)",
    )


def _add_run_options(group: Any) -> None:
    group.add_argument(
        "--seed",
        type=whole("--seed", 0),
        metavar="N",
        help="fixes all random choices; the same seed gives the same numbers (default 0)",
    )
    group.add_argument(
        "--seeds",
        type=whole("--seeds", 2),
        metavar="N",
        help="train and measure with this many seeds, from --seed on, each in a folder of --out; "
        "the spread of every number goes to seeds.csv there",
    )
    group.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for the report and the run, created if missing (default pyrovae-report; a "
        "number is added if it holds a run)",
    )
    group.add_argument("--force", action="store_true", help="write over the run that --out holds")
    group.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="take options from a TOML file, lines such as latent = 20, or from the run.toml of "
        "another run; those of the command line come first",
    )
    group.add_argument(
        "--quiet", action="store_true", help="show no progress, and at the end only the report"
    )
    group.add_argument(
        "--verbose", action="store_true", help="show progress in lines, every few seconds"
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default cpu)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run in --out, if there is one",
    )


def _add_measure_options(group: Any) -> None:
    group.add_argument(
        "--check-guide",
        action="store_true",
        help="also measure, on a few held-out data points, how the guide compares with the exact "
        "posterior, sampled by NUTS; takes minutes",
    )
    group.add_argument(
        "--quick",
        action="store_true",
        help="a first look: measure fewer rows, with fewer draws, and no gaps of the guide",
    )
    group.add_argument(
        "--draws",
        type=whole("--draws", 2),
        metavar="S",
        help="draws for each estimate of log p(x), under each density (default 500)",
    )
    group.add_argument(
        "--method",
        metavar="NAME",
        help="where these draws come from: auto (the default), refined or importance",
    )


def names(text: str) -> tuple[str, ...]:
    """Names of columns with commas between them; one with a comma of its own in quotes."""
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))


def path(text: str) -> Path:
    """A path, with a home folder for ~."""
    from pyrovae.data import expanded

    try:
        return expanded(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole(option: str, least: int) -> Callable[[str], int]:
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


def rate(text: str) -> float:
    """A learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a learning rate above 0, at most 1; got {text!r}. Try --learning-rate 0.001"
        )
    return value


def sizes(text: str) -> tuple[int, ...]:
    """Sizes of layers."""
    words = text.split(",")
    # Of a number of more than ten digits none of the machine's memories would hold the layer.
    if not all(w.strip().isdecimal() and len(w) <= 10 and int(w) > 0 for w in words):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers ≥ 1 separated by commas; got {text!r}. Try --hidden 256,256"
        )
    return tuple(int(word) for word in words)
