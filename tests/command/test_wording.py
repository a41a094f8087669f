"""Every remedy that the command line names is one that the command line has."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pyrovae
import pyrovae.command.analysis
from pyrovae.command.arguments import build
from pyrovae.command.cli import main
from pyrovae.command.wording import for_command, warnings_in_words
from pyrovae.diagnostics.concerns import grouped
from pyrovae.errors import InputError

PACKAGE = Path(pyrovae.__file__).parent
# In messages about the user's own code of a pair and of its factory, which the command runs.
IN_THE_PAIR = {"obs", "categories", "data", "hide"}
ARGUMENT = re.compile(r"(?<![\w'\"/<-])([a-z_]+)=(?!=)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")

# Beginnings of texts that the command never shows, and why.
UNREACHABLE = {
    "expected a likelihood of independent entries": "the columns of a table are",
    "expected at least one permutation": "the command compares no groups",
    "expected a bandwidth above 0": "the command compares no groups",
    "expected at least two values to compare": "the command compares no groups",
    "expected a finite number for each of the": "the command compares no groups",
    "7 have 7 and 7 replicates": "the command compares no groups",
    "expected 2 to 7 folds": "the command refits nothing",
    "Each row was held out once": "the command refits nothing",
    "For 7 of 7 rows k̂ rejects log p(x) in": "the command refits nothing",
    "expected refits on these rows": "the command refits nothing",
    "expected pair= and train=": "the command screens nothing",
    "expected the 7 rows that q_agg": "the command screens nothing",
    "expected a threshold from": "the threshold is the default",
    "expected a false discovery rate": "the command asks for p-values alone",
    "p-values from 7 rows": "the command asks for p-values alone",
    "<progress value=": "is a bar in a notebook",
    "expected whole rows with": "the prior is refused before",
    "expected a DataLoader whose order": "the command hands over arrays",
    "expected the same rows each time from a DataLoader": "the command hands over arrays",
    "expected shares that leave at least 2": "the shares are the command's own",
    "No density to sample from is advised": "--draws leaves log p(x) in",
    "expected a diagnosis with": "the effort is the command's own",
    "Estimate(": "is an object in Python",
    "7(batch_shape=": "is an object in Python",
    "<tr><th style=": "is a table in a notebook",
    "<td style=": "is a table in a notebook",
    "<7 style=": "is a table in a notebook",
    "no total=": "is the text of an object in Python",
    "expected a function of the epoch's number": "the command has no schedule",
    "7(components=": "is an object in Python",
    ", batch_shape=": "is an object in Python",
    "expected a distribution as prior=": "no prior is handed over",
    "expected as prior= a distribution": "no prior is handed over",
    "expected a method out of": "log_evidence gets one that Effort has taken",
    "expected max_cost= of at least 1": "the method is the command's own",
    "expected decoded= out of": "the command takes means",
    "expected features= to be": "the features are the command's own",
    "expected a pair whose one argument": "the features are the command's own",
    "expected at least one component to return": "no responsibilities are asked for",
    "expected independent units or normals": "the reductions are the command's own",
    "expected one of guide= and mcmc=": "the command exports a diagnosis",
    "expected a Pyro 7; got": "the command exports a diagnosis",
    "expected one length of dimension": "the command exports a diagnosis",
    "expected a prior that can be drawn from": "the command exports a diagnosis",
    "expected refine= as": "the command refines no encoding",
    "expected the model, whose ELBO": "the command refines no encoding",
    "expected neighbours= or subsample=": "the prior is the command's own",
    "expected a whole number of latent units": "--latent is checked before",
    "expected finite bounds": "the bounds are the command's own",
    "expected a function that makes": "the optimizer is the command's own",
    "expected optimizer= to make": "the optimizer is the command's own",
    "expected capture='auto'": "the command replays what it can",
    "expected a pair on a GPU by CUDA": "the command replays what it can",
    "expected compile=True": "the command compiles nothing",
    "expected a C++ compiler": "the command compiles nothing",
    "expected validation data for patience": "the command has validation data",
    "expected a file to resume from": "the command has a checkpoint",
    "expected aggregated= of the": "the command encodes the rows",
    "expected encodings that 7 can hold": "the command writes no shards",
    "expected finite means and positive scales, as encode_to": "the command reads no shards",
    "expected rows that can be divided among": "the command runs in one process",
    "expected a row of each minibatch": "the command runs in one process",
    "expected rows that fit draws": "the command runs in one process",
    "expected every site in the plate over": "the command runs in one process",
    "expected dense gradients": "the command runs in one process",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """All strings of a module but docstrings, with something in the place of each value."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            text = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    text += part.value
                elif text.endswith("site=") and part.conversion == -1:
                    text += "('q', 'r')"
                else:
                    text += "'q'" if part.conversion == ord("r") else "7"
            yield node.lineno, text


