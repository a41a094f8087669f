"""A run folder gives back all of the run, bit by bit, or says what is no longer as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.command.analysis import Analysis, AnalysisOptions, analyze
from pyrovae.data import Dataset, load
from pyrovae.diagnostics.effort import Effort
from pyrovae.report import SHARED_NOISE
from pyrovae.runs import PairOptions, Run, compare, load_run
from pyrovae.runs import folder as folders
from pyrovae.runs.recipe import Recipe

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:For .* k̂"),  # the pairs have hardly been trained
    pytest.mark.filterwarnings("ignore:(?s).*ArviZ:FutureWarning"),
]

TINY = Effort(
    64, 24, 60, 2, 30, 4, 40, simulations=100, gap_rows=0, nuts_rows=0, method="importance"
)
NAMES = ("age", "height", "weight", "x,y")
UNITS = np.array([1e-3, 1.0, 1e4, 1.0])


def rows(count: int = 150, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(2, 4))
    codes = random.normal(size=(count, 2))
    return (codes @ mixing + 0.3 * random.normal(size=(count, 4))) * UNITS + [0, 50, 7e4, 0]


def analysed(out: Path, source: Any, **options: Any) -> Analysis:
    data = source if isinstance(source, Dataset) else load(source)
    chosen = {"latent": 2, "hidden": (8,), "epochs": 3, "effort": TINY} | options
    where = None if isinstance(source, Dataset) else str(source)
    return analyze(data, AnalysisOptions(out=out, progress=False, source=where, **chosen))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis]:
    """A run on a table with names, in float32 as the command has it."""
    place = tmp_path_factory.mktemp("table")
    pd.DataFrame(rows(), columns=NAMES).to_csv(place / "data.csv", index=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return place, analysed(place / "run", place / "data.csv")
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def copy(table: tuple[Path, Analysis], tmp_path: Path) -> Path:
    """The same folder, to be changed."""
    return Path(shutil.copytree(table[0] / "run", tmp_path / "run"))


def same_numbers(one: Any, other: Any) -> None:
    frames = one.summary(), other.summary()
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_a_run_plots_itself(table: tuple[Path, Analysis]) -> None:
    read = load_run(table[0] / "run")
    assert read.labels is None
    axes = read.plot()
    assert len(axes) == 5 and all(ax.has_data() for ax in axes)


def test_novelty_by_each_score_is_that_of_the_pair(table: tuple[Path, Analysis]) -> None:
    run, new = load_run(table[0] / "run"), rows(8, seed=1)
    by_code = run.novelty(new, score="codes")
    density = run.ex_post.distribution
    assert torch.equal(by_code.scores, density.log_prob(run.encode(new).mean).double())
    assert by_code.calibrated_on == len(run.rows["held_out"])
    by_regret = run.novelty(new, score="regret", level=0.2)
    assert by_regret.score == "regret" and by_regret.level == 0.2
    with pytest.raises(pv.InputError, match="a score of"):
        run.novelty(new, score="entropy")  # type: ignore[arg-type]


def test_every_member_comes_back_bit_by_bit(table: tuple[Path, Analysis]) -> None:
    place, analysis = table
    vae, diagnosis, run = analysis.vae, analysis.diagnosis, load_run(place / "run")
    assert vae is not None and analysis.run is not None and run.fit is not None
    for name, value in vae.state_dict().items():
        assert torch.equal(run.vae.state_dict()[name], value), name
    same_numbers(run.diagnosis, diagnosis)
    assert run.fit.history.validation.tolist() == analysis.run.history.validation.tolist()
    data = load(place / "data.csv")
    parts = pv.data.split(data, seed=0)
    for part, name in zip(parts, ("train", "validation", "held_out"), strict=True):
        assert torch.equal(getattr(run, name), part.values)
        assert torch.equal(data.values[run.rows[name]], part.values)
    z = vae.encode(parts.held_out.values).mean
    assert torch.equal(run.encode(parts.held_out.values).mean, z)
    assert torch.equal(run.decode(z).mean, vae.decode(z).mean)
    assert torch.equal(run.aggregated.log_prob(z), diagnosis.aggregated.log_prob(z))
    chosen = diagnosis.ex_post.distribution
    assert torch.equal(run.ex_post.distribution.log_prob(z), chosen.log_prob(z))
    for source in ("prior", "ex-post", "q_agg"):
        assert torch.equal(run.sample(7, source, seed=3), analysis.saved.sample(7, source, seed=3))
    new = rows(5, seed=1)
    assert torch.equal(run.score(new).p_value, analysis.saved.score(new).p_value)
    assert torch.equal(run.anomaly(new), run.score(new).p_value)
    assert torch.equal(run.novelty(new).p_value, run.score(new).p_value)
    assert run.columns == NAMES
    assert torch.equal(run.location, parts.train.values.double().mean(0))
    assert torch.equal(run.scale, parts.train.values.double().std(0))


def test_the_files_for_people_are_in_the_units_and_order_of_the_data(
    table: tuple[Path, Analysis],
) -> None:
    place = table[0]
    run, data = load_run(place / "run"), load(place / "data.csv")
    codes = pd.read_csv(place / "run" / "codes.csv")
    assert codes["row"].tolist() == list(range(150))
    parts = {name: run.rows[name.replace("-", "_")] for name in codes["part"].unique()}
    for name, numbers in parts.items():
        assert sorted(numbers.tolist()) == codes["row"][codes["part"] == name].tolist()
    encoding = run.encode(data.values)
    means = codes[["mean_0", "mean_1"]].to_numpy()
    np.testing.assert_allclose(means, encoding.mean.numpy(), rtol=1e-5, atol=1e-6)
    samples = np.load(place / "run" / "samples.npy", allow_pickle=False)
    assert samples.shape == (1000, 4)
    source = run.about["samples"]["source"]
    assert (samples == run.sample(1000, source).numpy()).all()


@pytest.mark.parametrize("source", ["prior", "ex-post", "q_agg"])
def test_samples_have_the_moments_that_the_decoder_gives_them(
    table: tuple[Path, Analysis], source: str
) -> None:
    """E[x] = E[m(z)] and Var[x] = Var[m(z)] + E[σ²], in the data's units."""
    run = load_run(table[0] / "run")
    density = {"prior": run.diagnosis.prior, "ex-post": run.ex_post.distribution}
    z = density.get(source, run.aggregated).sample((40_000,)).view(-1, 2)
    likelihood = run.decode(z).base_dist
    x = run.sample(40_000, source).double()
    variance = likelihood.mean.var(0) + likelihood.variance.mean(0)
    error = (2 * variance / 40_000).sqrt()
    assert bool(((x.mean(0) - likelihood.mean.mean(0)).abs() <= 4 * error).all())
    centred = (x - x.mean(0)).square()
    spread = (2 * centred.var(0) / 40_000).sqrt()
    assert bool(((centred.mean(0) - variance).abs() <= 4 * spread).all())
    means = run.sample(40_000, source, mean=True).double()
    error = (2 * likelihood.mean.var(0) / 40_000).sqrt()
    assert bool(((means.mean(0) - likelihood.mean.mean(0)).abs() <= 4 * error).all())


