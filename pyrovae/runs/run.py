"""A run folder as an object: the trained pair, its data and its measures, to go on with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import (
    Column,
    Data,
    Dataset,
    TableInfo,
    TableOptions,
    all_rows,
    as_dataset,
    as_frame,
    check_values,
    from_plain,
)
from pyrovae.diagnostics import Diagnosis
from pyrovae.errors import InputError, nearest
from pyrovae.evidence import log_evidence
from pyrovae.ex_post import ExPostPrior
from pyrovae.mixture import AggregatedPosterior, Responsibilities
from pyrovae.models import VAE
from pyrovae.pairs import Pair, PyroFunction, encode, measuring, over_rows
from pyrovae.plots import LABEL_COLOURS, overview
from pyrovae.populations import Novelty, conformal, novelty, ranked
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.runs import manifest as manifests
from pyrovae.runs.foreign_pair import OwnPair, PairOptions, make_pair
from pyrovae.runs.imputation import DRAWS, Imputation, impute
from pyrovae.runs.manifest import Manifest
from pyrovae.runs.recipe import COUNTS, Recipe, rebuild
from pyrovae.runs.scores import Scores
from pyrovae.saving import from_archive, load
from pyrovae.torch_modes import plain
from pyrovae.training import Fit

if TYPE_CHECKING:
    import pandas as pd

PARAMETERS, ROWS, RESULTS = "parameters.pt", "rows.pt", "results.pt"
CODES, SAMPLES, DATA = "codes.csv", "samples.npy", "data.pt"
SAMPLE_TABLE = "samples.csv"
PARTS = ("train", "validation", "held_out")
#: The densities over codes: what a user calls them, and their keys in a diagnosis.
SOURCES = {"prior": "prior", "ex-post": "ex_post", "q_agg": "q_agg"}
CALLED = {"ex_post": "ex-post", "expost": "ex-post", "aggregated": "q_agg", "posterior": "q_agg"}
BLOCK = 4096  # codes that go through the decoder at once


class Run:
    """A finished run, read from its folder as far as it is used; :func:`load_run` makes one.

    A file is read when it is first needed, and refused if it is no longer the one that the run has
    written. The data are read from where they were; the folder itself has none of them, unless they
    came from no file.

    Args:
        folder: where the run is.
        manifest: the content of its ``run.toml``.
        pair: the user's own pair, or its factory, if the run is of one.
        data: the data set, or the file in which it is now.
        results: the content of ``results.pt``, if it is at hand.

    Attributes:
        folder: the same.
        about: the content of ``run.toml``.
        options: the options of the command, by name.

    >>> import pyrovae as pv
    >>> run = pv.load_run("pyrovae-report")  # doctest: +SKIP
    >>> run.score("new.csv").evidence.mean()  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        pair: str | Callable[[Dataset], Any] | OwnPair | None = None,
        data: str | Path | Dataset | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.about = manifest
        self.options = dict(manifest["options"])
        self._given_pair, self._given_data = pair, data
        if results is not None:
            self._results = dict(results)

    def __repr__(self) -> str:
        about = self.about["data"]
        return f"Run({str(self.folder)!r}, {about['name']}, {about['rows']:,} rows)"

    # -- the data --------------------------------------------------------------------------------

    @cached_property
    def data(self) -> Dataset:
        """All rows as they are in the file.

        Raises:
            InputError: if the file is no longer there, or has other numbers than it had.
        """
        about, given = self.about["data"], self._given_data
        source = about.get("source") if given is None else given
        if source is None:
            held = load(self._file(DATA))
            mask, ids = held.get("obs_mask"), held.get("ids")
            data = Dataset(
                about["name"], held["values"], held["columns"], held["labels"], mask, ids,
                self.table, label_names=self.label_names,
            )  # fmt: skip
        else:
            layout = None if isinstance(source, Dataset) else self._layout
            data = as_dataset(source, layout, **self._form)
        if manifests.digest_of_data(data) != about["digest"]:
            raise InputError(
                f"expected the data of this run, {about['rows']:,} rows as they were; got other "
                f"numbers or names in {str(source)!r}, {len(data):,} rows of shape "
                f"{data.event_shape}. Put the file back as it was, or name it with data=."
            )
        return data

    @property
    def _form(self) -> dict[str, Any]:
        """What the command was told of the form of the data."""
        return {name: self.options[name] for name in ("channels", "layer") if name in self.options}

    @property
    def channels(self) -> str | None:
        """Where the data had the channels of images, ``"first"``, as all rows here, or last."""
        channels: str | None = self.about["data"].get("channels")
        return channels

    @property
    def rows(self) -> dict[str, Tensor]:
        """The numbers of the rows of ``data`` by part, training, validation and held-out."""
        return {name: self._parts[name] for name in PARTS}

    @property
    def train(self) -> Data:
        """The training rows as the pair takes them; grey values are drawn as 0 or 1."""
        return self._part("train")

    @property
    def validation(self) -> Data:
        """Rows for early stopping and for choosing the ex-post prior, as the pair takes them."""
        return self._part("validation")

    @property
    def held_out(self) -> Data:
        """The rows that measures are on, as the pair takes them."""
        return self._part("held_out")

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns, if the data are a table with names."""
        columns: tuple[str, ...] | None = self._parts["columns"]
        return columns

    @property
    def table(self) -> TableInfo | None:
        """What each column of a table holds, and the classes of its labels, if it is one."""
        held = self._parts.get("table")
        return None if held is None else from_plain(held)

    @property
    def labels(self) -> Tensor | None:
        """The number of each row's class, by row of ``data``, if there are labels.

        What the classes are called stands in ``label_names``.
        """
        labels: Tensor | None = self._parts.get("labels")
        return labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the classes are called, in the order of their numbers, if they have names."""
        known = self.table.label_names if self.table is not None else ()
        return tuple(self._parts.get("label_names", known))

    @property
    def classes(self) -> Tensor | None:
        """The labels of the training rows, to colour their codes by."""
        return None if self.labels is None else self.labels[self.rows["train"]]

    @property
    def _layout(self) -> TableOptions | None:
        """How the table was read, as the options of the command say it."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.options.items()
            if name in TableOptions.__dataclass_fields__
        }
        return TableOptions(**given) if given else None

    @property
    def location(self) -> Tensor:
        """What the encoder subtracts of a row, means of training rows, in the data's units."""
        return cast(Tensor, self._parts["location"])

    @property
    def scale(self) -> Tensor:
        """What the encoder divides by, standard deviations of training rows."""
        return cast(Tensor, self._parts["scale"])

    @cached_property
    def _parts(self) -> dict[str, Any]:
        held: dict[str, Any] = load(self._file(ROWS))
        return held

    def _part(self, name: str) -> Data:
        return self._arguments(self.data.rows(self.rows[name]), PARTS.index(name))

    def _arguments(self, part: Dataset, number: int) -> Data:
        """Rows as the pair takes them."""
        if self._recipe is not None:
            return self._recipe.as_measured(part, number)
        return self._own.arguments(part.single())

    # -- what was trained and measured -----------------------------------------------------------

    @cached_property
    def vae(self) -> VAE:
        """The trained VAE.

        Raises:
            InputError: if the run is of the user's own pair, or its files are not as they were.
        """
        recipe = self._recipe
        if recipe is None:
            raise InputError(
                "expected a run of a VAE that pyrovae has built; got one of a pair of your own. "
                "Use its model and guide."
            )
        try:
            state = from_archive(self._file(PARAMETERS).read_bytes())
        except ValueError as error:
            raise self._unlike(PARAMETERS, str(error)) from error
        return rebuild(recipe, state, lambda: cast(Tensor, self.train))

    @property
    def model(self) -> PyroFunction:
        """The generative function of the trained pair."""
        return self.vae.model if self._recipe is not None else self._own.model

    @property
    def guide(self) -> PyroFunction:
        """The variational function of the trained pair."""
        return self.vae.guide if self._recipe is not None else self._own.guide

    @property
    def diagnosis(self) -> Diagnosis:
        """All measures.

        Raises:
            InputError: if they could not be written, as those of a guide that is no table of
                numbers.
        """
        return cast(Diagnosis, self._result("diagnosis"))

    @property
    def fit(self) -> Fit | None:
        """How training went; ``None`` for a pair that was trained elsewhere."""
        return cast("Fit | None", self._result("fit"))

    @property
    def facts(self) -> dict[str, str]:
        """What the report says of the run, by name."""
        return cast("dict[str, str]", self._result("facts"))

    @property
    def aggregated(self) -> AggregatedPosterior:
        """q_agg of the training rows."""
        return self.diagnosis.aggregated

    @property
    def ex_post(self) -> ExPostPrior:
        """The density fitted to q_agg after training."""
        if "ex_post" in self._results:
            return cast(ExPostPrior, self._results["ex_post"])
        return self.diagnosis.ex_post

    @property
    def recommended(self) -> str | None:
        """The density to sample from, as ``sample`` takes it; ``None`` if that can't be told."""
        return self.about["samples"]["recommended"] or None

    @property
    def drawn_from(self) -> str:
        """The density that ``sample`` draws from by default: the recommended one, or ex-post."""
        source: str = self.about["samples"]["source"]
        return source

    def plot(self, **options: Any) -> Any:
        """The most telling pictures, codes in the colours of their labels, and their axes.

        Args:
            options: those of ``pyrovae.plots.overview``: ``colour=`` and ``axes=``.

        Raises:
            InputError: if matplotlib is not installed.
        """
        usual = {"fit": self.fit, "colour": colouring(self.classes, self.label_names)}
        return overview(self.diagnosis, **(usual | options))

    # -- what can be done with it ----------------------------------------------------------------

    @torch.no_grad()
    @plain()
    def sample(
        self, n: int, source: str | None = None, *, mean: bool = False, seed: int = 0
    ) -> Tensor:
        """New rows in the data's own units: codes from a density, and a row from p(x | z) of each.

        Counts are drawn given the totals of training rows, which are chosen at random; a pair of
        several arguments is given those of such rows.

        Args:
            n: number of rows.
            source: where codes are drawn: ``"ex-post"``, ``"prior"``, the model's own, or
                ``"q_agg"``; by default from the density that the run's advice names, and from the
                ex-post prior where it can't tell.
            mean: take the mean of p(x | z) in place of a draw from it.
            seed: names the draws.

        Returns:
            shape ``(n, ...)``.

        Raises:
            InputError: for a number of rows below 1, or another density.
        """
        check_seed(seed)
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise InputError(f"expected a number of rows ≥ 1; got {n!r}. Give 1000, say.")
        density = self._density(self.drawn_from if source is None else source)
        with seeded(seed, "codes of new rows"), measuring(self.model, self.guide):
            z = density.sample(torch.Size([int(n)])).reshape(int(n), -1)
        with seeded(seed, "new rows"):
            likelihoods = self._likelihoods(z)
            rows = torch.cat([p.mean if mean else p.sample() for p in likelihoods])
        if bool(rows.isnan().any()):
            raise InputError(
                "expected a likelihood that has a mean; got a categorical one, or one without. "
                "Draw the rows, without mean=."
            )
        return rows

    def as_table(self, rows: Tensor) -> pd.DataFrame:
        """Rows as a pandas table, with the names, categories, dates and truth values of the data.

        Args:
            rows: in the data's units, shape ``(M, C)``, such as those of :meth:`sample` or of
                ``decode(z).sample()``; NaN for a missing cell.

        Raises:
            InputError: if the run's data are no table.
        """
        return as_frame(rows.double().numpy(), self._kinds)

    def encode(self, new: Any) -> dist.Distribution:
        """q(z | x) of new rows, batch shape ``(M,)``, event shape ``(D,)``.

        Args:
            new: rows in the data's own units: a file, a pandas table, an array or a tensor. The
                columns of a table are found by their names.

        Raises:
            InputError: for rows unlike those of the run, naming the first.
        """
        return self._encode(self._new(new))

    def impute(
        self, new: Any = None, *, draws: int = DRAWS, seed: int = 0, progress: bool | None = None
    ) -> Imputation:
        """The missing cells of rows, filled with what the others say of them.

        A number is filled by its mean under p(x | the cells that are there), a text or truth value
        by the most probable one: ``.table`` is the filled table, ``.cells`` has the standard errors
        and how far off each cell may be, see :class:`~pyrovae.runs.imputation.Imputation`.

        Args:
            new: as :meth:`encode`; by default all rows of the run's own data.
            draws: of codes for each row.
            seed: names all draws.
            progress: show a progress bar; by default if stderr is a terminal.

        Raises:
            InputError: as :meth:`encode`, for whole rows, or if the run had no missing cells.
        """
        recipe = self._recipe
        if recipe is None or not recipe.missing:
            raise InputError(
                "expected a run on a table with missing cells, to fill them; got one on data "
                "without, whose encoder has never seen a row with a missing cell. Train on a table "
                "that has some."
            )
        data = self.data if new is None else self.read(new)
        batch = all_rows(recipe.as_measured(data, 3))
        pair, (rows,) = over_rows(self._pair, batch)
        mask = batch[1]
        if mask.all():
            raise InputError(
                f"expected rows with missing cells, to fill them; got {len(mask):,} whole ones. "
                "Take them as they are, or give missing cells as NaN."
            )
        with (
            measuring(self.model, self.guide),
            progress_bar("imputation", int((~mask.all(1)).sum()), progress=progress) as bar,
        ):
            return impute(
                pair, rows, self._decoded, batch[0], mask, self._kinds, draws=draws, seed=seed,
                tick=bar.tick,
            )  # fmt: skip

    @property
    def _kinds(self) -> tuple[Column, ...]:
        """What each column of the table holds; numbers where nothing else is known."""
        if self.table is not None:
            return self.table.columns
        shape = self.about["data"]["shape"]
        if len(shape) != 1:
            raise InputError(
                f"expected a run on a table; got one on rows of shape {tuple(shape)}. Take the "
                "rows as they are."
            )
        names = self.columns or tuple(map(str, range(shape[0])))
        return tuple(Column(name, "real") for name in names)

    def _decoded(self, z: Tensor) -> dist.Distribution:
        return self.vae.decode(z.to(self._dtype))

    def read(self, new: Any) -> Dataset:
        """New rows in the columns of the run; a table may also have those that the run left out.

        Args:
            new: as :meth:`encode`.

        Raises:
            InputError: as :meth:`encode`.
        """
        options = self._layout
        if isinstance(new, Dataset) and new.info not in (None, self.table):
            new = new.frame()  # it may have numbered texts otherwise
        if options is not None:  # names of columns are known; how a file is laid out is not
            known = TableOptions(
                index=options.index, header=options.header, delimiter=options.delimiter
            )
            options = known if isinstance(new, str | Path) else None
        form, is_file = self._form, isinstance(new, str | Path)
        if not hasattr(new, "layers") and not (is_file and Path(new).suffix.lower() == ".h5ad"):
            form.pop("layer", None)
        shape = self.about["data"]["shape"]
        data = self._like_the_data(as_dataset(new, options, self.table, **form, like=shape))
        if data.obs_mask is not None and not (self._recipe is not None and self._recipe.missing):
            row, column = (~data.obs_mask).nonzero()[0].tolist()
            raise InputError(
                f"expected rows without missing cells, as those that the run was trained on; got "
                f"one in {data.name}, {data.place((row, column))}. Leave such rows out, or train "
                "on data with missing cells."
            )
        return data

    def encode_part(self, name: str) -> dist.Distribution:
        """q(z | x) of ``"train"``, ``"validation"`` or ``"held_out"``, the run's own rows."""
        return self._encode(self._part(name))

    def nearest(self, new: Any, k: int = 5) -> Responsibilities:
        """The training rows whose encodings explain the codes of new rows best.

        Args:
            new: as :meth:`encode`.
            k: how many for each row.

        Returns:
            ``index``, numbers of rows of ``data``, and ``weight``, q(n | z) at the mean z of
            q(z | x), shape ``(M, k)``.

        Raises:
            InputError: as :meth:`encode`.
        """
        found = self.aggregated.nearest(self.encode(new).mean, k)
        return Responsibilities(self.rows["train"][found.index], found.weight)

    def decode(self, z: Tensor, *, total: Tensor | None = None) -> dist.Distribution:
        """p(x | z) of codes, in the data's own units.

        Args:
            z: codes, shape ``(S, D)``.
            total: of each row, shape ``(S,)``, for counts.

        Raises:
            InputError: for codes of another width, or for a pair of the user's own whose model
                takes more than rows.
        """
        if self._recipe is not None:
            return self.vae.decode(z.to(self._dtype), total=total)
        batch = all_rows(self.train)
        if len(batch) > 1 or total is not None:
            raise InputError(
                "expected a model of rows alone, to decode codes; got one of "
                f"{len(batch)} arguments, or totals. Run the model itself, or draw with sample()."
            )
        pair = self._pair
        with torch.no_grad(), measuring(pair.model, pair.guide):
            return pair.decode(batch[0][torch.zeros(len(z), dtype=torch.long)], z)

    def score(self, new: Any, source: str = "prior", *, seed: int = 0) -> Scores:
        """log p(x) of new rows, and a calibrated p-value of each against novelty.

        log p(x) is estimated as it was for the held-out rows that were measured, and ranked among
        theirs, see :class:`~pyrovae.runs.scores.Scores`.

        Args:
            new: as :meth:`encode`.
            source: the density in the prior's place: ``"prior"``, the model's own, ``"ex-post"``
                or ``"q_agg"``.
            seed: names all draws.

        Raises:
            InputError: as :meth:`encode`, or if log p(x) was not measured in the run.
        """
        key, measured = self._key(source), self.diagnosis.evidence
        if not measured:
            raise InputError(
                "expected a run with log p(x) of held-out rows, to rank new ones among; got one "
                "without. Analyze the data again."
            )
        pair, known = self._pair, measured[key]
        evidence = log_evidence(
            pair.model,
            pair.guide,
            self._new(new),
            method=self.options.get("method", "auto"),
            draws=known.draws,
            prior=None if key == "prior" else self._density(source),
            site=pair.site,
            observed=pair.observed,
            data_plate=pair.data_plate,
            seed=derived_seed(seed, "log p(x) of new rows"),
        )
        p_value = conformal(evidence.values, known.values, seed=seed)
        return Scores(evidence, p_value, source, len(known.values))

    def anomaly(self, new: Any, source: str = "prior", *, seed: int = 0) -> Tensor:
        """The p-values of :meth:`score`: how rare so low a log p(x) is among rows like the data.

        Args:
            new, source, seed: as :meth:`score`.

        Returns:
            shape ``(M,)``.
        """
        return self.score(new, source, seed=seed).p_value

    def novelty(
        self,
        new: Any,
        *,
        score: Literal["log_p_x", "regret", "codes"] = "log_p_x",
        level: float = 0.1,
        seed: int = 0,
    ) -> Novelty:
        """Which of new rows are unlike the data, at a false discovery rate; see `pyrovae.novelty`.

        Args:
            new: as :meth:`encode`.
            score: ``"log_p_x"``, as :meth:`score` ranks it, beside what the run has measured;
                ``"regret"``, which takes some hundred steps for each new and each held-out row; or
                ``"codes"``, the density of the means of q(z | x) under the ex-post prior.
            level: the false discovery rate of what is found.
            seed: names all draws.

        Raises:
            InputError: as :meth:`score`, or for another score.
        """
        if score == "log_p_x":
            found = self.score(new, seed=seed).evidence.values
            known = self.diagnosis.evidence["prior"].values
            return ranked(found, known, score, level=level, seed=seed)
        if score == "codes":
            known = self.encode_part("held_out").mean
            density, codes = self.ex_post.distribution, self.encode(new).mean
            return novelty(density, codes, calibration=known, level=level, seed=seed)
        pair = self._pair
        sites: dict[str, Any] = {
            "site": pair.site, "observed": pair.observed, "data_plate": pair.data_plate,
        }  # fmt: skip
        return novelty(
            (pair.model, pair.guide), self._new(new), calibration=self.held_out, score=score,
            level=level, seed=seed, **sites,
        )  # fmt: skip

    # -- behind them -----------------------------------------------------------------------------

    def _encode(self, rows: Data) -> dist.Distribution:
        pair = self._pair
        return encode(
            pair.guide, rows, site=pair.site, data_plate=pair.data_plate, model=pair.model
        )

    def _key(self, source: str) -> str:
        if source not in SOURCES:
            hint = nearest(source, SOURCES, CALLED) or " Choose one of them."
            raise InputError(f"expected one of {', '.join(SOURCES)}; got {source!r}.{hint}")
        return SOURCES[source]

    def _density(self, source: str) -> dist.Distribution:
        key = self._key(source)
        if key == "ex_post":
            return self.ex_post.distribution
        return self.diagnosis.prior if key == "prior" else self.aggregated

    def _likelihoods(self, z: Tensor) -> list[dist.Distribution]:
        """p(x | z), block by block; of rows with the arguments of training rows drawn at random."""
        recipe, blocks = self._recipe, z.split(BLOCK)
        if recipe is not None and recipe.likelihood != COUNTS:
            return [self.vae.decode(block.to(self._dtype)) for block in blocks]
        train = self.train
        chosen = torch.randint(len(self.rows["train"]), (len(z),)).split(BLOCK)
        if recipe is not None:
            totals = cast(Tensor, train).flatten(1).sum(1)
            parts = zip(blocks, chosen, strict=True)
            return [self.vae.decode(b.to(self._dtype), total=totals[rows]) for b, rows in parts]
        pair, (x,) = over_rows(self._pair, train)
        with measuring(self.model, self.guide):
            return [pair.decode(x[rows], b) for b, rows in zip(blocks, chosen, strict=True)]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.decoder.parameters()).dtype

    @cached_property
    def _pair(self) -> Pair:
        about = self.about["model"]
        if self._recipe is not None:
            return Pair(self.model, self.guide)
        return Pair(
            self.model, self.guide, _site(about), about.get("observed"), about.get("data_plate")
        )

    @cached_property
    def _recipe(self) -> Recipe | None:
        """How the VAE was built; ``None`` for a pair of the user's own."""
        about = self.about["model"]
        return None if about["kind"] == "pair" else Recipe.from_table(about)

    @cached_property
    def _own(self) -> OwnPair:
        """The user's own pair, which is imported only if the user has named it."""
        about, given = self.about["model"], self._given_pair
        if isinstance(given, OwnPair):
            return given
        if given is None:
            raise InputError(
                f"expected the factory of the run's own pair, {about.get('factory')}, which is "
                "code and isn't run unless you name it; got none. Name it with pair=."
            )
        options = PairOptions(
            given, False, self._file(PARAMETERS), _site(about), about.get("observed"),
            about.get("data_plate"),
        )  # fmt: skip
        train = self.data.rows(self.rows["train"]).single()
        with seeded(self.options["seed"], "own pair"):
            return make_pair(options, train)

    def _new(self, new: Any) -> Data:
        """New rows as the pair takes them."""
        data = self.read(new)
        check_values(data, None if self._recipe is None else self._recipe.likelihood)
        if self._recipe is not None and (known := self._recipe.categories) is not None:
            check_categories(data, known)
        return self._arguments(data, 3)

    def _like_the_data(self, new: Dataset) -> Dataset:
        """Rows with the columns of the run in its order.

        Raises:
            InputError: if there are others, or the rows have another shape.
        """
        shape = tuple(self.about["data"]["shape"])
        if new.columns is not None and self.columns is not None:
            missing = [name for name in self.columns if name not in new.columns]
            others = [name for name in new.columns if name not in self.columns]
            if missing or others:
                raise InputError(
                    f"expected the columns of the run in {new.name}; got "
                    f"{_named('none called', missing)}{' and ' if missing and others else ''}"
                    f"{_named('others,', others)}. Give the columns {_short(self.columns)}."
                )
            order = torch.tensor([new.columns.index(name) for name in self.columns])
            mask = None if new.obs_mask is None else new.obs_mask[:, order]
            new = replace(new, values=new.values[:, order], columns=self.columns, obs_mask=mask)
        if new.event_shape != shape or not len(new):
            raise InputError(
                f"expected rows of shape {shape}, as the run's data; got {len(new):,} of shape "
                f"{new.event_shape} in {new.name}. Give an array of shape (M, ...)."
            )
        return new

    def _result(self, name: str) -> Any:
        if name not in self._results:
            reason = dict(self.about.get("left_out", {})).get(name, "none was written")
            raise InputError(f"expected the {name} in {str(self.folder)!r}; got none: {reason}")
        return self._results[name]

    @cached_property
    def _results(self) -> dict[str, Any]:
        results: dict[str, Any] = load(self._file(RESULTS))
        return results

    def _file(self, name: str) -> Path:
        """The path of a file of the run, checked to be the one that the run has written."""
        path, digest = self.folder / name, self.about["files"].get(name)
        try:
            if digest is not None and manifests.digest_of_file(path) != digest:
                raise self._unlike(name, "it has been changed")
        except OSError as error:
            raise self._unlike(name, error.strerror or "unreadable") from error
        return path

    def _unlike(self, name: str, reason: str) -> InputError:
        return InputError(
            f"expected {name} in {str(self.folder)!r} as the run has written it; got another "
            f"one: {reason}. Take the folder as it was written, and load the run again."
        )


