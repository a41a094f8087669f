"""The command ``pyrovae``: it reads arguments, calls the library once, prints a table and paths."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrovae.command import arguments
from pyrovae.command.interruption import INTERRUPTED, importing
from pyrovae.command.memory import hand_back
from pyrovae.command.terminal import encodable, quoted, spelling_out
from pyrovae.command.wording import for_command, warnings_in_words
from pyrovae.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from pyrovae.command.analysis import Analysis, AnalysisOptions
    from pyrovae.data import Dataset
    from pyrovae.diagnostics import Diagnosis

NUTS_ROWS = 4  # data points that --check-guide measures
OK, FAILED, BAD_INPUT = 0, 1, 2
#: How the names of the measures begin that answers rest on.
MATTER = ("elbo", "active_units", "log_p_x.", "baselines.prior_minus", "bits_per_dimension.")
SELDOM, OFTEN = 30.0, 5.0  # seconds between lines of progress, without a terminal and --verbose


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: the arguments, ``sys.argv[1:]`` if not given.
    """
    if argv is None:  # the process is ours
        hand_back()
    with spelling_out(), warnings_in_words():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options: dict[str, Any] = {}
    command = None
    try:
        with importing():
            options |= arguments.read(words)
        command = options.pop("command", None)
        if options.pop("version", False):
            sys.stdout.write(f"{_versions()}\n")
        elif command is None:
            sys.stdout.write(arguments.build()[0].format_help())
        elif command == "analyze":
            _analyze(options, words)
        else:
            with importing():
                from pyrovae.command import on_runs
            on_runs.COMMANDS[command](options)
    except KeyboardInterrupt:
        on_run = "interrupted; nothing was written."
        message = _interruption(words, options) if command == "analyze" else on_run
        return _fail(message, INTERRUPTED)
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

    out = options.get("out", Path("pyrovae-report"))
    if not (out / CHECKPOINT).exists() and not any(out.glob(f"seed-*/{CHECKPOINT}")):
        return "interrupted before the first epoch was over; nothing was saved."
    again = " ".join(map(quoted, [*words, *([] if options.get("resume") else ["--resume"])]))
    return f"interrupted; the last epoch was saved. Go on with: pyrovae {again}"


# -- analyze -------------------------------------------------------------------------------------


def _analyze(options: dict[str, Any], words: Sequence[str]) -> None:
    """Load, analyse and show."""
    with importing():
        from pyrovae.command.analysis import AnalysisOptions, analyze
        from pyrovae.command.run_checks import default_folder
        from pyrovae.command.seeds import analyze_seeds
        from pyrovae.data import load
        from pyrovae.progress import in_lines
        from pyrovae.training import processes_started

    if (processes := processes_started()) > 1:
        raise InputError(
            f"expected one process; got {processes}, started by torchrun. Start pyrovae without "
            "it; a script of your own can train in several, with pyrovae.fit."
        )
    quiet, verbose = options.pop("quiet", False), options.pop("verbose", False)
    seeds = options.pop("seeds", 1)
    if "out" not in options:
        options["out"] = default_folder(resume=options.get("resume", False))
    source = options.pop("data", None) or "digits"
    options["table"] = _table_options(options)
    form = {name: options[name] for name in ("channels", "layer") if name in options}
    likelihood = options.get("likelihood")
    data = load(source, likelihood=likelihood, table=options["table"], **form)
    options |= _pair_option(options)
    options["effort"] = _effort(options)
    options["source"] = _whole_path(source)
    options["command"] = " ".join(map(quoted, ["pyrovae", *words]))
    if quiet:
        options["progress"] = False
    chosen = AnalysisOptions(**options)
    if seeds == 1 and chosen.resume and not chosen.force and _is_there(chosen, data):
        sys.stdout.write(f"The report of this run is there: {chosen.out / 'report.html'}\n")
        return
    if not quiet:
        _say_what_was_read(data, chosen)
    with in_lines(OFTEN if verbose else SELDOM, on_terminal=verbose):
        if seeds > 1:
            analyze_seeds(data, chosen, seeds, say=lambda line: sys.stdout.write(f"{line}\n"))
            return
        analysis = analyze(data, chosen)
    if quiet:
        sys.stdout.write(f"report: {analysis.report}\n")
    else:
        _show(analysis, verbose=verbose)


def _table_options(options: dict[str, Any]) -> Any:
    """How to read a table, out of the other options."""
    from pyrovae.data import TableOptions

    names = TableOptions.__dataclass_fields__
    return TableOptions(**{name: options.pop(name) for name in names if name in options})


def _say_what_was_read(data: Dataset, chosen: AnalysisOptions) -> None:
    """What data were taken for that could have been taken for something else."""
    from pyrovae.command.analysis import about_table, in_short, settled

    lines = [f"{name}: {words}." for name, words in about_table(data).items()]
    if data.note:
        lines.append(f"data: {in_short(data)}")
        if chosen.pair is None:
            likelihood = settled(data, chosen).likelihood
            given = "" if chosen.likelihood else " (--likelihood takes another)"
            lines.append(f"likelihood: {likelihood}{given}")
    for line in lines:
        sys.stdout.write(f"{encodable(line, sys.stdout.encoding)}\n")


