"""All measures of a trained pair, in one call."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, Data, take_rows
from pyrovae.diagnostics.active_units import Collapse, collapse, unit_rates
from pyrovae.diagnostics.advice import advise, change_from, choose
from pyrovae.diagnostics.code_densities import Memorisation, memorisation
from pyrovae.diagnostics.concerns import grouped
from pyrovae.diagnostics.copies import (
    DRAWS,
    HELD_OUT,
    Attributions,
    Copies,
    attributions,
    sample_copies,
)
from pyrovae.diagnostics.decoded_samples import Pictures, pictures
from pyrovae.diagnostics.density_evidence import (
    choose_rows,
    evidence_steps,
    evidence_under,
    shuffle,
)
from pyrovae.diagnostics.draws import Codes, draw_codes, moments
from pyrovae.diagnostics.effort import Effort, left_out_of
from pyrovae.diagnostics.elbo_terms import Surgery, surgery
from pyrovae.diagnostics.gaps import elbo_of_guide, gap_below
from pyrovae.diagnostics.given import check_pair, q_agg_of, read_all, split_rows
from pyrovae.diagnostics.guide_check import GuideCheck, check_guide, lower_first
from pyrovae.diagnostics.holes import Holes, holes
from pyrovae.diagnostics.information import Information, information
from pyrovae.diagnostics.labels import LABELS
from pyrovae.diagnostics.sample_quality import SampleQuality, measure_samples
from pyrovae.diagnostics.simple_densities import Baselines, baselines_of
from pyrovae.diagnostics.two_sample import TwoSample, two_sample_test
from pyrovae.display import Result, draw, table
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import Evidence
from pyrovae.ex_post import ExPostPrior, Inflated, fit_ex_post_prior
from pyrovae.export import ExportedDraws, export_draws
from pyrovae.extras import MissingPackage
from pyrovae.mixture import AggregatedPosterior, Mixture, families
from pyrovae.mixture.families import declared
from pyrovae.models import DiscretizedLogistic, bits_per_dimension
from pyrovae.pairs import (
    Encoded,
    Pair,
    PyroFunction,
    elbo_terms,
    encode_rows,
    measuring,
    observe,
)
from pyrovae.progress import Bar, progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

TERMS = (
    "elbo", "distortion", "rate", "index_code_mi", "marginal_kl",
    "total_correlation", "dimension_wise_kl",
)  # fmt: skip
COLUMNS = (
    "data", "measure", "label", "value", "standard_error", "size", "over", "bound", "low", "high",
    "unresolved",
)  # fmt: skip
STAGES = 2  # of a diagnosis besides the estimates of log p(x), which take most of the time
ELBO_DRAWS = 100  # at each row: their noise is small beside what differs between rows
POINTS = 500  # rows of one or two numbers that are shown
UNADVISED = "No density to sample from is advised, as log p(x) was left out by evidence_rows=0."
NAMES = {"prior": "the model's prior", "q_agg": "raw q_agg", "ex_post": "the ex-post prior"}


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """What was measured of a trained pair; every number with its standard error.

    Args:
        training, held_out: the terms of the ELBO on each data set.
        collapse: activity of the latent units on the training data.
        memorisation: log densities of codes of both data sets.
        ex_post: the density fitted to q_agg after training, and what it was chosen among.
        evidence: held-out log p(x) under ``"prior"``, ``"q_agg"`` and ``"ex_post"``, same draws;
            empty if it was left out.
        aggregated: q_agg of the training data.
        prior: p(z).
        codes: draws from the encodings of the training data.
        pictures: decoded draws from each density, if there are any.
        exported: draws for ArviZ, if there are any.
        information: bounds of I(x; z) in the population.
        holes: shares of draws from prior and q_agg that fall where the other has no mass.
        two_sample: how well a classifier tells codes of the training data from prior draws.
        guide_check: how good the guide is: its calibration, its gaps, its comparison with NUTS.
        bits: held-out bits per dimension under each density, if the data are grey levels of a
            discretised logistic; empty otherwise, and without ``evidence``.
        elbo: held-out ELBO of the rows of ``evidence``, by draws of their own; ``None`` without
            these rows, or if read from a file of an earlier version.
        measured: numbers of the held-out rows that were measured, in rising order: all, or the
            random half that the ex-post prior was not chosen on; ``None`` if read from a file of
            0.1.0.
        sample_quality: decoded samples of each density beside held-out data; ``None`` if it was
            left out or could not be measured.
        quality_refused: why it could not be measured; empty if it was, or was left out.
        baselines: log p(x) of the rows of ``evidence`` under simple densities; ``None`` if they
            were left out or nothing is as simple.
        baselines_refused: why nothing is; empty if something is, or they were left out.
        copies: share of draws from each density that one training row carries; ``None`` if read
            from a file of an earlier version.
        attributions: samples of the ex-post prior with the training rows that carry them, if there
            are pictures.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(200)
    >>> effort = pv.Effort(codes=200, evidence_rows=0, simulations=0, gap_rows=0, samples=0)
    >>> found = pv.diagnose(vae.model, vae.guide, x[:150], held_out=x[150:], effort=effort)
    >>> terms = found.held_out
    >>> abs(terms.elbo.value + terms.distortion.value + terms.rate.value) < 1e-4
    True
    """

    training: Surgery
    held_out: Surgery
    collapse: Collapse
    memorisation: Memorisation
    ex_post: ExPostPrior
    evidence: dict[str, Evidence]
    aggregated: AggregatedPosterior
    prior: dist.Distribution
    codes: Codes
    pictures: Pictures | None
    exported: ExportedDraws | None
    information: Information
    holes: Holes
    two_sample: TwoSample
    guide_check: GuideCheck
    bits: dict[str, Estimate]
    measured: Tensor | None = None
    elbo: Evidence | None = None
    sample_quality: SampleQuality | None = None
    quality_refused: str = ""
    baselines: Baselines | None = None
    baselines_refused: str = ""
    copies: Copies | None = None
    attributions: Attributions | None = None

    @property
    def advice(self) -> str:
        """Where to draw z from, and why; and, if so, that decoded samples speak for another."""
        if not self.evidence:
            return UNADVISED
        names = dict(NAMES)
        if not self._same:
            names["ex_post"] = f"the ex-post prior ({self.ex_post.choice})"
        advice, choice = advise(self.evidence, names, same=self._same), self.recommended
        if choice is None or self.sample_quality is None:
            return advice
        return f"{advice} {self.sample_quality.disagreement(choice, NAMES)}".rstrip()

    @property
    def recommended(self) -> str | None:
        """The key of the density that the advice names; ``None`` if that can't be told."""
        return choose(self.evidence, self._same)

    @property
    def _same(self) -> dict[str, str]:
        """Densities that are others by another name."""
        return {"ex_post": "q_agg"} if self.ex_post.choice == Inflated().name else {}

    @property
    def inference_gap(self) -> Estimate | None:
        """Mean of held-out log p(x) − ELBO, row by row, which is what the guide loses, at least.

        It is measured at all rows of ``evidence``, or else at those where the guide's gaps were.
        """
        if self.elbo is not None and self.evidence:
            return gap_below(self.evidence["prior"], self.elbo)
        gaps = self.guide_check.gaps
        return None if gaps is None else gaps.inference()

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on which numbers should not be trusted, and why.

        What is to be said of several densities is said once, with the numbers of each.
        """
        return tuple(grouped(self.each_concern))

    @property
    def each_concern(self) -> tuple[str, ...]:
        """The same, a sentence for each density."""
        saturated = [s.statement for s in (self.training, self.information) if s.saturated]
        reasons: dict[str, list[str]] = {}
        for data, measure, estimate in self.estimates():
            if estimate.unresolved:
                reason = f"{data} data: {estimate.unresolved}"
                reasons.setdefault(reason, []).append(LABELS[measure])
        unresolved = [f"{reason}: {', '.join(measures)}." for reason, measures in reasons.items()]
        evidence = [
            f"log p(x) under {NAMES.get(name, name)}: {lower_first(concern)}"
            for name, result in self.evidence.items()
            for concern in result.concerns
        ]
        refused = self.quality_refused
        quality = (f"Sample quality could not be measured: {refused}",) if refused else ()
        return (*saturated, *unresolved, *evidence, *self.guide_check.concerns, *quality)

    def summary(self) -> pd.DataFrame:
        """All estimates as a table, one row each.

        Columns: data, measure, its label for people, value, standard_error, size, over, bound, low
        and high, the ends of the 95 % interval, and unresolved, which says why a number can't be
        told, such as "too few rows to tell"; it is empty where it can. A notebook shows four digits
        and leaves out columns without a word.
        """
        from pyrovae.diagnostics.summary import Summary

        rows = [
            (data, measure, LABELS[measure], e.value, e.standard_error, e.size, e.over,
             e.bound or "", *e.interval, e.unresolved)
            for data, measure, e in self.estimates()
        ]  # fmt: skip
        return Summary(rows, columns=list(COLUMNS))

    def __repr__(self) -> str:
        rows = "" if self.measured is None else f"{len(self.measured)} held-out rows, "
        return (
            f"Diagnosis({rows}{sum(1 for _ in self.estimates())} estimates in .summary(), "
            f"{len(self.concerns)} in .concerns; {self.advice})"
        )

    def _repr_html_(self) -> str:
        concerns = "".join(f"<li>{escape(concern)}</li>" for concern in self.concerns)
        numbers = [(f"{data}: {LABELS[key]}", str(e)) for data, key, e in self.estimates()]
        return f"<p>{escape(self.advice)}</p><ul>{concerns}</ul>{table('Diagnosis', numbers)}"

    def plot(self, **options: Any) -> Any:
        """The most telling pictures, and their axes; ``pyrovae.plots`` has all of them.

        Args:
            options: those of ``pyrovae.plots.overview``: ``colour=``, a label for each training
                row, ``fit=`` and ``axes=``.

        Raises:
            InputError: if matplotlib is not installed.
        """
        return draw("overview", self, **options)

    def to_arviz(self) -> Any:
        """Draws for held-out rows as ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x).

        Raises:
            InputError: if they were left out.
        """
        if self.exported is None:
            raise left_out_of("draws for ArviZ", "export_rows")
        return self.exported.to_arviz()

    def estimates(self) -> Iterator[tuple[str, str, Estimate]]:
        """All numbers: the data they are about, the key of the measure, and the estimate."""
        for data, terms, densities in (
            ("training", self.training, self.memorisation.training),
            ("held-out", self.held_out, self.memorisation.held_out),
        ):
            for term in TERMS:
                estimate = getattr(terms, term)
                if estimate is not None:
                    yield data, term, estimate
            for name, estimate in densities.items():
                yield data, f"log_density.{name}", estimate
            yield data, "effective_components", self.memorisation.components[data]
        yield "training", "active_units", self.collapse.active_units
        yield "held-out", "log_density.q_agg_minus_prior", self.memorisation.advantage
        yield "held-out", "information.lower", self.information.lower
        yield "held-out", "information.upper", self.information.upper
        yield "held-out", "holes.prior_outside", self.holes.prior_outside
        yield "held-out", "holes.aggregated_outside", self.holes.aggregated_outside
        yield "training", "two_sample.accuracy", self.two_sample.accuracy
        yield "training", "two_sample.auc", self.two_sample.auc
        for name, result in self.evidence.items():
            yield "held-out", f"log_p_x.{name}", result.mean()
        for name, result in self.evidence.items():
            if name != "prior":
                change = change_from(self.evidence["prior"], result)
                yield "held-out", f"log_p_x.{name}_minus_prior", change
        if self.baselines is not None:
            for name, estimate in self.baselines.means().items():
                yield "held-out", f"baselines.{name}", estimate
            for name, estimate in self.baselines.gains(self.evidence["prior"]).items():
                yield "held-out", f"baselines.prior_minus_{name}", estimate
        for name, estimate in self.bits.items():
            yield "held-out", f"bits_per_dimension.{name}", estimate
        if self.inference_gap is not None:
            yield "held-out", "gaps.inference", self.inference_gap
        if self.sample_quality is not None:
            for measure, name, estimate in self.sample_quality.estimates():
                yield "held-out", f"sample_quality.{measure}.{name}", estimate
        if self.copies is not None:
            for name, estimate in self.copies.shares.items():
                yield ("held-out" if name == HELD_OUT else "training"), f"copies.{name}", estimate
        for name, estimate in self.guide_check.estimates():
            yield "simulated" if name.startswith("calibration.") else "held-out", name, estimate


@torch.no_grad()
@plain()
def diagnose(  # noqa: PLR0913 - a flat front door, where most arguments have defaults
    model: PyroFunction,
    guide: PyroFunction,
    train: Data,
    *,
    held_out: Data,
    validation: Data | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    prior: dist.Distribution | None = None,
    aggregated: AggregatedPosterior | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    """Measure a trained pair: what its latent space holds, and where to sample from.

    Args:
        model, guide: any Pyro pair.
        train: the rows it was trained on, shape ``(N, ...)``; a tuple where the pair takes more
            arguments.
        held_out: rows not seen in training; without them memorisation cannot be told from fit.
        validation: rows on whose codes the ex-post prior is chosen; by default a random half of
            ``held_out``, which is then not used for the measures.
        site: name of the latent site, or of several as one vector.
        observed: name of the observed site to decode; by default the only one.
        data_plate: name of the plate over the data; by default the one with as many rows.
        prior: p(z) to compare with where the model's own is not the same for all rows, as when it
            depends on labels. The terms of the ELBO then use it in place of the model's p(z);
            log p(x) stays that of the model.
        aggregated: q_agg of ``train``, of equal weights, where there is one, as
            :func:`pyrovae.open_aggregated` makes it of files; by default the rows are encoded.
        effort: how much is computed.
        seed: names all draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: if the pair lacks a named site, the data have too few rows, or ``aggregated``
            is not of these rows and this guide.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(200)
    >>> effort = pv.Effort(codes=200, evidence_rows=0, simulations=0, gap_rows=0, samples=0)
    >>> found = pv.diagnose(vae.model, vae.guide, x[:150], held_out=x[150:], effort=effort)
    >>> found.summary().query("measure == 'rate'")["data"].tolist()
    ['training', 'held-out']
    """
    check_seed(seed)
    effort = effort or Effort()
    original = Pair(model, guide, site, observed, data_plate)
    batches = read_all(train, held_out, *([] if validation is None else [validation]))
    pair, train_x, validation_x, test_x, numbers = split_rows(original, batches, seed)
    with measuring(model, guide):
        check_pair(pair, train_x, prior=prior)
        aggregated = q_agg_of(pair, train_x, aggregated, effort)
        unseen, test_q = encode_rows(pair, validation_x).density, encode_rows(pair, test_x)
        guide_check = _check_guide(original, batches[1], test_q, numbers, effort, seed, progress)
        ex_post = fit_ex_post_prior(aggregated, held_out=unseen, seed=seed, progress=progress)
    with measuring(model, guide), _measuring_bar(effort, test_x, len(train_x), progress) as bar:
        prior = pair.prior(train_x) if prior is None else declared(prior)
        size, fitted, encoding = effort.codes, ex_post.distribution, aggregated.encoding
        densities = {"prior": prior, "q_agg": aggregated, "ex_post": fitted}
        codes = draw_codes(encoding, size=size, seed=derived_seed(seed, "training codes"))
        test_codes = _held_out_codes(test_q.density, numbers, effort, seed)
        test_aggregated = AggregatedPosterior(test_q.density)
        memorised = memorisation(codes, test_codes, densities, aggregated, fitted=fitted, seed=seed)
        test, needed = (test_x, test_q, numbers), memorised.needed
        evidence, chosen = evidence_under(pair, *test, densities, needed, effort, seed, bar)
        x, x_q = test_x[chosen], test_q.take(chosen)
        return Diagnosis(
            training=_terms(pair, train_x, codes, aggregated, prior, bar),
            held_out=_terms(pair, test_x, test_codes, test_aggregated, prior, bar, unseen=True),
            collapse=_collapse(encoding, prior, codes, seed),
            memorisation=memorised,
            ex_post=ex_post,
            evidence=evidence,
            aggregated=aggregated,
            prior=prior,
            codes=codes,
            pictures=_pictures(pair, train_x, densities, effort, seed),
            exported=_export(pair, test_x, test_q, numbers, prior, effort, seed),
            information=information(test_codes, test_aggregated, fitted),
            holes=holes(test_codes, aggregated, prior, draws=size, seed=seed),
            two_sample=_compare_with_prior(codes, prior, size=effort.two_sample, seed=seed),
            guide_check=guide_check,
            bits=_bits(pair, x, test_codes, evidence),
            measured=numbers,
            elbo=_elbo(pair, x, x_q, seed) if evidence else None,
            **_samples(pair, train_x, test_x, test_codes, densities, effort, seed),
            **_baselines(pair, batches[0], train_x, x, test_codes, effort, seed),
        )


def _held_out_codes(
    encoding: dist.Distribution, numbers: Tensor, effort: Effort, seed: int
) -> Codes:
    held_out_seed = derived_seed(seed, "held-out codes")
    return draw_codes(encoding, size=effort.codes, rows=numbers, seed=held_out_seed)


def _elbo(pair: Pair, x: Tensor, encoded: Encoded, seed: int) -> Evidence:
    return elbo_of_guide(pair, x, draws=ELBO_DRAWS, encoded=encoded, seed=seed)


def _collapse(
    encoding: dist.Distribution, prior: dist.Distribution, codes: Codes, seed: int
) -> Collapse:
    posterior = moments(encoding, seed=derived_seed(seed, "activity"))
    return collapse(posterior, unit_rates(encoding, prior, codes))


def _check_guide(
    original: Pair,
    held_out: Batch,
    encoded: Encoded,
    numbers: Tensor,
    effort: Effort,
    seed: int,
    progress: bool | None,
) -> GuideCheck:
    order = shuffle(len(numbers), seed)
    return check_guide(
        original,
        take_rows(held_out, numbers[order]),
        encoded.take(order),
        simulations=effort.simulations,
        gap_rows=effort.gap_rows,
        nuts_rows=effort.nuts_rows,
        seed=seed,
        progress=progress,
    )


def _measuring_bar(
    effort: Effort, held_out: Tensor, components: int, progress: bool | None
) -> AbstractContextManager[Bar]:
    steps = STAGES + evidence_steps(effort, len(held_out), components)
    return progress_bar("measuring", steps, progress=progress)


def _pictures(
    pair: Pair,
    x: Tensor,
    densities: dict[str, dist.Distribution],
    effort: Effort,
    seed: int,
) -> Pictures | None:
    if not effort.pictures:
        return None
    is_point = math.prod(observe(pair, x[:2])[1].shape[1:]) <= 2  # takes no more room than a dot
    size = max(effort.pictures, POINTS) if is_point else effort.pictures
    with seeded(seed, "rows to show"):
        shown = x[torch.randperm(len(x))[:size].sort().values]
    return pictures(pair, shown, densities, seed=seed)


def _samples(
    pair: Pair,
    train: Tensor,
    held_out: Tensor,
    codes: Codes,
    densities: dict[str, dist.Distribution],
    effort: Effort,
    seed: int,
) -> dict[str, Any]:
    """What is known of samples: their quality, how many are copies, and of which rows some are."""
    aggregated, draws = cast(Mixture, densities["q_agg"]), min(DRAWS, effort.codes)
    found = {
        "copies": sample_copies(
            aggregated, densities, held_out=codes.z[:, 0], draws=draws, seed=seed
        ),
        **_sample_quality(pair, train, held_out, densities, effort, seed),
    }
    if effort.pictures:
        name = "ex_post"
        found["attributions"] = attributions(
            pair, train, name, densities[name], aggregated, seed=seed
        )
    return found


def _sample_quality(
    pair: Pair,
    train: Tensor,
    held_out: Tensor,
    densities: dict[str, dist.Distribution],
    effort: Effort,
    seed: int,
) -> dict[str, Any]:
    """The quality of decoded samples, or why it can't be measured; neither without samples."""
    if not effort.samples:
        return {}
    try:
        return {
            "sample_quality": measure_samples(
                pair, densities, train, held_out, samples=effort.samples, seed=seed
            )
        }
    except InputError as error:
        return {"quality_refused": str(error)}