def test_new_rows_are_found_by_their_names(table: tuple[Path, Analysis], tmp_path: Path) -> None:
    run = load_run(table[0] / "run")
    new = pd.DataFrame(rows(3, seed=2), columns=NAMES)
    expected = run.encode(new.to_numpy()).mean
    shuffled = new[["x,y", "weight", "age", "height"]]
    shuffled.to_csv(tmp_path / "new.csv", index=False)
    for given in (new, shuffled, tmp_path / "new.csv", str(tmp_path / "new.csv")):
        torch.testing.assert_close(run.encode(given).mean, expected)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (lambda: rows(3)[:, :3], r"rows of shape \(4,\)"),
        (lambda: rows(3)[0], r"rows of shape \(4,\)"),
        (lambda: np.empty((0, 4)), "got 0 of shape"),
        (lambda: np.where(np.eye(4) > 0, np.nan, 1.0), "without missing cells.* row 0"),
        (lambda: pd.DataFrame(rows(3), columns=list("abcd")), "none called 'age'.* others, 'a'"),
        (lambda: pd.DataFrame(rows(3)[:, :3], columns=NAMES[:3]), "none called 'x,y'"),
        (lambda: "none.csv", "does not exist"),
    ],
)
def test_other_rows_are_refused(
    table: tuple[Path, Analysis], new: Callable[[], Any], words: str
) -> None:
    run = load_run(table[0] / "run")
    for act in (run.encode, run.score, run.anomaly):
        with pytest.raises(pv.InputError, match=words):
            act(new())


