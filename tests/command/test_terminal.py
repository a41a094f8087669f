"""What the command prints can be printed on every terminal."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

import pyrovae.command.analysis
from pyrovae.command.analysis import AnalysisOptions
from pyrovae.command.cli import BAD_INPUT, INTERRUPTED, OK, main
from pyrovae.command.terminal import SPELLED, encodable
from pyrovae.estimates import Estimate
from pyrovae.report import write

RAW = os.fsdecode(b"o\xff")
encodings = pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])


class Screen(NamedTuple):
    """The two streams of a terminal that refuses what it can't encode."""

    output: io.BytesIO
    errors: io.BytesIO

    def text(self, encoding: str) -> tuple[str, str]:
        return self.output.getvalue().decode(encoding), self.errors.getvalue().decode(encoding)


def screen(monkeypatch: pytest.MonkeyPatch, encoding: str) -> Screen:
    made = Screen(io.BytesIO(), io.BytesIO())
    for name, stream in zip(("stdout", "stderr"), made, strict=True):
        monkeypatch.setattr(
            sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True)
        )
    return made


@encodings
def test_help_goes_to_every_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    shown = screen(monkeypatch, encoding)
    with pytest.raises(SystemExit) as stop:
        main(["analyze", "--help"])
    assert stop.value.code == OK
    assert "categorical (0, 1, 2, " in " ".join(shown.text(encoding)[0].split())


@encodings
def test_errors_go_to_every_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    shown = screen(monkeypatch, encoding)
    assert main(["analyze", f"{RAW}.npy"]) == BAD_INPUT
    assert main(["analyze", "--latent", "0"]) == BAD_INPUT
    missing, small = shown.text(encoding)[1].splitlines()
    assert r"o\udcff.npy" in missing and f"number {encodable('≥', encoding)} 1" in small


def analysis(*_: object) -> Any:
    """An analysis with one measure, as far as the command shows it."""
    estimate = Estimate(-1.5, 0.25, 10, "data", bound="lower")
    diagnosis = SimpleNamespace(
        estimates=lambda: [("training", "elbo", estimate), ("held-out", "elbo", estimate)],
        advice="Sample from KL(q‖p) ± 1.",
        recommended=None,
        baselines=None,
        baselines_refused="",
        evidence={},
        training=SimpleNamespace(statement=""),
        information=SimpleNamespace(statement=""),
        each_concern=["k̂ > 0.7 …"],
        guide_check=SimpleNamespace(calibration=None),
    )
    saved = SimpleNamespace(folder=Path(RAW), recommended="q_agg", facts={})
    return SimpleNamespace(
        run=None, diagnosis=diagnosis, netcdf=None, report=Path(RAW, "r.html"), saved=saved
    )


@encodings
def test_results_go_to_every_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(pyrovae.command.analysis, "analyze", analysis)
    shown = screen(monkeypatch, encoding)
    assert main(["analyze"]) == OK
    lines = shown.text(encoding)[0].splitlines()
    assert lines[-1] == rf"report: o\xff{os.sep}r.html"
    spelled = [encodable(text, encoding) for text in ("k̂ > 0.7 …", "q‖p) ± 1")]
    assert all(text in "\n".join(lines) for text in spelled)
    assert any(line.endswith("-n 1000 --from q_agg") for line in lines)
    first, last = (
        next(number for number, line in enumerate(lines) if line.startswith(words))
        for words in ("What the latent space", "All measures")
    )
    table = lines[first + 1 : last]
    assert len(table) > 4 and len({len(line) for line in table}) == 1, "columns are aligned"


def test_every_sign_is_spelled_in_ascii() -> None:
    assert all(spelling.isascii() for spelling in SPELLED.values())


def test_a_page_takes_every_letter(tmp_path: Path) -> None:
    assert write(tmp_path / "page.html", f"ö {RAW}").read_bytes() == "ö o\\udcff".encode()


def test_how_to_go_on_is_written_for_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def act(data: object, likelihood: str, options: AnalysisOptions) -> None:
        (options.out / "checkpoint.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(pyrovae.command.analysis, "_vae_task", act)
    assert main(["analyze", "--out", f"it's {RAW}"]) == INTERRUPTED
    assert r"pyrovae analyze --out $'it\'s o\xff' --resume" in capsys.readouterr().err