def _export(
    pair: Pair,
    x: Tensor,
    encoded: Encoded,
    numbers: Tensor,
    prior: dist.Distribution,
    effort: Effort,
    seed: int,
) -> ExportedDraws | None:
    if not effort.export_rows:
        return None
    chosen = choose_rows(len(numbers), effort.export_rows, seed)
    return export_draws(
        pair,
        x[chosen],
        draws=effort.export_draws,
        encoded=encoded.take(chosen),
        prior=prior,
        numbers=numbers[chosen].tolist(),
        seed=seed,
    )


def _compare_with_prior(
    codes: Codes, prior: dist.Distribution, *, size: int, seed: int
) -> TwoSample:
    """A classifier between one code of each data point and draws from the prior."""
    with seeded(seed, "codes against prior"):
        shuffled = codes.z[torch.randperm(len(codes.z)), 0]  # they lie in the order of the data
        draws = prior.sample(torch.Size([len(shuffled)])).reshape(shuffled.shape)
    try:
        return two_sample_test(shuffled, draws, size=size, seed=seed)
    except MissingPackage as error:  # one number among many, which says in its place what it lacks
        unknown = Estimate(math.nan, math.inf, 0).unresolve(error.remedy)
        return TwoSample(unknown, unknown)


def _terms(
    pair: Pair,
    x: Tensor,
    codes: Codes,
    aggregated: AggregatedPosterior,
    prior: dist.Distribution,
    bar: Bar,
    *,
    unseen: bool = False,
) -> Surgery:
    draws = [elbo_terms(pair, x[codes.index], z)[0] for z in codes.z.unbind(1)]
    terms = surgery(codes, torch.stack(draws, 1), aggregated, prior, unseen=unseen)
    bar.tick()
    return terms


