"""Tables on the command line: which columns are data, and the spread over several seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.command import arguments, seeds
from pyrovae.command.cli import BAD_INPUT, OK, main
from pyrovae.data import Dataset
from pyrovae.runs import load_run

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:For .* k̂"),  # the pair has hardly been trained
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]

WORDS = "--latent 2 --hidden 8 --epochs 2 --draws 20 --method importance".split()
RANDOM = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "name": [f"n{i}" for i in range(80)],
        "a, b": RANDOM.normal(size=80).round(3),
        "town": RANDOM.choice(["Bonn", "Oslo"], 80),
        "kind": RANDOM.choice(["x", "y"], 80),
        "c": np.where(np.arange(80) % 9 == 4, np.nan, RANDOM.normal(size=80)),
    }
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    TABLE.to_csv("t.csv", index=False, sep=";")
    return tmp_path


def test_columns_ids_and_labels_go_through_all_commands(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", "t.csv", *WORDS, "--id", "name", "--label", "kind", "--out", "run"]
    assert main([*words, "--drop", "town"]) == OK
    out = capsys.readouterr().out
    assert "missing cells: 9 of 160, in c 9" in out and "town, kind (labels)" in out
    assert "missing cells" in (folder / "run" / "report.html").read_text(encoding="utf-8")
    run = load_run("run")
    assert run.columns == ("a, b", "c") and run.options["drop"] == ["town"]
    assert main(["encode", "run", "t.csv", "-o", "codes.csv"]) == OK
    assert pd.read_csv("codes.csv")["id"].tolist() == TABLE["name"].tolist()
    assert main(["sample", "run", "-n", "4", "-o", "s.csv"]) == OK
    assert list(pd.read_csv("s.csv").columns) == ["a, b", "c"]
    assert main(["score", "run", "t.csv", "-o", "scores.csv"]) == OK
    assert pd.read_csv("scores.csv")["id"].tolist() == TABLE["name"].tolist()
    again = arguments.read(["analyze", "--config", "run/run.toml"])
    assert (again["id"], again["label"], again["drop"]) == ("name", "kind", ("town",))


def test_options_of_a_table_are_words_again(tmp_path: Path) -> None:
    config = tmp_path / "o.toml"
    config.write_text('columns = ["a, b", "c"]\nheader = false\nindex = true\n', encoding="utf-8")
    found = arguments.read(["analyze", "t.csv", "--config", str(config)])
    assert found["columns"] == ("a, b", "c")
    assert found["header"] is False and found["index"] is True
    given = ["analyze", "t.csv", "--columns", '"a, b",c', "--no-header"]
    assert arguments.read(given)["columns"] == ("a, b", "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["t.csv"], "column 'name': 80 different texts in 80 rows"),
        (["t.csv"], "(--drop), keep one as ids of rows (--id) or as labels (--label)"),
        (["t.csv", "--drop", "nam"], "Did you mean 'name'?"),
        (["digits", "--drop", "a"], "no --drop for data that are no table"),
        (["t.csv", "--id", "name", "--prior", "vamp"], "Take --prior mixture."),
        (["t.csv", "--seeds", "1"], "whole number ≥ 2"),
    ],
)
def test_what_helps_is_an_option(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", *words]) == BAD_INPUT
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (folder / "pyrovae-report" / "run.toml").exists()


def test_a_nameless_first_column_is_taken_as_it_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TABLE[["a, b"]].to_csv("i.csv")
    assert main(["analyze", "i.csv"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "for ids of rows with --index, or for data with --no-index" in error


def test_seeds_are_runs_of_their_own_with_a_spread(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TABLE[["a, b", "c"]].dropna().to_csv("n.csv", index=False)
    words = ["analyze", "n.csv", *WORDS, "--seeds", "2", "--seed", "3", "--out", "runs"]
    assert main(words) == OK
    out = capsys.readouterr().out
    assert "seed 4: runs/seed-4/report.html" in out and "sd over seeds" in out
    spread = pd.read_csv("runs/seeds.csv").set_index(["data", "measure"])
    runs = [load_run(f"runs/seed-{seed}") for seed in (3, 4)]
    values = [
        next(e for d, m, e in run.diagnosis.estimates() if (d, m) == ("held-out", "elbo"))
        for run in runs
    ]
    row = spread.loc[("held-out", "elbo")]
    numbers = [e.value for e in values]
    assert row["mean"] == pytest.approx(np.mean(numbers), rel=1e-6)
    assert row["sd"] == pytest.approx(np.std(numbers, ddof=1), rel=1e-6)
    assert row["runs"] == 2 and row["error"] > 0
    assert main(words) == BAD_INPUT and "no finished run" in capsys.readouterr().err
    assert main([*words, "--resume"]) == OK  # both are there: nothing is trained again


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_seeds_at_the_same_time_are_what_each_is_alone(
    folder: Path, two_cores: None, capfd: pytest.CaptureFixture[str]
) -> None:
    TABLE[["a, b", "c"]].dropna().to_csv("n.csv", index=False)
    words = ["analyze", "n.csv", *WORDS, "--quiet"]
    together = [*words, "--seeds", "2", "--out", "together"]
    assert main(together) == OK
    assert "seed 1: together/seed-1/report.html" in capfd.readouterr().out
    torch.set_num_threads(1)
    assert main([*words, "--seed", "1", "--out", "alone"]) == OK
    alone, among_others = Path("alone"), Path("together/seed-1")
    for name in ("measures.csv", "parameters.pt"):
        assert (alone / name).read_bytes() == (among_others / name).read_bytes()
    torch.set_num_threads(2)
    (folder / "together" / "seeds.csv").unlink()
    assert main(together) == BAD_INPUT  # as a process of its own says
    assert "no finished run in --out" in capfd.readouterr().err


def test_no_more_seeds_run_at_the_same_time_than_there_is_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Dataset("toy", torch.zeros(1000, 5))
    for gigabytes, processes in ((0.5, 0), (1.0, 1), (2.5, 3), (100.0, 5)):
        monkeypatch.setattr(seeds, "memory", lambda size=gigabytes: int(size * 1e9))
        assert seeds._processes(data, cores=2) == processes