def colouring(labels: Tensor | None, names: Sequence[str]) -> Any:
    """What colours codes: their classes by name, or by number if a legend can't hold all names."""
    if labels is None or not 0 < len(names) <= len(LABEL_COLOURS):
        return labels
    return np.array(names)[labels.numpy()]


def load_run(
    folder: str | Path,
    *,
    pair: str | Callable[[Dataset], Any] | None = None,
    data: str | Path | Dataset | None = None,
) -> Run:
    """A run that ``pyrovae analyze`` has finished, to go on with.

    ``run.sample(1000)``, ``run.encode(new)``, ``run.score(new)``, and ``run.vae``,
    ``run.diagnosis`` and so on, see :class:`Run`. Nothing in the folder is run or unpickled. A pair
    of the user's own is code that stands elsewhere: it is imported only if it is named here.

    Args:
        folder: the ``--out`` of the command.
        pair: the factory of the user's own pair, ``"package.module:factory"`` or the function,
            which is called with the training data. Pyro's parameter store has its parameters then.
        data: the data set, or the file in which it is now, if it has been moved.

    Raises:
        InputError: if it is no folder of a finished run, it is damaged, or ``pair`` is given for a
            run without one.

    >>> import pyrovae as pv
    >>> run = pv.load_run("pyrovae-report")  # doctest: +SKIP
    >>> run.sample(1000).shape  # doctest: +SKIP
    torch.Size([1000, 8, 8])
    """
    path = Path(folder)
    manifest = manifests.read(path)
    if pair is not None and manifest["model"]["kind"] != "pair":
        raise InputError(
            f"expected no pair= for {str(path)!r}, whose VAE is in the folder; got {pair!r}. "
            "Leave it out."
        )
    return Run(path, manifest, pair=pair, data=data)


def check_categories(data: Dataset, known: int) -> None:
    """Raise if new rows have a category that the training data did not have."""
    if int(data.values.max()) >= known:
        raise InputError(
            f"expected categories 0 to {known - 1}, as the run's data; got "
            f"{int(data.values.max())} in {data.name}. Leave such rows out."
        )


def _site(about: Mapping[str, Any]) -> str | tuple[str, ...]:
    site = about.get("site", "z")
    return tuple(site) if isinstance(site, list) else site


def _named(words: str, names: Sequence[str]) -> str:
    return f"{words} {_short(names)}" if names else ""


def _short(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if names[5:] else "")