def _baselines(
    pair: Pair, given: Batch, train: Tensor, x: Tensor, codes: Codes, effort: Effort, seed: int
) -> dict[str, Any]:
    """log p(x) of the rows of the evidence under simple densities, or why there is none."""
    if not effort.baseline_rows or not len(x):
        return {}
    if len(given) > 1:
        reason = "the model is given more than the rows, and simple densities are not"
        if given[1].dtype == torch.bool and given[1].shape == given[0].shape:
            reason = "cells are missing, and simple densities take whole rows only"
        return {"baselines_refused": reason}
    with seeded(seed, "rows of the baselines"):
        chosen = torch.randperm(len(train))[: effort.baseline_rows].to(train.device)
    z = codes.z[:2, 0]
    likelihood = pair.decode(x[:2], z)
    found = baselines_of(pair, train[chosen], x, likelihood, units=z.shape[1], seed=seed)
    return {"baselines_refused" if isinstance(found, str) else "baselines": found}


def _bits(
    pair: Pair, x: Tensor, codes: Codes, evidence: dict[str, Evidence]
) -> dict[str, Estimate]:
    """Bits per dimension under each density; empty unless p(x | z) is over grey levels."""
    if not evidence:
        return {}
    likelihood = pair.decode(x[:2], codes.z[:2, 0])
    if not isinstance(families.innermost(likelihood), DiscretizedLogistic):
        return {}
    shape = likelihood.event_shape
    return {name: bits_per_dimension(result.mean(), shape) for name, result in evidence.items()}
