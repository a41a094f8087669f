"""Whether a guide is calibrated at the rows that were observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.calibration.classifier import exchange_test
from pyrovae.calibration.joint import ALARM, DRAWS, FEWEST, rows_like
from pyrovae.calibration.quantities import GUIDE, LIKELIHOOD, regression_on
from pyrovae.calibration.references import Regression
from pyrovae.calibration.uniformity import uniformity_p_value
from pyrovae.data import Batch, Data, all_rows, repeat_rows, row_count, take_rows
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.pairs import Pair, PyroFunction, elbo_terms, measuring, rows_at_once, simulate
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

CODES = 200  # draws of the guide at each observed row
ALIKE = 2.0  # codes that carry a replicate's weight, below which its rank says hardly anything


@dataclass(frozen=True, repr=False)
class LocalCalibration(Result):
    """Whether the guide departs from the posterior at R observed rows.

    Args:
        classifier: p-value of L-C2ST at each row, shape ``(R,)``.
        classifier_adjusted: the same for all rows together, by the largest statistic, and twice,
            for there are two kinds of tests, shape ``(R,)``.
        replicates: p-values of posterior SBC by row and quantity, shape ``(R, D + 2)``.
        replicates_adjusted: the same times twice their number (Bonferroni), 1 at most.
        quantities: what is ranked: the units, log q(z | x) and log p(x | z).
        effective: draws that carry the weights of a replicate, on average, of 100, ``(R,)``.
        simulations, replications: how many of each, the second for each row.
        site: name of the latent site.
    """

    classifier: Tensor
    classifier_adjusted: Tensor
    replicates: Tensor
    replicates_adjusted: Tensor
    quantities: tuple[str, ...]
    effective: Tensor
    simulations: int
    replications: int
    site: str = "z"

    @property
    def passed(self) -> Tensor:
        """At which rows neither kind of test rejects, shape ``(R,)``."""
        by_classifier = self.classifier_adjusted >= ALARM
        return by_classifier & (self.replicates_adjusted >= ALARM).all(-1)

    @property
    def calibrated(self) -> bool:
        """Whether no test rejects; an exact guide is rejected in at most 1 % of cases."""
        return bool(self.passed.all())

    @property
    def statement(self) -> str:
        """At how many rows the guide departs from the posterior, and where that can't be told."""
        count, rejected = len(self.passed), (~self.passed).nonzero().flatten().tolist()
        rate = f"with a false-alarm rate of {100 * ALARM:.0f} % over all rows and tests"
        text = (
            f"At {len(rejected)} of {count} rows the guide departs from the posterior, {rate}: "
            f"{', '.join(map(str, rejected))}."
            if rejected
            else f"At none of {count} rows the guide departs from the posterior, {rate}."
        )
        blind = (self.effective < ALIKE).nonzero().flatten().tolist()
        if not blind:
            return text
        return (
            f"{text} Replicates have hardly any power at rows {', '.join(map(str, blind))}: one "
            "of 100 codes carries the weight."
        )

    def table(self) -> pd.DataFrame:
        """One row for each observed row, with the least adjusted p-value of each kind."""
        import pandas as pd

        return pd.DataFrame(
            {
                "row": range(len(self.passed)),
                "classifier": self.classifier_adjusted.numpy(),
                "replicates": self.replicates_adjusted.amin(-1).numpy(),
                "effective": self.effective.numpy(),
                "calibrated": self.passed.numpy(),
            }
        )


