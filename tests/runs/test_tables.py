"""A run on a table with texts, dates and missing cells keeps its columns, and fills the cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae.command.analysis import AnalysisOptions, analyze
from pyrovae.data import TableOptions, load, read_table
from pyrovae.diagnostics.effort import Effort
from pyrovae.errors import InputError
from pyrovae.runs import Run, load_run
from pyrovae.runs.imputation import Imputation

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:For .* k̂"),  # the pair has hardly been trained
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]

TINY = Effort(
    64, 24, 60, 2, 30, 4, 40, simulations=100, gap_rows=0, nuts_rows=0, method="importance"
)
ROWS = 160
OPTIONS = TableOptions(drop=("note",), id="name", label="class")


def people() -> pd.DataFrame:
    random = np.random.default_rng(0)
    height = random.normal(170.0, 10.0, ROWS)
    frame = pd.DataFrame(
        {
            "name": [f"person {i}" for i in range(ROWS)],
            "height": height,
            "weight": 0.9 * height - 85 + random.normal(0, 3, ROWS),
            "town": random.choice(["Bonn", "Oslo", "Rome"], ROWS),
            "owner": random.random(ROWS) < 0.3,
            "since": pd.Timestamp("2020-01-01")
            + pd.to_timedelta(random.integers(0, 99, ROWS), "D"),
            "class": random.choice(["a", "b"], ROWS),
            "note": [f"text {i}" for i in range(ROWS)],
        }
    )
    frame.loc[random.random(ROWS) < 0.2, "weight"] = np.nan
    frame.loc[random.random(ROWS) < 0.1, "town"] = None
    return frame


PEOPLE = people()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("people")
    PEOPLE.to_csv(place / "people.csv", index=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        options = AnalysisOptions(
            latent=2, hidden=(16,), epochs=60, learning_rate=0.01, effort=TINY, progress=False,
            out=place / "run", source=str(place / "people.csv"), table=OPTIONS,
        )  # fmt: skip
        analyze(load(place / "people.csv", table=OPTIONS), options)
    finally:
        torch.set_default_dtype(before)
    return load_run(place / "run")


def test_the_folder_knows_its_columns_and_rows(run: Run) -> None:
    assert run.columns == ("height", "weight", "town", "owner", "since")
    assert run.table is not None and run.labels is not None
    assert [run.label_names[number] for number in run.labels] == list(PEOPLE["class"])
    ax = run.plot()[0].figure.axes[0]
    words = [text.get_text() for one in ax.figure.legends for text in one.get_texts()]
    words += [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []
    assert set(PEOPLE["class"]) <= set(words)
    codes = pd.read_csv(run.folder / "codes.csv")
    assert list(codes["id"]) == list(PEOPLE["name"])
    assert list(codes["label"]) == list(PEOPLE["class"])
    assert "missing cells" in run.facts and "name (ids of rows)" in run.facts["left out"]


def test_draws_are_a_table_again(run: Run) -> None:
    z = torch.zeros(4, 2)
    written = pd.read_csv(run.folder / "samples.csv")
    for table in (run.as_table(run.sample(50)), run.as_table(run.decode(z).sample())):
        assert tuple(table.columns) == run.columns == tuple(written.columns)
        assert set(table["town"]) <= {"Bonn", "Oslo", "Rome"}
        assert table["owner"].dtype == bool and table["since"].dtype.kind == "M"
    assert set(written["town"]) <= {"Bonn", "Oslo", "Rome"}


def test_the_same_file_is_encoded_as_it_was(run: Run) -> None:
    source = run.about["data"]["source"]
    whole = run.encode(source)
    for new in (PEOPLE, PEOPLE.drop(columns=["note", "class", "name"]), PEOPLE.iloc[:, ::-1]):
        torch.testing.assert_close(run.encode(new).mean, whole.mean)
    some = PEOPLE[PEOPLE["town"] != "Bonn"].head(9)
    data = read_table(some, drop=["note"], id="name", label="class")
    assert data.info != run.table  # fewer towns would be numbered otherwise
    torch.testing.assert_close(run.encode(data).mean, whole.mean[some.index.tolist()])
    torch.testing.assert_close(run.encode_part("train").mean, whole.mean[run.rows["train"]])
    found = run.score(PEOPLE.head(9))
    assert bool(found.evidence.values.isfinite().all())


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (PEOPLE.assign(town="Ulm"), r"'Ulm' in rows 1, 2, 3 and 157 more.*none of the categories"),
        (PEOPLE.drop(columns="town"), "none called 'town'"),
        (PEOPLE.assign(extra=1.0), "others, 'extra'"),
        (PEOPLE.assign(height="tall"), "column 'height': 'tall' among numbers"),
    ],
)
def test_other_columns_are_refused(run: Run, new: pd.DataFrame, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run.encode(new)


def test_missing_cells_are_filled_better_than_by_the_mean(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run.impute(seed=1, progress=True)
    assert "imputation" in (said := capsys.readouterr().err) and "100 %" in said
    gone = PEOPLE[["height", "weight", "town", "owner", "since"]].isna().to_numpy()
    assert np.array_equal(found.obs_mask.numpy(), ~gone)
    cells, table = found.cells, found.table
    assert len(cells) == gone.sum() and not bool(table.isna().any().any())
    weights = cells[cells["column"] == "weight"]
    expected = 0.9 * PEOPLE["height"].iloc[weights["row"]].to_numpy() - 85
    error = np.sqrt(np.mean((weights["value"].to_numpy(dtype=float) - expected) ** 2))
    assert error < 0.8 * PEOPLE["weight"].std()
    assert bool((weights["deviation"] > weights["standard_error"]).all())
    towns = cells[cells["column"] == "town"]
    assert set(towns["value"]) <= {"Bonn", "Oslo", "Rome"}
    assert bool((towns["probability"] > 1 / 3 - 1e-6).all())
    kept = table["height"].to_numpy() == PEOPLE["height"].to_numpy()
    assert bool(kept.all())


def test_draws_that_are_more_agree_within_their_errors(run: Run) -> None:
    few, many = run.impute(draws=200, seed=2), run.impute(draws=4000, seed=3)
    there = ~few.obs_mask & ~few.deviation.isnan() & (few.pareto_k < 0.5).unsqueeze(1)
    error = (few.standard_error.square() + many.standard_error.square()).sqrt()
    distance = ((few.values - many.values).abs() / error)[there]
    assert float(distance.max()) < 6
    concern = replace(few, pareto_k=few.pareto_k + 1).concerns
    assert len(concern) == 1 and "Take more draws" in concern[0]


def test_what_can_not_be_filled_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 25 draws"):
        run.impute(draws=3)
    whole = run.data.values[run.data.obs_mask.all(1)]
    with pytest.raises(InputError, match=r"to fill them; got .* whole ones"):
        run.impute(whole)
    with pytest.raises(InputError, match=r"likelihood 'mixed'.*missing cells"):
        load(str(run.about["data"]["source"]), likelihood="normal", table=OPTIONS)
    for prior in ("vamp", "exemplar"):
        options = AnalysisOptions(prior=prior, out=tmp_path / "r", progress=False, effort=TINY)
        with pytest.raises(InputError, match=f"standard, mixture or flow.*'{prior}'"):
            analyze(read_table(PEOPLE, drop=["name", "note"]), options)


def test_a_run_without_missing_cells_takes_none(tmp_path: Path) -> None:
    whole = PEOPLE[["height", "owner", "since"]]
    options = AnalysisOptions(
        latent=2, hidden=(8,), epochs=2, effort=TINY, progress=False, out=tmp_path / "run"
    )
    saved = analyze(read_table(whole), options).saved
    assert saved.data.info is not None and saved.as_table(saved.sample(3))["owner"].dtype == bool
    with pytest.raises(InputError, match=r"without missing cells.*row 1, column 'height'"):
        saved.encode(whole.assign(height=np.nan))
    with pytest.raises(InputError, match="run on a table with missing cells"):
        saved.impute()


def test_k_hat_of_an_imputation_is_judged_by_its_draws_and_unknown_is_not_good() -> None:
    cells, pareto_k = torch.zeros(3, 1), torch.tensor([0.4, 0.6, torch.nan])
    there = torch.zeros(3, 1, dtype=torch.bool)
    for draws, rows in ((100, "rows 1, 2"), (1000, "row 2")):  # up to 0.5 and 0.67
        found = Imputation(cells, there, cells, cells, cells, pareto_k, draws, ())
        assert rows in found.concerns[0]
