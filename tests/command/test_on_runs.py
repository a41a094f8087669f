"""Each subcommand on a finished run, as a shell sees it; what it refuses leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.command.cli import BAD_INPUT, OK, main
from pyrovae.data import as_dataset
from pyrovae.runs import load_run

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:For .* k̂"),  # the pair has hardly been trained
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]

WORDS = "--latent 2 --hidden 8 --epochs 2 --draws 20 --method importance --quiet".split()
TABLE = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data.csv`` and its run in ``run``."""
    place = tmp_path_factory.mktemp("finished")
    TABLE.to_csv(place / "data.csv", index=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        words = ["analyze", str(place / "data.csv"), *WORDS, "--out", str(place / "run")]
        assert main(words) == OK
    finally:
        torch.set_default_dtype(before)
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return str(finished / "run")


def test_sample_writes_rows_under_the_columns_names(run: str) -> None:
    assert main(["sample", run, "-n", "7"]) == OK
    table = as_dataset("samples.csv")
    assert table.columns == ("a", "b", "c")
    assert torch.equal(table.values, load_run(run).sample(7))
    words = ["sample", run, "-n", "7", "--from", "prior", "--seed", "3", "--mean", "-o", "x.npy"]
    assert main(words) == OK
    expected = load_run(run).sample(7, "prior", seed=3, mean=True)
    np.testing.assert_array_equal(np.load("x.npy"), expected.numpy())
    assert main(["sample", run, "-n", "2"]) == OK  # the default name counts up
    assert len(pd.read_csv("samples-2.csv")) == 2 and len(pd.read_csv("samples.csv")) == 7


def test_parquet_files_hold_what_csv_files_hold(run: str, finished: Path) -> None:
    new = str(finished / "data.csv")
    for command, words in {"sample": ["-n", "7"], "encode": [new], "score": [new]}.items():
        for ending in ("csv", "parquet"):
            assert main([command, run, *words, "-o", f"{command}.{ending}"]) == OK
        one, other = pd.read_csv(f"{command}.csv"), pd.read_parquet(f"{command}.parquet")
        pd.testing.assert_frame_equal(one, other, check_dtype=False)


def test_an_ending_in_capitals_is_that_kind_of_file(run: str) -> None:
    assert main(["sample", run, "-n", "3", "-o", "new.NPY"]) == OK
    assert np.load("new.NPY").shape == (3, 3)


def test_a_check_of_the_guide_is_an_option_only_where_it_was_asked_for(run: str) -> None:
    asked = "--check-guide" in WORDS
    assert ("check_guide" in load_run(run).options) == asked


def test_explore_writes_a_page_to_which_the_report_links(run: str) -> None:
    page = Path(run, "report.html")
    before = page.read_bytes()
    assert main(["explore", run, "-o", "talk.html", "--no-rows"]) == OK
    assert page.read_bytes() == before
    assert main(["explore", run, "-o", "talk.html"]) == BAD_INPUT
    assert main(["explore", run]) == OK
    assert Path(run, "explorer.html").stat().st_size > Path("talk.html").stat().st_size
    assert '<a href="explorer.html">' in page.read_text(encoding="utf-8")
    Path(run, "explorer.html").unlink()
    assert main(["report", run]) == OK
    assert page.read_bytes() == before


def test_encode_and_score_write_a_line_for_each_row(run: str, finished: Path) -> None:
    data = str(finished / "data.csv")
    assert main(["encode", run, data, "-o", "codes.csv"]) == OK
    codes = pd.read_csv("codes.csv")
    assert codes["row"].tolist() == list(range(60))
    own = pd.read_csv(finished / "run" / "codes.csv")
    units = ["mean_0", "mean_1", "scale_0", "scale_1"]
    np.testing.assert_allclose(codes[units], own[units], rtol=1e-5, atol=1e-6)
    assert main(["score", run, data, "--from", "ex-post", "--seed", "1", "-o", "s.csv"]) == OK
    scores = as_dataset("s.csv")
    assert scores.columns == ("row", "log_p_x", "standard_error", "pareto_k", "p_value")
    expected = load_run(run).score(data, "ex-post", seed=1)
    assert torch.equal(scores.values[:, 1].double(), expected.evidence.values.double())
    assert torch.equal(scores.values[:, 4].double(), expected.p_value)


def test_compare_and_report(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", run, run, "-o", "all.csv"]) == OK
    shown = capsys.readouterr().out
    assert "paired difference to the first" in shown and "ELBO" in shown
    assert set(pd.read_csv("all.csv")["run"]) == {run}
    page = Path(run, "report.html")
    before = page.read_text(encoding="utf-8")
    assert f"pyrovae sample {run} -n 1000" in before
    page.unlink()
    assert main(["report", run]) == OK
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sample none", "without run.toml"),
        ("sample {run} -n 0", "-n"),
        ("sample {run} --from expost", "Did you mean 'ex-post'?"),
        ("sample {run} -o x.xlsx", ".csv, .parquet or .npy"),
        ("sample {run} -o none/x.csv", "No such file or directory"),
        ("sample {run} -o taken.csv", "--force"),
        ("sample {run} --pair os:system", "expected no --pair"),
        ("sample {run} --data taken.csv --frm prior", "Did you mean '--from'?"),
        ("encode {run}", "DATA"),
        ("encode {run} none.csv", "does not exist"),
        ("encode {run} taken.csv", "none called 'a'"),
        ("score {run} taken.csv", "none called 'a'"),
        ("compare {run}", "at least two runs"),
        ("report", "expected DIR after pyrovae report; got too few words"),
        ("analise", "Did you mean 'analyze'?"),
        ("analyze data.csv --out {run}", "--force"),
        ("analyze data.csv --out {run} --resume --seed 3", "seed"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(
    run: str, finished: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    Path("data.csv").write_bytes((finished / "data.csv").read_bytes())
    before = {path: path.stat().st_mtime_ns for path in [*Path(run).iterdir(), *Path().iterdir()]}
    assert main([word.format(run=run) for word in words.split()]) == BAD_INPUT
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    after = {path: path.stat().st_mtime_ns for path in [*Path(run).iterdir(), *Path().iterdir()]}
    assert after == before


def test_a_second_time_it_says_that_the_report_is_there(
    run: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", str(finished / "data.csv"), *WORDS, "--resume", "--out", run]
    assert main(words) == OK
    assert capsys.readouterr().out == f"The report of this run is there: {run}/report.html\n"
    again = ["analyze", "--config", f"{run}/run.toml", "--resume", "--out", run]
    assert main(again) == OK
    assert "is there" in capsys.readouterr().out


def test_default_folders_count_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyrovae.command.run_checks import CHECKPOINT, default_folder

    monkeypatch.chdir(tmp_path)
    first, second = Path("pyrovae-report"), Path("pyrovae-report-2")
    assert default_folder(resume=False) == default_folder(resume=True) == first
    first.mkdir()
    (first / "run.toml").touch()
    assert (default_folder(resume=False), default_folder(resume=True)) == (second, first)
    second.mkdir()
    (second / CHECKPOINT).touch()
    assert default_folder(resume=False) == default_folder(resume=True) == second