@torch.no_grad()
@plain()
def calibrate_locally(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    guide: PyroFunction,
    data: Data,
    *,
    simulations: int = 1000,
    replications: int = 200,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LocalCalibration:
    r"""Test a guide at the rows that were observed, not over all data that the model makes.

    Faults that cancel over all data, and faults where there are hardly any, are seen here only.

    L-C2ST (Linhart et al. 2023): a classifier tells (z, x) ~ p(z) p(x|z) from (z, x), z ~ q(z|x).
    At a row x the statistic is the mean square, over draws of the guide there, of its distance from
    guessing. Under an exact guide the two codes of a simulation can be exchanged, so 499 random
    exchanges give the distribution of the statistic, exactly if the guide is exact for all x; over
    all rows together by the largest statistic (Westfall & Young 1993). The classifier is a ridge
    regression on products and random cosines of z, in units of the guide, and of what the guide
    says of z by x, and a regression too unless a mask leaves out a part of x.

    Posterior SBC (Säilynoja et al. 2025) simulates z' ~ q(z|x) and a replicate x' ~ p(x|z') and
    checks the posterior given x and x' together. An amortized guide is no posterior given two rows.
    But of z' and 99 more draws of q(z|x), the one that x' was made of is

    .. math:: z_j \text{ with probability} \propto p(x' | z_j) \propto p(z_j | x') / p(z_j),

    whatever q(z|x) is. So with p(z|x') replaced by q(z|x') the weighted rank of z' is exactly
    uniform if the guide is exact at the replicates, up to a factor: it is tested at data like x,
    for codes that the guide proposes at x. A guide that is wrong at x alone is left to L-C2ST.

    Args:
        model, guide: any Pyro pair.
        data: observed rows, R of them; each takes ``100 × replications`` evaluations of the model.
        simulations: data points to simulate for the classifier, and as many for its regression; at
            least 100.
        replications: replicates of each row; at least 100.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names the draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: with fewer simulations, where data cannot be simulated, or where the model draws
            other sites before the code.

    Linhart, Gramfort & Rodrigues 2023, "L-C2ST: local diagnostics for posterior approximations in
    simulation-based inference"; Säilynoja et al. 2025, "Posterior SBC: simulation-based calibration
    checking conditional on data", arXiv:2502.03279.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(shift=2.0), exact.sample(2)  # a guide two standard deviations off
    >>> bool(
    ...     pv.calibrate_locally(
    ...         vae.model, vae.guide, x, simulations=200, replications=100
    ...     ).calibrated
    ... )
    False
    """
    check_seed(seed)
    for name, count in (("simulations", simulations), ("replications", replications)):
        if count < FEWEST:
            raise InputError(
                f"expected at least {FEWEST} {name}; got {count}. Take {name}={FEWEST} or more."
            )
    pair = Pair(model, guide, site, observed, data_plate)
    rows = all_rows(data)
    with (
        measuring(model, guide),
        seeded(seed, "order of sites"),
    ):
        _check_order(pair, rows)
    with (
        measuring(model, guide),
        progress_bar("local calibration", row_count(rows) + 1, progress=progress) as bar,
    ):
        classifier, together = _by_classifier(pair, rows, simulations, seed)
        bar.tick()
        found = []
        for row in range(row_count(rows)):
            found.append(_by_replicates(pair, rows, row, replications, seed))
            bar.tick()
    transforms = torch.stack([pit for pit, _ in found])
    p_values = torch.tensor(
        [[uniformity_p_value(test) for test in row.unbind(-1)] for row in transforms]
    ).double()
    units = [str(unit) for unit in range(transforms.shape[-1] - 2)]
    return LocalCalibration(
        classifier, (2 * together).clamp_max(1.0),
        p_values, (2 * p_values.numel() * p_values).clamp_max(1.0),
        (*units, GUIDE, LIKELIHOOD), torch.stack([effective for _, effective in found]),
        simulations, replications, pair.name,
    )  # fmt: skip


def _check_order(pair: Pair, rows: Batch) -> None:
    """Raise if the model draws other sites before the code, which a replicate of z lacks."""
    reading = pair.model_reader.read(rows)[0]
    by_row = [name for name in reading.latent if name not in reading.shared]
    last = max((by_row.index(site) for site in pair.sites if site in by_row), default=0)
    if before := [name for name in by_row[:last] if name not in pair.sites]:
        raise InputError(
            f"expected a model that draws {pair.name} first; got {', '.join(before)} before it, of "
            "which a replicate of the code knows nothing. Use calibrate, which draws all of them."
        )


@dataclass(frozen=True)
class _Standardised:
    """Codes in units of the guide at their x, and what is known of z by that x.

    Args:
        mean, deviation: of draws of the guide, shape ``(N, D)``.
        summary: the mean, and what a regression says if there is one, shape ``(N, 2D)``.
    """

    mean: Tensor
    deviation: Tensor
    summary: Tensor

    @classmethod
    def at(
        cls, x: Batch, encoding: dist.Distribution, regression: Regression | None
    ) -> _Standardised:
        draws = encoding.sample(torch.Size([DRAWS])).double()
        deviation = draws.std(0)
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        mean = draws.mean(0)
        further = [] if regression is None else [regression.predict(x)]
        return cls(mean, deviation, torch.cat([mean, *further], -1))

    def __call__(self, codes: Tensor) -> Tensor:
        return (codes.double() - self.mean) / self.deviation


def _by_classifier(pair: Pair, rows: Batch, simulations: int, seed: int) -> tuple[Tensor, Tensor]:
    """P-values of L-C2ST at each row, for itself and for all rows together, each ``(R,)``."""
    like = rows_like(pair, rows, simulations)
    further = simulate(pair, like, seed=derived_seed(seed, "local references"))
    regression, _ = regression_on(pair, *further)
    x, z = simulate(pair, like, seed=derived_seed(seed, "local calibration"))
    with seeded(seed, "local classifier"):
        encoding = pair.encode(x)
        simulated = _Standardised.at(x, encoding, regression)
        first, second = simulated(z), simulated(encoding.sample())
        spread = simulated.summary.std(0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        there = pair.encode(rows)
        observed = _Standardised.at(rows, there, regression)
        codes = observed(there.sample(torch.Size([CODES])))
        return exchange_test(
            first, second, simulated.summary / spread, codes, observed.summary / spread
        )


def _by_replicates(
    pair: Pair, rows: Batch, row: int, replications: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Weighted ranks of posterior SBC at a row, ``(M, D + 2)``, and the mean effective draws."""
    like = take_rows(rows, torch.full((replications,), row, device=rows[0].device))
    guide = pair.encode(take_rows(rows, slice(row, row + 1)))
    x, z = simulate(pair, like, prior=guide, seed=derived_seed(seed, "replicates", row))
    transforms, effective = [], []
    step = max(1, rows_at_once(x) // (DRAWS + 1))
    with seeded(seed, "posterior ranks", row):
        for block in torch.arange(replications, device=z.device).split(step):
            part = take_rows(x, block)
            others = guide.sample(torch.Size([DRAWS, len(block)])).reshape(DRAWS, len(block), -1)
            codes = torch.cat([z[block].unsqueeze(0), others])
            log_guide = pair.encode(part).log_prob(codes)
            likelihood, prior = (
                term.view(codes.shape[:2])
                for term in elbo_terms(pair, repeat_rows(part, DRAWS + 1), codes.flatten(0, 1))
            )
            weights = (log_guide - prior).double().softmax(0)
            if weights.isnan().any():
                raise InputError(
                    "expected a guide with a density at the codes it draws for data like these; "
                    f"got none at replicates of row {row}. Give it a family that covers the prior."
                )
            values = torch.cat([codes, torch.stack([log_guide, likelihood], -1)], -1)
            below = (weights.unsqueeze(-1) * (values < values[0])).sum(0)
            equal = (weights.unsqueeze(-1) * (values == values[0])).sum(0)
            uniform = torch.rand(equal.shape, dtype=equal.dtype, device=equal.device)
            transforms.append((below + uniform * equal).cpu())
            effective.append(1 / weights.square().sum(0))
    return torch.cat(transforms), torch.cat(effective).mean().cpu()
