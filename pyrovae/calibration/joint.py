"""Simulation-based calibration of an amortized guide, unit by unit and of the code as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.arviz_adapter import to_arviz, variable_names
from pyrovae.calibration.discrete import differences, with_discrete
from pyrovae.calibration.quantities import (
    GUIDE,
    Quantity,
    References,
    check_names,
    evaluate,
    make_references,
)
from pyrovae.calibration.uniformity import uniformity_p_value
from pyrovae.data import Batch, Data, all_rows, row_count, take_rows
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.pairs import (
    DiscreteSites,
    Pair,
    PyroFunction,
    measuring,
    rows_at_once,
    simulate_all,
)
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

ALARM = 0.01  # rate at which an exact guide is called miscalibrated, over all tests together
FEWEST = 100  # simulations
DRAWS = 99  # guide draws for each data set: their 100 ranks are the cells of the test
NO_CONTRACTION = 0.05  # below which a unit's ranks have hardly any power


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """Where the true codes of simulated data lie among draws of the guide.

    There is a test for each of D units, and one for each of Q other quantities: K units of discrete
    sites beside the code, if model and guide draw any, and functions of all of it together.

    Args:
        ranks: number of guide draws below the true code, from 0 to 99, ties broken at random, shape
            ``(N, D + Q)``; uniform if the guide is the exact posterior.
        pit: the same as randomised probability integral transforms in (0, 1), shape ``(N, D + Q)``.
        p_values: of the test of uniform ranks, shape ``(D + Q,)``.
        adjusted: the same times the number of tests (Bonferroni), 1 at most, shape ``(D + Q,)``.
        site: name of the latent site.
        quantities: names of the last Q, those of discrete sites first.
        codes: the true codes, shape ``(N, D)``; ``None`` if read from a file of version 0.1.0.
        guide_mean, guide_sd: of the guide's draws, shape ``(N, D)``.
        refused: name of a quantity that the pair doesn't have → why.
        discrete: names of the K discrete units: the site's, with a place if it has more than one.
        within, between: how often two of the guide's draws there differ, at the same x and at
            different x, shape ``(N, K)``.
    """

    ranks: Tensor
    pit: Tensor
    p_values: Tensor
    adjusted: Tensor
    site: str = "z"
    quantities: tuple[str, ...] = ()
    codes: Tensor | None = None
    guide_mean: Tensor | None = None
    guide_sd: Tensor | None = None
    refused: dict[str, str] = field(default_factory=dict)
    discrete: tuple[str, ...] = ()
    within: Tensor | None = None
    between: Tensor | None = None

    @property
    def units(self) -> int:
        """Number D of units."""
        return self.ranks.shape[1] - len(self.quantities)

    @property
    def passed(self) -> Tensor:
        """Which tests don't reject the guide, shape ``(D + Q,)``."""
        return self.adjusted >= ALARM

    @property
    def calibrated(self) -> bool:
        """Whether no test rejects; an exact guide is rejected in at most 1 % of cases."""
        return bool(self.passed.all())

    @property
    def statement(self) -> str:
        """The verdict in a few sentences: what departs and how, and what can't be told."""
        n = len(self.ranks)
        rejected = (~self.passed).nonzero().flatten().tolist()
        rate = f"with a false-alarm rate of {100 * ALARM:.0f} % over all of them"
        kinds = self._kinds
        if not rejected:
            text = f"None of {kinds} departs from calibration in {n} simulations, {rate}."
            return " ".join((text, *self.concerns))
        faults: dict[str, list[str]] = {}
        for test in rejected:
            name = self._names[test]
            faults.setdefault(self._name_fault(test), []).append(name)
        details = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items())
        start = f"The guide is not calibrated: of {kinds}, {len(rejected)}"
        verb = "departs" if len(rejected) == 1 else "depart"
        text = f"{start} {verb} in {n} simulations, {rate} ({details})."
        return " ".join((text, *self.concerns))

    @property
    def _names(self) -> tuple[str, ...]:
        """What to call each test."""
        return (*map(str, range(self.units)), *self.quantities)

    @property
    def _kinds(self) -> str:
        """How many tests there are of which kind, in words."""
        discrete = len(self.discrete)
        counts = (
            (self.units, "unit", "units"),
            (discrete, "discrete unit", "discrete units"),
            (len(self.quantities) - discrete, "joint quantity", "joint quantities"),
        )
        kinds = [f"{count} {one if count == 1 else more}" for count, one, more in counts if count]
        return " and ".join((", ".join(kinds[:-1]), kinds[-1]) if len(kinds) > 1 else kinds)

    @property
    def concerns(self) -> tuple[str, ...]:
        """Sentences on what these tests have no power to see, and what was left out."""
        left_out = tuple(f"{name} was not ranked: {why}" for name, why in self.refused.items())
        contraction = self.contraction()
        blind = [
            name
            for name, estimate in zip(self._names, contraction, strict=False)
            if estimate.value < NO_CONTRACTION
        ]
        if not blind:
            return left_out
        units = [name for name in blind if name not in self.discrete]
        noun = "unit" if len(units) == 1 else "units"
        parts = [*([f"{noun} {', '.join(units)}"] if units else []), *blind[len(units) :]]
        text = (
            f"No power in ranks of {' and '.join(parts)}: there the guide hardly differs from "
            "the prior, which has uniform ranks whatever x tells."
        )
        if len(blind) < len(contraction) or not self.calibrated:
            return (text, *left_out)
        seen = (
            "the joint quantities that look at x don't depart either, so x tells nothing of "
            f"{self.site} that these simulations show"
            if any("x |" in name or "by x" in name for name in self.quantities)
            else "no quantity that looks at x could be ranked"
        )
        return (text, f"Nothing can be told of this guide: {seen}.", *left_out)

    def _name_fault(self, test: int) -> str:
        """How the transforms depart from a mean of 1/2 and a variance of 1/12."""
        u = self.pit[:, test].double()
        n = len(u)
        spread = float((u - 0.5).square().mean() - 1 / 12) / (180 * n) ** -0.5
        shift = float(u.mean() - 0.5) / (12 * n) ** -0.5
        unit = test < self.units
        if max(abs(spread), abs(shift)) < 3:
            return "another shape"
        if abs(shift) > abs(spread):
            high = "too low" if unit else "higher at true codes than at draws"
            return (
                high if shift > 0 else "too high" if unit else "lower at true codes than at draws"
            )
        wide = "too narrow" if unit else "more extreme at true codes than at draws"
        narrow = "too wide" if unit else "less extreme at true codes than at draws"
        return wide if spread > 0 else narrow

    def contraction(self) -> tuple[Estimate, ...]:
        """1 − E[Var_q(z_d | x)] / Var(z_d) of each unit: 0 for the prior, 1 for a point.

        Those of discrete units follow, D + K in all: there it is one minus the probability that two
        of the guide's draws at the same x differ, relative to two at different x.

        Schad, Betancourt & Vasishth 2021, "Toward a principled Bayesian workflow in cognitive
        science". None if read from a file of version 0.1.0.
        """
        if self.codes is None or self.guide_sd is None:
            return ()
        squares = (self.codes - self.codes.mean(0)).double().square()
        variances, total = self.guide_sd.double().square(), squares.mean(0)
        ratio = variances.mean(0) / total
        of_units = _estimates(1 - ratio, (ratio * squares - variances) / total)
        if self.within is None or self.between is None:
            return of_units
        ratio = self.within.mean(0) / self.between.mean(0)
        influence = (2 * ratio * self.between - self.within) / self.between.mean(0)
        return (*of_units, *_estimates(1 - ratio, influence))

    def recovery(self) -> tuple[Estimate, ...]:
        """Correlation of each unit's true code with the mean of the guide's draws.

        None if read from a file of version 0.1.0.
        """
        if self.codes is None or self.guide_mean is None:
            return ()
        first, second = (
            (values - values.mean(0)) / values.std(0, correction=0)
            for values in (self.codes.double(), self.guide_mean.double())
        )
        value = (first * second).mean(0)
        return _estimates(value, first * second - value * (first.square() + second.square()) / 2)

    def z_scores(self) -> Tensor | None:
        """(true code − the guide's mean) / its standard deviation, by draws, shape ``(N, D)``.

        Of an exact guide of normal shape they have mean 0 and standard deviation 1, but for the
        99 draws, which make them heavier by Student's t.
        """
        if self.codes is None or self.guide_mean is None or self.guide_sd is None:
            return None
        return (self.codes - self.guide_mean) / self.guide_sd

    def table(self) -> pd.DataFrame:
        """One row for each unit and each quantity; what only units have is missing elsewhere."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "unit": [*range(self.units), *self.quantities],
                "p_value": self.p_values.numpy(),
                "adjusted": self.adjusted.numpy(),
                "calibrated": self.passed.numpy(),
            }
        )
        scores = self.z_scores()
        if scores is None:
            return frame
        columns = {
            "mean_z_score": [float(value) for value in scores.mean(0)],
            "sd_z_score": [float(value) for value in scores.std(0)],
        }
        for name, estimates in (
            ("contraction", self.contraction()), ("recovery", self.recovery()),
        ):  # fmt: skip
            columns[name] = [estimate.value for estimate in estimates]
            columns[f"{name}_error"] = [estimate.standard_error for estimate in estimates]
        return frame.join(pd.DataFrame({name: pd.Series(part) for name, part in columns.items()}))

    def to_arviz(self) -> Any:
        """The transforms as group ``prior_sbc``: ``arviz.plot_ecdf_pit(result)`` in ArviZ 1.x.

        The code's are a variable of D units, and each other quantity is one. The bands and p-values
        of ArviZ are for each panel by itself. In ArviZ 0.x, test by test:
        ``arviz.plot_ecdf(pit[:, d].numpy(), cdf=uniform(0, 1).cdf,
        eval_points=np.linspace(0, 1, 101), difference=True, confidence_bands=True)`` with
        ``scipy.stats.uniform``.
        """
        pit = self.pit.unsqueeze(0).numpy()
        code, *others = variable_names((self.site, *self.quantities), reserved=("unit",))
        further = {name: pit[:, :, self.units + i] for i, name in enumerate(others)}
        return to_arviz(
            {"prior_sbc": {code: pit[:, :, : self.units], **further}},
            dims={code: ("unit",)},
            coords={"unit": list(range(self.units))},
            attrs={"inference_library": "pyrovae", "draws": DRAWS},
        )


@torch.no_grad()
@plain()
def calibrate(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    like: Data,
    *,
    simulations: int = 1000,
    quantities: Mapping[str, Quantity] | None = None,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Calibration:
    r"""Rank the codes of simulated data among guide draws, unit by unit and jointly.

    Draw z ~ p(z) and x ~ p(x|z): if q(z|x) is p(z|x), z is one more draw from it, and for every
    function f the rank of f(x, z) among 99 values f(x, z_s) is uniform on 0 … 99 (Talts et al.
    2018; Modrák et al. 2023). An amortized guide needs no refitting. The functions are

    - each unit of z, which sees wrong scales and means, but no wrong correlation;
    - log q(z|x): the expected coverage of regions of highest density, for any shape of the guide
      that is too narrow or too wide as a whole; blind to a shift within the same density, and to
      the prior as guide;
    - the distance of z to a reference (TARP, Lemos et al. 2023): to a draw of p(z), and to what a
      regression on further simulations says of z by x. The first is blind to the prior as guide,
      the second is not;
    - log p(x|z) and log p(x, z): see where the guide ignores x;
    - those of the user.

    A discrete site u that model and guide both draw for each row is drawn with z, and ranked too,
    unit by unit, with ties broken at random, which keeps ranks uniform (a one-hot vector by the
    number of its class); then log q(z, u|x) and log p(x, z, u) are ranked as well, which see where
    u is taken not to depend on x or on z. A discrete site that the guide lacks is summed over:
    given z, the model itself says what it is.

    Ranks are tested by their ECDF, exactly (Säilynoja et al. 2022), at 1 % over all tests together
    (Bonferroni's correction, so that one band in :func:`~pyrovae.plots.calibration` shows
    the verdict). If the guide draws other latent sites u, log p(x|z) is
    log p(x, u|z) − log q(u|z, x) at a draw of u, under which all of this holds too.

    The guide is tested on data that the model simulates: where real data differ from them, the
    result says nothing about the guide. :func:`calibrate_locally` tests it at single rows.

    Args:
        model, guide: any Pyro pair.
        like: rows of the shape to simulate; arguments that are not observed, such as labels, are
            kept as they are.
        simulations: N, data points to simulate; at least 100. As many again are simulated for the
            references. The guide is run for N rows, and the model's density for 100 N.
        quantities: functions f(x, z) by name; z has the shape ``(B, D)``, x is as the pair takes it
            (a tuple, if it takes several arguments), and what is returned has the shape ``(B,)``.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names the draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: with fewer than 100 simulations, for a quantity that is not one number a row, or
            where data cannot be simulated, as when the likelihood takes a row's total from the row.

    Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration";
    Modrák et al. 2023, "Simulation-based calibration checking for Bayesian computation: the choice
    of test quantities shapes sensitivity"; Lemos et al. 2023, "Sampling-based accuracy testing of
    posterior estimators for general inference".

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(10)
    >>> bool(pv.calibrate(vae.model, vae.guide, x, simulations=100).calibrated)  # an exact guide
    True
    """
    check_seed(seed)
    if simulations < FEWEST:
        raise InputError(
            f"expected at least {FEWEST} simulations, to see more than the grossest faults; got "
            f"{simulations}. Take as many, or more."
        )
    check_names(quantities or {})
    pair = Pair(model, guide, site, observed, data_plate)
    with measuring(model, guide):
        return calibrate_pair(
            pair, all_rows(like), simulations=simulations, own=quantities, seed=seed,
            progress=progress,
        )  # fmt: skip


@torch.no_grad()
def calibrate_pair(
    pair: Pair,
    rows: Batch,
    *,
    simulations: int,
    own: Mapping[str, Quantity] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Calibration:
    """As :func:`calibrate`, of a pair that is being measured.

    Args:
        pair: model and guide, with the arguments that the user gives them.
        rows: rows of the shape to simulate.
        simulations, seed, progress: as :func:`calibrate` has them.
        own: quantities of the user's.
    """
    like = rows_like(pair, rows, simulations)
    x, z, values = simulate_all(pair, like, seed=derived_seed(seed, "calibration"))
    sites = DiscreteSites.beside(pair, x)
    check_names(own or {}, sites.labels)
    references = make_references(pair, like, seed=derived_seed(seed, "references"))
    blocks: list[_Block] = []
    step = max(1, rows_at_once(x) // (DRAWS + 1))
    with (
        seeded(seed, "ranks"),
        progress_bar("calibration", simulations, progress=progress) as bar,
    ):
        for start in range(0, simulations, step):
            block = slice(start, min(start + step, simulations))
            true = {name: values[name][block] for name in sites.names}
            blocks.append(
                _rank_block(
                    take_rows(x, block), z[block], true, sites, references.take(block), own or {}
                )
            )
            bar.tick(block.stop - start)
        refused = {name: why for block in blocks for name, why in block.refused.items()}
        names = [name for name in blocks[0].ranks if name not in refused]
        ranks = torch.stack([torch.cat([b.ranks[name] for b in blocks]) for name in names], -1)
        pit = ((ranks + torch.rand(ranks.shape, dtype=torch.float64)) / (DRAWS + 1)).cpu()
    p_values = torch.tensor([uniformity_p_value(column) for column in pit.unbind(-1)]).double()
    mean, deviation = (torch.cat(c) for c in zip(*(b.moments for b in blocks), strict=True))
    return Calibration(
        ranks.cpu(), pit, p_values, (len(names) * p_values).clamp_max(1.0), pair.name,
        tuple(names[z.shape[1] :]), z.cpu(), mean.cpu(), deviation.cpu(),
        {**sites.refused, **refused}, sites.labels,
        *(differences(torch.cat([b.drawn for b in blocks], 1)) if sites.names else ()),
    )  # fmt: skip


@dataclass(frozen=True)
class _Block:
    """What is kept of some simulations, of number B.

    Args:
        ranks: by name, each ``(B,)``.
        refused: name of a quantity → why it is left out.
        moments: mean and standard deviation of the guide's draws, each ``(B, D)``.
        drawn: numbers that the guide draws at discrete sites, shape ``(S, B, K)``.
    """

    ranks: dict[str, Tensor]
    refused: dict[str, str]
    moments: tuple[Tensor, Tensor]
    drawn: Tensor


def _rank_block(
    x: Batch,
    z: Tensor,
    values: Mapping[str, Tensor],
    sites: DiscreteSites,
    references: References,
    own: Mapping[str, Quantity],
) -> _Block:
    """Ranks of the true codes of some simulations among draws of the guide."""
    found: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    encoding, reason = _encoding(sites, x)
    drawn: dict[str, Tensor] = {}
    if encoding is not None and not sites.names:
        draws = encoding.sample(torch.Size([DRAWS]))
    else:
        draws, drawn = sites.draw(x, DRAWS)
    codes = torch.cat([z.unsqueeze(0).to(draws.dtype), draws])
    if sites.names:
        both = {name: torch.cat([values[name].unsqueeze(0), drawn[name]]) for name in drawn}
        found, refused = with_discrete(sites, x, codes, both)
    joint, reasons = evaluate(sites.pair, x, codes, encoding, references, own)
    if reason:
        reasons[GUIDE] = reason
    units = {str(unit): column for unit, column in enumerate(codes.unbind(-1))}
    return _Block(
        {name: _rank(numbers) for name, numbers in (units | found | joint).items()},
        refused | reasons,
        (draws.mean(0), draws.std(0)),
        sites.as_numbers(drawn) if drawn else draws.new_zeros(DRAWS, len(z), 0),
    )


def _encoding(sites: DiscreteSites, x: Batch) -> tuple[dist.Distribution | None, str]:
    """q(z | x), or why it isn't known, where codes are drawn with discrete sites all the same."""
    try:
        return sites.pair.encode(x), ""
    except InputError as error:
        if not sites.names:
            raise
        return None, str(error)


def rows_like(pair: Pair, rows: Batch, count: int) -> Batch:
    """As many rows as are to be simulated, the given ones over and over.

    Raises:
        InputError: if the pair doesn't take any number of rows.
    """
    if not pair.traits.takes_any_number_of_rows(rows):
        raise InputError(
            "expected a pair that takes any number of rows, so that as many can be "
            "simulated as requested; got one with a plate or parameters of fixed size. Write "
            "an amortized guide."
        )
    return take_rows(rows, torch.arange(count, device=rows[0].device) % row_count(rows))


def _rank(values: Tensor) -> Tensor:
    """Rank of the first among all others, ties broken at random, shape ``(B,)``."""
    below = (values[1:] < values[0]).sum(0)
    equal = (values[1:] == values[0]).sum(0)
    return below + (torch.rand(equal.shape, device=equal.device) * (equal + 1)).long()


def _estimates(values: Tensor, influence: Tensor) -> tuple[Estimate, ...]:
    """An estimate of each unit from the influence of each simulation on it, shape ``(N, D)``."""
    count = len(influence)
    errors = influence.std(0) / count**0.5
    return tuple(
        Estimate(float(value), float(error), count)
        for value, error in zip(values, errors, strict=True)
    )