def test_the_nearest_training_rows_have_the_numbers_of_the_data(
    table: tuple[Path, Analysis],
) -> None:
    """A training row's own encoding is among the first at its mean, under its own number."""
    run = load_run(table[0] / "run")
    numbers = run.rows["train"]
    found = run.nearest(run.data.values[numbers], len(numbers))
    assert found.index.shape == found.weight.shape == (len(numbers), len(numbers))
    assert torch.equal(found.index.sort(1).values[0], numbers.sort().values)
    torch.testing.assert_close(found.weight.sum(1), torch.ones(len(numbers)).to(found.weight))
    encoding = run.encode(run.data.values[numbers])
    joint = encoding.log_prob(encoding.mean.unsqueeze(1))
    assert torch.equal(found.index[:, 0], numbers[joint.argmax(1)])


def test_codes_of_another_width_are_refused(table: tuple[Path, Analysis]) -> None:
    with pytest.raises(pv.InputError, match=r"codes of shape \(S, 2\).*; got \(3, 5\)"):
        load_run(table[0] / "run").decode(torch.zeros(3, 5))


def test_what_is_asked_for_must_make_sense(table: tuple[Path, Analysis]) -> None:
    run = load_run(table[0] / "run")
    with pytest.raises(pv.InputError, match=r"Did you mean 'ex-post'\?"):
        run.sample(3, "expost")
    for n in (0, -1, True, 2.5):
        with pytest.raises(pv.InputError, match="number of rows ≥ 1"):
            run.sample(n)  # type: ignore[arg-type]
    with pytest.raises(pv.InputError, match=r"expected no pair="):
        load_run(table[0] / "run", pair="os:system")


# -- what is no longer as it was -------------------------------------------------------------------


def test_data_that_have_changed_are_refused_and_all_else_goes_on(
    table: tuple[Path, Analysis], tmp_path: Path
) -> None:
    place = table[0]
    run = load_run(place / "run", data=tmp_path / "moved.csv")
    with pytest.raises(pv.InputError, match=r"moved.csv', which does not exist"):
        _ = run.train
    shutil.copy(place / "data.csv", tmp_path / "moved.csv")
    assert torch.equal(run.train, load_run(place / "run").train)
    changed = pd.read_csv(tmp_path / "moved.csv")
    changed.iloc[3, 1] += 1e-9
    changed.to_csv(tmp_path / "moved.csv", index=False)
    again = load_run(place / "run", data=tmp_path / "moved.csv")
    with pytest.raises(pv.InputError, match="expected the data of this run, 150 rows"):
        _ = again.held_out
    assert again.sample(2).shape == (2, 4) and len(again.anomaly(rows(2))) == 2


@pytest.mark.parametrize("name", ["parameters.pt", "rows.pt", "results.pt"])
@pytest.mark.parametrize("kind", ["changed", "another's", "gone"])
def test_files_of_another_run_are_refused(copy: Path, name: str, kind: str) -> None:
    path, run = copy / name, load_run(copy)
    if kind == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "another's":
        pv.save({"fit": None, "facts": {}}, path)
    else:
        path.unlink()
    with pytest.raises(pv.InputError, match=f"expected {name} in .* as the run has written it"):
        _ = run.vae.state_dict(), run.diagnosis, run.rows


