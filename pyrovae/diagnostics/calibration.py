"""Simulation-based calibration of an amortized guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrovae.arviz_adapter import to_arviz
from pyrovae.data import Batch, Data, all_rows, row_count, take_rows
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.pairs import Pair, PyroFunction, measuring, simulate
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

ALARM = 0.01  # rate at which an exact guide is called miscalibrated, over all units together
BINS = 20  # of the histogram of ranks
DRAWS = 99  # guide draws for each data set: BINS divides the 100 possible ranks


@dataclass(frozen=True, repr=False)
class Calibration(Result):
    """Where the true codes of simulated data lie among draws of the guide.

    Args:
        ranks: number of guide draws below the true code, from 0 to 99, shape ``(N, D)``; uniform
            if the guide is the exact posterior.
        pit: the same as randomised probability integral transforms in (0, 1), shape ``(N, D)``.
        p_values: of the χ² test of uniform ranks, one for each unit, shape ``(D,)``.
        adjusted: the same after Holm's correction for D tests, shape ``(D,)``.
        site: name of the latent site.
    """

    ranks: Tensor
    pit: Tensor
    p_values: Tensor
    adjusted: Tensor
    site: str = "z"

    @property
    def calibrated(self) -> bool:
        """Whether no unit is rejected; an exact guide is rejected in at most 1 % of cases."""
        return bool((self.adjusted >= ALARM).all())

    @property
    def statement(self) -> str:
        """One sentence on whether all units are calibrated, and how those that are not depart."""
        n, units = self.ranks.shape
        rejected = (self.adjusted < ALARM).nonzero().flatten().tolist()
        rate = f"with a false-alarm rate of {100 * ALARM:.0f} % over all units"
        if not rejected:
            return f"None of {units} units departs from calibration in {n} simulations, {rate}."
        faults: dict[str, list[str]] = {}
        for unit in rejected:
            faults.setdefault(self._name_fault(unit), []).append(str(unit))
        details = "; ".join(f"{fault}: {', '.join(numbers)}" for fault, numbers in faults.items())
        verb = "is" if len(rejected) == 1 else "are"
        start = f"{len(rejected)} of {units} units {verb} not calibrated in {n} simulations, {rate}"
        return f"{start} ({details})."

    def _name_fault(self, unit: int) -> str:
        """How the transforms of a unit depart from a mean of 1/2 and a variance of 1/12."""
        u = self.pit[:, unit].double()
        n = len(u)
        spread = float((u - 0.5).square().mean() - 1 / 12) / (180 * n) ** -0.5
        shift = float(u.mean() - 0.5) / (12 * n) ** -0.5
        if max(abs(spread), abs(shift)) < 3:
            return "another shape"
        if abs(shift) > abs(spread):
            return "too low" if shift > 0 else "too high"
        return "too narrow" if spread > 0 else "too wide"

    def table(self) -> pd.DataFrame:
        """One row for each unit."""
        import pandas as pd

        return pd.DataFrame(
            {
                "unit": range(len(self.p_values)),
                "p_value": self.p_values.numpy(),
                "adjusted": self.adjusted.numpy(),
                "calibrated": (self.adjusted >= ALARM).numpy(),
            }
        )

    def to_arviz(self) -> Any:
        """The transforms as group ``prior_sbc``: ``arviz.plot_ecdf_pit(result)`` in ArviZ 1.x.

        In ArviZ 0.x, unit by unit: ``arviz.plot_ecdf(pit[:, d].numpy(), cdf=uniform(0, 1).cdf,
        eval_points=np.linspace(0, 1, 101), difference=True, confidence_bands=True)`` with
        ``scipy.stats.uniform``.
        """
        units = list(range(self.pit.shape[1]))
        return to_arviz(
            {"prior_sbc": {self.site: self.pit.unsqueeze(0).numpy()}},
            dims={self.site: ("unit",)},
            coords={"unit": units},
            attrs={"inference_library": "pyrovae", "draws": DRAWS},
        )


@torch.no_grad()
@plain()
def calibrate(
    model: PyroFunction,
    guide: PyroFunction,
    like: Data,
    *,
    simulations: int = 1000,
    site: str | tuple[str, ...] = "z",
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int = 0,
) -> Calibration:
    """Rank the codes of simulated data among guide draws (Talts et al. 2018; Yao et al. 2018).

    Draw z ~ p(z) and x ~ p(x|z): if q(z|x) is p(z|x), z is one more draw from it, and its rank
    among 99 of them is uniform on 0 … 99. An amortized guide needs no refitting. Ranks of each unit
    are tested with a χ² test over 20 bins, at 1 % over all units together (Holm's correction).

    The guide is tested on data that the model simulates: where real data differ from them, the
    result says nothing about the guide.

    Args:
        model, guide: any Pyro pair.
        like: rows of the shape to simulate; arguments that are not observed, such as labels, are
            kept as they are.
        simulations: N, data points to simulate; at least 100, so that the χ² test holds.
        site, observed, data_plate: as :func:`~pyrovae.evidence.log_evidence.log_evidence`.
        seed: names the draws.

    Raises:
        InputError: with fewer than 100 simulations, or where data cannot be simulated, as when
            the likelihood takes a row's total from the row.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(10)
    >>> bool(pv.calibrate(vae.model, vae.guide, x, simulations=100).calibrated)  # an exact guide
    True
    """
    check_seed(seed)
    if simulations < 5 * BINS:
        raise InputError(
            f"expected at least {5 * BINS} simulations, 5 for each bin of ranks; got {simulations}."
        )
    pair = Pair(model, guide, site, observed, data_plate)
    with measuring(model, guide):
        return calibrate_pair(pair, all_rows(like), simulations=simulations, seed=seed)


@torch.no_grad()
def calibrate_pair(pair: Pair, rows: Batch, *, simulations: int, seed: int = 0) -> Calibration:
    """As :func:`calibrate`, of a pair that is being measured.

    Args:
        pair: model and guide, with the arguments that the user gives them.
        rows: rows of the shape to simulate.
        simulations, seed: as :func:`calibrate` has them.
    """
    chosen = torch.arange(simulations, device=rows[0].device) % row_count(rows)
    if not pair.traits.takes_any_number_of_rows(rows):
        raise InputError(
            "expected a pair that takes any number of rows, so that as many can be "
            "simulated as requested; got one with a plate or parameters of fixed size. Write "
            "an amortized guide."
        )
    x, z = simulate(pair, take_rows(rows, chosen), seed=derived_seed(seed, "calibration"))
    with seeded(seed, "ranks"):
        ranks = (pair.encode(x).sample(torch.Size([DRAWS])) < z).sum(0)
        pit = (ranks + torch.rand_like(z)) / (DRAWS + 1)
    p_values = _test_uniformity(ranks)
    return Calibration(ranks, pit.cpu(), p_values, _adjust(p_values), pair.name)


def _test_uniformity(ranks: Tensor) -> Tensor:
    """p values of the χ² test of uniform ranks, one for each column."""
    from scipy.stats import chi2

    bins = (ranks * BINS).div(DRAWS + 1, rounding_mode="floor")
    counts = torch.nn.functional.one_hot(bins, BINS).sum(0).double()
    expected = len(ranks) / BINS
    statistic = ((counts - expected).square() / expected).sum(-1)
    return torch.as_tensor(chi2.sf(statistic.cpu().numpy(), BINS - 1))


def _adjust(p_values: Tensor) -> Tensor:
    """p values adjusted for the number of tests (Holm 1979)."""
    count = len(p_values)
    order = p_values.argsort()
    factors = torch.arange(count, 0, -1)
    stepped = (p_values[order] * factors).cummax(0).values.clamp_max(1.0)
    return torch.empty_like(p_values).scatter(0, order, stepped)