def _effort(options: dict[str, Any]) -> Any:
    """The effort that the options ask for, which are taken out of the others."""
    from pyrovae.diagnostics import Effort

    effort: dict[str, Any] = {"evidence_draws": options.pop("draws")} if "draws" in options else {}
    if "method" in options:
        effort["method"] = options.pop("method")
    if options.pop("check_guide", False):
        effort |= {"nuts_rows": NUTS_ROWS}
    return replace(Effort.quick() if options.pop("quick", False) else Effort(), **effort)


def _whole_path(source: str) -> str:
    """Where data are from, wherever the command is run next; an array of an archive, too."""
    if source == "digits":
        return source
    from pyrovae.data import expanded

    return str(expanded(source).absolute())


def _is_there(chosen: Any, data: Dataset) -> bool:
    """Whether ``--resume`` has nothing left to do."""
    from pyrovae.command.analysis import settled
    from pyrovae.command.run_checks import is_done
    from pyrovae.runs import digest_of_data

    return is_done(chosen.out, settled(data, chosen).by_name(), digest_of_data(data))


def _pair_option(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the user's own pair gathered into one, and taken out of the others.

    Raises:
        InputError: if an option makes no sense with ``--pair``, or makes sense only with it.
    """
    pair_names = ("no_fit", "params", "site", "observed", "data_plate")
    pair_options = {name: options.pop(name) for name in pair_names if name in options}
    vae_names = ("likelihood", "latent", "prior", "components", "hidden", "network", "noise")
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
    from pyrovae.runs import PairOptions

    fit = not pair_options.pop("no_fit", False)
    if "site" in pair_options:
        sites = tuple(pair_options["site"].split(","))
        pair_options["site"] = sites if len(sites) > 1 else sites[0]
    return {"pair": PairOptions(options["pair"], fit=fit, **pair_options)}


# -- what is printed at the end ------------------------------------------------------------------


def _show(analysis: Analysis, *, verbose: bool) -> None:
    """What to draw new rows from, what to take care of, and the measures that matter, or all."""
    from rich.console import Console

    from pyrovae.command.analysis import how_to_sample
    from pyrovae.report import MOST_CONCERNS, concerns, fit_in_words, guidance, notes

    console, diagnosis = Console(highlight=False), analysis.diagnosis

    def spelled(text: str) -> str:
        return encodable(text, console.encoding)

    def say(text: str, style: str | None = None, *, wrap: bool = True) -> None:
        console.print(spelled(text), style=style, markup=False, soft_wrap=not wrap)

    say(f"Does the model fit? {fit_in_words(diagnosis, analysis.saved.facts)}")
    for name, sentence in guidance(diagnosis).items():
        say(f"{name}: {sentence}")
    how = how_to_sample(analysis.saved.folder, analysis.saved.recommended)
    say(f"Draw new rows: {how}", wrap=False)
    cautions, further = concerns(diagnosis, analysis.run), notes(diagnosis)
    if not verbose:
        cautions, further = cautions[:MOST_CONCERNS], []
    for concern in cautions:
        say(f"Careful: {for_command(concern)}", "yellow")
    for note in further:
        say(f"Note: {for_command(note)}")
    console.print()
    console.print(_table(diagnosis, spelled, everything=verbose))
    if verbose:
        say(diagnosis.advice)
        if analysis.run is not None:
            say(f"Training steps: {analysis.run.capture}")
        if (calibration := diagnosis.guide_check.calibration) is not None:
            say(f"The guide: {calibration.statement}")
    else:
        say("All measures: the report has them, and so has --verbose.")
    console.print()
    if analysis.netcdf is not None:
        say(f"draws for ArviZ: {analysis.netcdf}", wrap=False)
    say(f"report: {analysis.report}", wrap=False)


def _table(
    diagnosis: Diagnosis, spelled: Callable[[str], str], *, everything: bool = True
) -> Table:
    """A table with a row for each measure and columns for training and held-out data.

    Args:
        diagnosis: has the measures.
        spelled: spells out letters that the terminal lacks, before columns are made as wide.
        everything: whether to show all of them, and not only those that answers rest on.
    """
    from rich.table import Table

    from pyrovae.diagnostics import LABELS
    from pyrovae.report import show_measure

    cells: dict[str, dict[str, str]] = {}
    for data, measure, estimate in diagnosis.estimates():
        if data != "simulated" and (everything or measure.startswith(MATTER)):
            cells.setdefault(LABELS[measure], {})[data] = show_measure(measure, estimate)
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


def _versions() -> str:
    from pyrovae import __version__

    parts = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "pyro-ppl", "arviz"):
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    return f"pyrovae {__version__} ({', '.join(parts)})"