class Killed(BaseException):
    """What a test ends the writing of a file with."""


def kill_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process end when a file is to be written."""
    replaced = folders.replace

    def replace_or_die(path: Path, write: Callable[[Path], object]) -> Path:
        if path.name == name:
            raise Killed
        return replaced(path, write)

    for place in ("runs.folder", "saving.results", "saving.atomic"):
        monkeypatch.setattr(f"pyrovae.{place}.replace", replace_or_die)


@pytest.mark.parametrize("name", sorted({*folders.FILES} - {"parameters.pt"}))
def test_a_kill_between_two_files_leaves_no_finished_folder(
    table: tuple[Path, Analysis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = load_run(table[0] / "run")
    rows = (run.rows["train"], run.rows["validation"], run.rows["held_out"])
    recipe = Recipe.from_table(run.about["model"])
    outcome = folders.Outcome(
        run.data, None, rows, recipe, None, run.diagnosis, run.fit, run.facts, run.options, "it"
    )
    shutil.copy(table[0] / "run" / "parameters.pt", tmp_path)
    kill_at(name, monkeypatch)
    with pytest.raises(Killed):
        folders.finish(tmp_path, outcome)
    with pytest.raises(pv.InputError, match=r"without run\.toml"):
        load_run(tmp_path)
    monkeypatch.undo()
    folders.finish(tmp_path, outcome)
    again = load_run(tmp_path)
    assert torch.equal(again.data.values, run.data.values) and again.data.columns == NAMES
    assert torch.equal(again.sample(3), run.sample(3))


def test_a_finished_run_is_not_overwritten_but_by_force_and_then_is_no_longer_finished(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, before = Dataset("rows", torch.as_tensor(rows())), load_run(copy)
    with pytest.raises(pv.InputError, match="expected no finished run in --out"):
        analysed(copy, data)
    assert torch.equal(load_run(copy).sample(3), before.sample(3))
    kill_at("parameters.pt", monkeypatch)
    with pytest.raises(Killed):
        analysed(copy, data, epochs=1, force=True)
    with pytest.raises(pv.InputError, match=r"without run\.toml"):
        load_run(copy)
    monkeypatch.undo()
    analysed(copy, data, epochs=1, resume=True)
    assert load_run(copy).about["data"]["name"] == "rows"
    with pytest.raises(pv.InputError, match="as the run has written it"):
        _ = before.rows, before.columns, load_run(copy), Run(copy, before.about).rows


# -- other models ----------------------------------------------------------------------------------


def images(likelihood: str) -> Dataset:
    random = np.random.default_rng(3)
    grey = torch.as_tensor(random.beta(0.5, 0.5, size=(120, 4, 4)), dtype=torch.float32)
    levels = {"logistic": 255, "categorical": 3, "negative_binomial": 20}
    values = (grey * levels[likelihood]).round() if likelihood in levels else grey
    return Dataset("images", values + (likelihood == "negative_binomial"))


@pytest.mark.parametrize(
    ("likelihood", "prior", "network"),
    [
        ("bernoulli", "vamp", "conv"),
        ("logistic", "exemplar", "mlp"),
        ("categorical", "flow", "conv"),
        ("negative_binomial", "mixture", "mlp"),
    ],
)
def test_every_likelihood_and_prior_comes_back(
    likelihood: str, prior: str, network: str, tmp_path: Path
) -> None:
    data = images(likelihood)
    chosen = {"likelihood": likelihood, "prior": prior, "network": network}
    analysis = analysed(tmp_path / "run", data, **chosen, epochs=1)
    run, vae = load_run(tmp_path / "run"), analysis.vae
    assert vae is not None
    z = run.encode_part("held_out").mean
    assert torch.equal(vae.encode(run.held_out).mean, z)
    with torch.no_grad():
        densities = [pair.eval().prior().log_prob(z) for pair in (vae, run.vae)]
    assert torch.equal(*densities)
    assert torch.equal(run.sample(5, "prior"), analysis.saved.sample(5, "prior"))
    same_numbers(run.diagnosis, analysis.diagnosis)
    assert torch.equal(run.data.values, data.values)
    drawn = run.sample(5)
    assert drawn.shape == (5, 4, 4) and bool((drawn == drawn.round()).all())
    if likelihood == "negative_binomial":
        # Given the total of a training row, the mean of the counts has just that total.
        sums = run.sample(5, mean=True).flatten(1).sum(1, keepdim=True)
        totals = torch.as_tensor(run.train).flatten(1).sum(1)
        assert float((sums / totals - 1).abs().amin(1).max()) < 1e-5
        with pytest.raises(pv.InputError, match="expected total="):
            run.decode(z)
    if likelihood == "categorical":
        with pytest.raises(pv.InputError, match="a likelihood that has a mean"):
            run.sample(2, mean=True)
        with pytest.raises(pv.InputError, match="expected categories 0 to 3"):
            run.encode(torch.full((1, 4, 4), 7.0))


@pytest.mark.parametrize("noise", ["shared", "each"])
def test_the_noise_of_a_run_comes_back(noise: str, tmp_path: Path) -> None:
    data = images("normal")
    data.values[:, 0, 0] = 0.5  # which a shared noise can't follow
    analysis = analysed(tmp_path / "run", data, noise=noise, epochs=1)
    run = load_run(tmp_path / "run")
    z = run.encode_part("held_out").mean
    with torch.no_grad():
        stddev = run.decode(z).stddev
    assert torch.equal(stddev, analysis.vae.decode(z).stddev)
    assert (len(stddev.unique()) > 1) == (noise == "each")
    assert (run.facts["noise"] == SHARED_NOISE) == (noise == "shared")


@pytest.mark.parametrize("axis", ["first", "last"])
def test_images_in_colour_come_back_with_their_channels_where_they_were(
    axis: str, tmp_path: Path
) -> None:
    grey = images("logistic").values.unsqueeze(1)
    first = torch.cat([grey, 255 - grey, grey.flip(0)], 1).to(torch.uint8).numpy()
    given = first if axis == "first" else np.moveaxis(first, 1, -1)
    np.save(tmp_path / "data.npy", given)
    analysed(tmp_path / "run", tmp_path / "data.npy", network="conv", epochs=1)
    run = load_run(tmp_path / "run")
    assert (run.channels, run.options["likelihood"]) == (axis, "logistic")
    assert run.decode(torch.zeros(1, 2)).event_shape == (3, 4, 4)
    assert run.location.shape == ()  # all pixels of all channels share one unit
    codes = run.encode(given).mean
    for other in (first, np.moveaxis(first, 1, -1), tmp_path / "data.npy"):
        assert torch.equal(run.encode(other).mean, codes)
    drawn = run.sample(5)
    assert drawn.shape == (5, 3, 4, 4)
    samples = np.load(tmp_path / "run" / "samples.npy")
    assert samples.shape[1:] == given.shape[1:]
    expected = run.sample(1000, run.about["samples"]["source"]).numpy()
    assert np.array_equal(samples if axis == "first" else np.moveaxis(samples, -1, 1), expected)


PAIR = """
import pyro, torch
import pyro.distributions as dist
from torch import nn

