"""Everything that is measured of a trained pair, in one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Data, all_rows, take_rows
from pyrovae.diagnostics.active_units import Collapse, collapse, unit_rates
from pyrovae.diagnostics.advice import advise, change_from
from pyrovae.diagnostics.code_densities import Memorisation, memorisation
from pyrovae.diagnostics.decoded_samples import Pictures, pictures
from pyrovae.diagnostics.draws import Codes, draw_codes, moments
from pyrovae.diagnostics.elbo_terms import Surgery, surgery
from pyrovae.diagnostics.guide_check import GuideCheck, check_guide
from pyrovae.diagnostics.holes import Holes, holes
from pyrovae.diagnostics.information import Information, information
from pyrovae.diagnostics.two_sample import TwoSample, two_sample_test
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import BLOCK, Evidence, compare_priors, left_out
from pyrovae.ex_post import ExPostPrior, fit_ex_post_prior
from pyrovae.export import Labelled, label
from pyrovae.isolation import plain
from pyrovae.mixture import AggregatedPosterior, families
from pyrovae.mixture.families import declared
from pyrovae.models import DiscretizedLogistic, bits_per_dimension
from pyrovae.pairs import Pair, PyroFunction, encode, measuring, over_rows
from pyrovae.progress import Bar, progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded

if TYPE_CHECKING:
    import pandas as pd

TERMS = (
    "elbo", "distortion", "rate", "index_code_mi", "marginal_kl",
    "total_correlation", "dimension_wise_kl",
)  # fmt: skip
COLUMNS = (
    "data", "measure", "value", "standard_error", "size", "over", "bound", "low", "high",
    "unresolved",
)  # fmt: skip
STAGES = 2  # of a diagnosis beside the estimates of log p(x), which take most of the time
MANY_PAIRS = 1e8  # of datum and code: minutes of a small guide
#: What each number of an `Effort` has to be at least, and whether it may be 0.
LEAST = {
    "codes": (20, False),  # two of as many data points as a classifier needs
    "evidence_rows": (2, True),
    "evidence_draws": (2, False),
    "export_rows": (1, True),
    "export_draws": (1, False),
    "pictures": (1, True),
    "two_sample": (10, False),
    "simulations": (100, True),
    "gap_rows": (2, True),
    "nuts_rows": (1, True),
}
UNADVISED = (
    "No density to sample from is advised: log p(x) under them was left out, by evidence_rows=0."
)
NAMES = {"prior": "the model's prior", "q_agg": "raw q_agg", "ex_post": "the ex-post prior"}


@dataclass(frozen=True)
class Effort:
    """How much is computed; more of it makes standard errors smaller.

    Where fewer data points are there than are asked for, all of them are taken; every estimate says
    its size.

    Args:
        codes: latent draws, at least, for the terms of the ELBO and the density of codes: two at
            each of as many data points, or more where the data points are fewer.
        evidence_rows: held-out data points whose log p(x) is estimated; 0 for none, and then there
            is no advice on where to sample from.
        evidence_draws: importance draws for each of them.
        export_rows, export_draws: data points and draws handed to ArviZ; no rows for no export.
        pictures: rows of data, and as many draws decoded from each density over z; 0 for none.
        two_sample: codes, each of a data point of its own, and as many draws from the prior, that a
            classifier has to tell apart.
        simulations: data points to simulate for the calibration of the guide; 0 for none.
        gap_rows: held-out data points for which the guide is held against the best of its family;
            0, the default, for none: 16 take about half a minute.
        nuts_rows: held-out data points for which it is held against NUTS; 0 for none: 4 take
            minutes.

    Raises:
        InputError: for a number that is not whole, or too small to estimate anything with.
    """

    codes: int = 8192
    evidence_rows: int = 500
    evidence_draws: int = 500
    export_rows: int = 100
    export_draws: int = 200
    pictures: int = 36
    two_sample: int = 1000
    simulations: int = 500
    gap_rows: int = 0
    nuts_rows: int = 0

    def __post_init__(self) -> None:
        for name, (least, none) in LEAST.items():
            value = getattr(self, name)
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not whole or not (value >= least or (none and value == 0)):
                or_none = ", or 0 to leave that part out" if none else ""
                raise InputError(
                    f"expected {name} of at least {least}, a whole number{or_none}; got {value!r}."
                )

    @property
    def of_guide(self) -> dict[str, int]:
        """What is spent on the guide."""
        names = ("simulations", "gap_rows", "nuts_rows")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a trained pair; every number with its standard error.

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
        labelled: draws for ArviZ, if there are any.
        information: I(x; z) of the population, from below and from above.
        holes: shares of draws from prior and q_agg that fall where the other has no mass.
        two_sample: how well a classifier tells codes of the training data from prior draws.
        guide_check: how good the guide is: its calibration, its gaps, its comparison with NUTS.
        bits: held-out bits per dimension under each density, if the data are grey levels of a
            discretised logistic; empty otherwise, and without ``evidence``.
        measured: numbers of the held-out rows that the measures speak of, rising: all, or the
            random half that the ex-post prior was not chosen on; not known of a file of 0.1.0.
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
    labelled: Labelled | None
    information: Information
    holes: Holes
    two_sample: TwoSample
    guide_check: GuideCheck
    bits: dict[str, Estimate]
    measured: Tensor | None = None

    @property
    def advice(self) -> str:
        """One sentence that says where to draw z from, and why."""
        if not self.evidence:
            return UNADVISED
        return advise(
            self.evidence, NAMES | {"ex_post": f"the ex-post prior ({self.ex_post.choice})"}
        )

    @property
    def concerns(self) -> tuple[str, ...]:
        """What should not be believed of the numbers, and why, a sentence each."""
        saturated = [s.statement for s in (self.training, self.information) if s.saturated]
        reasons: dict[str, list[str]] = {}
        for data, measure, estimate in self._estimates():
            if estimate.unresolved:
                reasons.setdefault(f"{data} data: {estimate.unresolved}", []).append(measure)
        untold = [f"{reason}: {', '.join(measures)}." for reason, measures in reasons.items()]
        evidence = [
            f"log p(x) under {NAMES.get(name, name)}: {concern[0].lower()}{concern[1:]}"
            for name, result in self.evidence.items()
            for concern in result.concerns()
        ]
        return (*saturated, *untold, *evidence, *self.guide_check.concerns)

    def summary(self) -> pd.DataFrame:
        """All estimates as a table, a row each.

        Columns: data, measure, value, standard_error, size, over, bound, low and high, the ends of
        the 95 % interval, and unresolved, which says why a number can't be told, as "too few rows
        to tell"; it is empty where it can.
        """
        import pandas as pd

        rows = [
            (data, measure, e.value, e.standard_error, e.size, e.over, e.bound or "", *e.interval,
             e.unresolved)
            for data, measure, e in self._estimates()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def to_arviz(self) -> Any:
        """Draws for held-out rows as ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x).

        Raises:
            InputError: if they were left out.
        """
        if self.labelled is None:
            raise left_out_of("draws for ArviZ", "export_rows")
        return self.labelled.to_arviz()

    def _estimates(self) -> Iterator[tuple[str, str, Estimate]]:
        for data, terms, densities in (
            ("training", self.training, self.memorisation.training),
            ("held-out", self.held_out, self.memorisation.held_out),
        ):
            for term in TERMS:
                estimate = getattr(terms, term)
                if estimate is not None:
                    yield data, term, estimate
            for name, estimate in densities.items():
                yield data, f"log {name} of codes", estimate
            yield data, "effective components at codes", self.memorisation.components[data]
        yield "training", "active_units", self.collapse.active_units
        yield "held-out", "log q_agg − log prior", self.memorisation.advantage
        yield "held-out", "I(x; z) from below", self.information.lower
        yield "held-out", "I(x; z) from above", self.information.upper
        yield "held-out", "share of prior draws outside q_agg", self.holes.prior_outside
        yield "held-out", "share of codes outside the prior", self.holes.aggregated_outside
        yield "training", "accuracy, codes against prior", self.two_sample.accuracy
        yield "training", "AUC, codes against prior", self.two_sample.auc
        for name, result in self.evidence.items():
            yield "held-out", f"log p(x) | {name}", result.mean()
        for name, result in self.evidence.items():
            if name != "prior":
                change = change_from(self.evidence["prior"], result)
                yield "held-out", f"log p(x) | {name} − prior", change
        for name, estimate in self.bits.items():
            yield "held-out", f"bits per dimension | {name}", estimate
        for name, estimate in self.guide_check.estimates():
            yield "simulated" if name == "calibrated units" else "held-out", name, estimate


def left_out_of(part: str, setting: str) -> InputError:
    """What to raise where a part of a diagnosis is asked for that an effort of 0 left out."""
    return InputError(
        f"expected a diagnosis with {part}; got one of an effort with {setting}=0. Diagnose with "
        f"effort=pyrovae.Effort({setting}=100)."
    )


@torch.no_grad()
@plain()
def diagnose(  # noqa: PLR0913 - a flat front door; what the pair's sites are called has defaults
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
        observed: name of the observed site to decode; found by itself if there is just one.
        data_plate: name of the plate over the data; found by its number of rows if not given.
        prior: p(z) to compare with where the model's own is not one density for all rows, as
            where it depends on labels. The terms of the ELBO are then with it in the place of the
            model's p(z); log p(x) stays that of the model.
        effort: how much is computed.
        seed: names all draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: if the pair lacks the sites named, or the data have too few rows.
    """
    check_seed(seed)
    effort = effort or Effort()
    whole = Pair(model, guide, site, observed, data_plate)
    pair, seen, choosing, unseen, measured = _parts(whole, train, held_out, validation, seed)
    steps = STAGES + -(-min(effort.evidence_rows, len(unseen)) // BLOCK)
    with measuring(model, guide):
        check_pair(pair, seen, prior=prior)
        of_guide = take_rows(all_rows(held_out), measured[_order(len(measured), seed)])
        checked = check_guide(whole, of_guide, **effort.of_guide, seed=seed, progress=progress)
        encoding, chooser = _encode(pair, seen), _encode(pair, choosing)
        aggregated = _aggregate(encoding, effort)
        ex_post = fit_ex_post_prior(aggregated, held_out=chooser, seed=seed, progress=progress)
    with measuring(model, guide), progress_bar("measuring", steps, progress=progress) as bar:
        prior = pair.prior(seen) if prior is None else declared(prior)
        test_encoding, size, fitted = _encode(pair, unseen), effort.codes, ex_post.distribution
        densities = {"prior": prior, "q_agg": aggregated, "ex_post": fitted}
        codes = draw_codes(encoding, size=size, seed=derived_seed(seed, "training codes"))
        of_test = derived_seed(seed, "held-out codes")
        test_codes = draw_codes(test_encoding, size=size, rows=measured, seed=of_test)
        test_aggregated = AggregatedPosterior(test_encoding)
        seen_terms = _terms(pair, seen, codes, aggregated, prior, bar)
        unseen_terms = _terms(pair, unseen, test_codes, test_aggregated, prior, bar, unseen=True)
        memorised = memorisation(codes, test_codes, densities, aggregated, fitted=fitted, seed=seed)
        chosen = _some(len(measured), effort.evidence_rows, seed)
        x, numbers, needed = unseen[chosen], measured[chosen], memorised.needed
        evidence = _evidence(pair, x, numbers, densities, needed, effort, seed, bar)
        return Diagnosis(
            training=seen_terms,
            held_out=unseen_terms,
            collapse=_collapse(encoding, prior, codes, seed),
            memorisation=memorised,
            ex_post=ex_post,
            evidence=evidence,
            aggregated=aggregated,
            prior=prior,
            codes=codes,
            pictures=_pictures(whole, pair, seen, densities, effort, seed),
            labelled=_label(pair, unseen, measured, prior, effort, seed),
            information=information(test_codes, test_aggregated, fitted),
            holes=holes(test_codes, aggregated, prior, draws=size, seed=seed),
            two_sample=_against_prior(codes, prior, size=effort.two_sample, seed=seed),
            guide_check=checked,
            bits=_bits(pair, x, evidence),
            measured=measured,
        )


def _collapse(
    encoding: dist.Distribution, prior: dist.Distribution, codes: Codes, seed: int
) -> Collapse:
    of = moments(encoding, seed=derived_seed(seed, "activity"))
    return collapse(of, unit_rates(encoding, prior, codes))


def _parts(
    pair: Pair, train: Data, held_out: Data, validation: Data | None, seed: int
) -> tuple[Pair, Tensor, Tensor, Tensor, Tensor]:
    """Rows seen in training, rows to choose on, rows to measure on, and the numbers of these."""
    data = (train, held_out) if validation is None else (train, held_out, validation)
    pair, (seen, unseen, *rest) = over_rows(pair, *data)
    numbers = torch.arange(len(unseen), device=unseen.device)
    if rest:
        return pair, seen, rest[0], unseen, numbers
    with seeded(seed, "halves of the held-out rows"):
        order = torch.randperm(len(unseen)).to(unseen.device)
    half = len(unseen) // 2
    choosing, measured = order[:half].sort().values, order[half:].sort().values
    return pair, seen, unseen[choosing], unseen[measured], measured


def _order(rows: int, seed: int) -> Tensor:
    """Numbers of rows in a random order, of which those that are wanted come first."""
    with seeded(seed, "order of the held-out rows"):
        return torch.randperm(rows)


def _some(rows: int, size: int, seed: int) -> Tensor:
    """Numbers of some of the rows, at random, rising."""
    return _order(rows, seed)[:size].sort().values


def _evidence(
    pair: Pair,
    x: Tensor,
    numbers: Tensor,
    densities: Mapping[str, dist.Distribution],
    needed: float,
    effort: Effort,
    seed: int,
    bar: Bar,
) -> dict[str, Evidence]:
    """log p(x) of some rows under each density, named by their numbers; nothing of no rows."""
    if not len(x):
        return {}
    results = compare_priors(
        pair,
        x,
        {**densities, "prior": None},  # the model's own, whatever it is compared with
        draws=effort.evidence_draws,
        seed=seed,
        tick=bar.tick,
    )
    results["q_agg"] = replace(results["q_agg"], needed=needed)
    return {name: replace(result, rows=numbers) for name, result in results.items()}


def _pictures(
    whole: Pair,
    pair: Pair,
    seen: Tensor,
    densities: dict[str, dist.Distribution],
    effort: Effort,
    seed: int,
) -> Pictures | None:
    if not effort.pictures:
        return None
    with seeded(seed, "rows to show"):
        shown = seen[torch.randperm(len(seen))[: effort.pictures].sort().values]
    return pictures(whole, pair, shown, densities, seed=seed)


def _label(
    pair: Pair,
    unseen: Tensor,
    measured: Tensor,
    prior: dist.Distribution,
    effort: Effort,
    seed: int,
) -> Labelled | None:
    if not effort.export_rows:
        return None
    chosen = _some(len(measured), effort.export_rows, seed)
    numbers = measured[chosen].tolist()
    draws = effort.export_draws
    return label(pair, unseen[chosen], draws=draws, prior=prior, numbers=numbers, seed=seed)


def _aggregate(encoding: dist.Distribution, effort: Effort) -> AggregatedPosterior:
    """q_agg; with a warning where its density is the guide, run for every datum and code."""
    codes = effort.codes + effort.evidence_rows * effort.evidence_draws
    pairs = encoding.batch_shape[0] * codes
    if isinstance(encoding, families.Editable) and pairs > MANY_PAIRS:
        warnings.warn(
            f"q_agg is the guide itself, which each of {pairs:.1g} pairs of datum and code goes "
            "through; that may take hours. Give fewer rows, or a smaller effort= (codes, "
            "evidence_rows, evidence_draws).",
            stacklevel=4,
        )
    return AggregatedPosterior(encoding)


def _against_prior(codes: Codes, prior: dist.Distribution, *, size: int, seed: int) -> TwoSample:
    """A classifier between one code of each data point and draws from the prior."""
    with seeded(seed, "codes against prior"):
        chosen = codes.z[torch.randperm(len(codes.z)), 0]  # they lie in the order of the data
        draws = prior.sample(torch.Size([len(chosen)])).reshape(chosen.shape)
    return two_sample_test(chosen, draws, size=size, seed=seed)


def _encode(pair: Pair, x: Tensor) -> dist.Distribution:
    return encode(pair.guide, x, site=pair.site, data_plate=pair.data_plate, model=pair.model)


def check_pair(pair: Pair, x: Tensor, *, prior: dist.Distribution | None = None) -> None:
    """Raise unless all that a diagnosis reads of a pair is there, by reading it for two rows.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        prior: as :func:`diagnose` takes it.

    Raises:
        InputError: naming the site or the plate that is missing or cannot be told, or if the
            guide's support is not the prior's.
    """
    if not pair.takes_any_number_of_rows(x):
        raise InputError(
            "expected a pair that takes any number of rows, so that held-out data can be encoded; "
            "got one with a plate or parameters of fixed size. Write an amortized guide; where "
            "there are parameters for each row, as in AutoNormal, pyrovae.aggregate with "
            "batch_size= their number and pyrovae.log_evidence take just these rows."
        )
    rows = x[:2]
    guide = pair.encode(rows)
    z = guide.sample()
    pair.log_likelihood(rows, z)
    likelihood = pair.decode(rows, z)
    try:
        likelihood.sample()
    except NotImplementedError as error:
        raise InputError(
            "expected a likelihood that can be drawn from, for pictures and predictive draws; got "
            f"{families.family(likelihood)}, which has no sample. Add one to its class, or take "
            "pyrovae.log_evidence, which needs none."
        ) from error
    source = pair.prior(rows) if prior is None else prior
    if share := left_out(guide, source):
        raise InputError(
            f"expected a guide whose support is the prior's; got one that leaves out {share:.0%} "
            "of the prior's draws. There q_agg has no density to compare with, and posterior mass "
            "is missed without a sign. Use a guide such as a Normal, or transform it to the "
            "prior's support."
        )


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
    draws = [pair.log_likelihood(x[codes.index], z) for z in codes.z.unbind(1)]
    terms = surgery(codes, torch.stack(draws, 1), aggregated, prior, unseen=unseen)
    bar.tick()
    return terms


def _bits(pair: Pair, x: Tensor, evidence: dict[str, Evidence]) -> dict[str, Estimate]:
    """Bits per dimension under each density; none where p(x | z) is not one over grey levels."""
    if not evidence:
        return {}
    likelihood = pair.decode(x[:2], pair.encode(x[:2]).sample())
    if not isinstance(families.innermost(likelihood), DiscretizedLogistic):
        return {}
    shape = likelihood.event_shape
    return {name: bits_per_dimension(found.mean(), shape) for name, found in evidence.items()}