def library() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name != "command":
            for line, text in texts(path):
                if " " in text:
                    yield f"{path.relative_to(PACKAGE)}:{line}", text


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The options that the help of any command lists."""
    parser, commands = build()
    return set(OPTION.findall("".join(p.format_help() for p in (parser, *commands.values()))))


def test_no_remedy_names_an_argument_in_python(options: set[str]) -> None:
    found, unused = {}, set(UNREACHABLE)
    for place, text in library():
        shown = for_command(text)
        arguments = set(ARGUMENT.findall(shown)) - IN_THE_PAIR
        beginnings = {start for start in UNREACHABLE if text.startswith(start)}
        if (arguments or "Effort(" in shown) and not beginnings:
            found[place] = shown
        unused -= beginnings
        assert set(OPTION.findall(shown)) <= options, f"{place} names an option that is none"
    assert not found, "for_command needs words for these"
    assert not unused, "these are no texts of the library any more"


def test_options_that_the_command_itself_names_exist(options: set[str]) -> None:
    for path in (PACKAGE / "command").glob("*.py"):
        for line, text in texts(path):
            assert set(OPTION.findall(text)) <= options | {"--help", "--version"}, (
                f"{path.name}:{line}"
            )


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "log p(x) under raw q_agg: for 3 of 9 data points it fails. Take more draws, a "
            "wider guide, or method='annealed'.",
            "log p(x) under raw q_agg: for 3 of 9 data points it fails. Take more draws with "
            '--draws, a pair of your own with a wider guide (--pair), or the method "annealed" of '
            "pyrovae.log_evidence, in Python.",
        ),
        (
            "Gaps: for 3 of 9 data points k̂ is not known. Take more draws.",
            "Gaps: for 3 of 9 data points k̂ is not known. Take more draws with "
            "pyrovae.inference_gaps, in Python.",
        ),
        (
            "Guide beside NUTS: for 3 of 9 data points NUTS has few draws. Take more draws.",
            "Guide beside NUTS: for 3 of 9 data points NUTS has few draws. Take more draws with "
            "pyrovae.beside_nuts, in Python.",
        ),
        ("expected a site; got 'site=3/x.npy' in /a/site=3.", None),
    ],
)
def test_what_is_said_and_shown(said: str, shown: str | None) -> None:
    assert for_command(said) == (said if shown is None else shown)
    assert for_command(for_command(said)) == for_command(said)


def test_concerns_that_the_report_merges_name_draws_too() -> None:
    end = "k̂ is not known. Take more draws."
    merged = grouped(
        [
            f"log p(x) under p: for 2 of 9 data points {end}",
            f"log p(x) under q: for 3 of 9 data points {end}",
        ]
    )
    assert [for_command(text) for text in merged] == [
        "log p(x): for 2 (p) and 3 (q) of 9 data points k̂ is not known. Take more draws with "
        "--draws."
    ]


def test_warnings_of_the_library_are_one_line_and_others_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, place = "Pass fewer rows, or\na smaller seed=1.", str(PACKAGE / "command" / "cli.py")
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with warnings_in_words():
            warnings.warn_explicit(text, UserWarning, place, 1)
            warnings.warn_explicit("of another library", UserWarning, "other.py", 7)
    assert [str(other.message) for other in others] == ["of another library"]
    line = capsys.readouterr().err
    assert line == "pyrovae: careful: Pass fewer rows, or a smaller --seed 1.\n"


# -- remedies that are followed --------------------------------------------------------------------

PAIRS = """
import pyro, torch
import pyro.distributions as dist

def model(x, noise=None):
    with pyro.plate("rows", len(x)):
        code = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = torch.cat([code, code], -1)[:, :3]
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=x)

def guide(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("code", dist.Normal(x[:, :2], 1.0).to_event(1))

def make(data):
    return model, guide
"""


def test_remedies_lead_to_the_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reached(*_: object, **__: object) -> None:
        raise InputError("reached")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyrovae.command.analysis, "diagnose", reached)
    np.save("data.npy", np.random.default_rng(0).normal(size=(60, 3)))
    Path("odd_names.py").write_text(PAIRS, encoding="utf-8")
    words = "analyze data.npy --pair odd_names:make --no-fit --data-plate data".split()
    remedies = []
    for _ in range(4):
        main(words)
        message = capsys.readouterr().err
        if "reached" in message:
            break
        option = OPTION.findall(message)[0]
        remedies.append(option)
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
        words += [option, {"--site": "code", "--observed": "x", "--data-plate": "rows"}[option]]
    sys.modules.pop("odd_names", None)
    assert "reached" in message
    assert set(remedies) == {"--site", "--observed", "--data-plate"}