class Both(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(columns, 4), nn.Linear(2, columns)

    def model(self, x):
        pyro.module("both", self)
        noise = pyro.param("noise", lambda: torch.tensor(0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("both", self)
        with pyro.plate("rows", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, scale.exp()).to_event(1))

print("imported")

def make(data):
    return Both(data.event_shape[0])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "mine.py").write_text(PAIR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield "mine:make"
    import sys

    sys.modules.pop("mine", None)


def test_a_pair_of_the_user_s_own_is_imported_only_if_the_user_names_it(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    data = Dataset("rows", torch.as_tensor(rows(80) / UNITS).float() / 10)
    analysis = analysed(tmp_path / "run", data, pair=PairOptions(own, site="code"), epochs=1)
    new = data.values[:4]
    expected = analysis.saved.encode(new).mean
    drawn, p = analysis.saved.sample(4), analysis.saved.score(new).p_value
    pyro.clear_param_store()
    sys.modules.pop("mine", None)
    capsys.readouterr()
    run = load_run(tmp_path / "run")
    assert run.aggregated.batch_shape == () and len(run.rows["train"]) == 56
    same_numbers(run.diagnosis, analysis.diagnosis)
    for act in (lambda: run.sample(2), lambda: run.encode(new), lambda: run.model):
        with pytest.raises(pv.InputError, match=r"mine:make, which is code .* Name it with pair="):
            act()
    with pytest.raises(pv.InputError, match="a VAE that pyrovae has built"):
        _ = run.vae
    assert "mine" not in sys.modules and capsys.readouterr().out == ""
    again = load_run(tmp_path / "run", pair=own)
    assert torch.equal(again.encode(new).mean, expected)
    assert torch.equal(again.sample(4), drawn)
    assert torch.equal(again.score(new).p_value, p)
    assert torch.equal(again.decode(expected).mean, again.decode(expected).mean)
    with pytest.raises(pv.InputError, match=r"codes of shape \(4, 2\) .*; got \(4, 5\)"):
        again.decode(torch.zeros(4, 5))


# -- side by side ----------------------------------------------------------------------------------


def test_runs_are_paired_by_the_rows_that_both_measured(
    table: tuple[Path, Analysis], tmp_path: Path
) -> None:
    place, first = table[0], load_run(table[0] / "run")
    other = analysed(tmp_path / "other", place / "data.csv", prior="mixture", epochs=2).saved
    found = compare([first, other])
    assert found.reasons == {}
    for density in ("prior", "q_agg", "ex_post"):
        values = [run.diagnosis.evidence[density].values for run in (first, other)]
        paired = found.differences[f"log_p_x.{density}"][1]
        assert paired is not None
        assert paired.value == pytest.approx(float((values[1] - values[0]).mean()))
    seeds = analysed(tmp_path / "seeds", place / "data.csv", seed=1, epochs=1).saved
    here = {int(row) for row in first.rows["held_out"][measured(first)]}
    there = {int(row) for row in seeds.rows["held_out"][measured(seeds)]}
    shared = compare([first, seeds]).differences["log_p_x.prior"][1]
    assert shared is not None and shared.size == len(here & there) < len(here)


def measured(run: Run) -> Tensor:
    numbers = run.diagnosis.evidence["prior"].rows
    assert numbers is not None
    return numbers


def test_runs_of_other_data_are_not_paired(table: tuple[Path, Analysis]) -> None:
    first = load_run(table[0] / "run")
    about = {name: dict(entries) for name, entries in first.about.items() if name != "format"
             and name != "command"}  # fmt: skip
    about["data"]["digest"] = "another"
    other = Run(Path("other"), about, results={"diagnosis": first.diagnosis})
    found = compare([first, other])
    assert found.reasons == {"other": "its data are others"} and not found.differences
    assert found.estimates[("held-out", "elbo")][0] == found.estimates[("held-out", "elbo")][1]
    with pytest.raises(pv.InputError, match="at least two runs"):
        compare([first])


def test_effort_is_within_30_mb_of_draws() -> None:
    from pyrovae.command.analysis import EXPORTED, within_limits

    for shape in ((4,), (28, 28), (3, 64, 64), (1_000_000,)):
        effort = within_limits(Effort(), Dataset("x", torch.empty(1, *shape)))
        size = 16 * effort.export_rows * effort.export_draws * int(np.prod(shape))
        assert size <= EXPORTED or effort.export_rows == 1
    assert within_limits(Effort(), Dataset("x", torch.empty(1, 8, 8))) == Effort()
    none = replace(Effort(), export_rows=0)
    assert within_limits(none, Dataset("x", torch.empty(1, 99_999))) == none
