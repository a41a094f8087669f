"""How much a diagnosis computes, and what it says of a part that was left out."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from pyrovae.errors import InputError

#: The least value of each number of an `Effort`, and whether 0 is allowed as well.
LEAST = {
    "codes": (20, False),  # two at each of the ten data points that a classifier needs
    "evidence_rows": (2, True),
    "evidence_draws": (2, False),
    "first_rows": (2, False),
    "q_agg_rows": (2, False),
    "evidence_cost": (1, False),
    "export_rows": (1, True),
    "export_draws": (1, False),
    "pictures": (1, True),
    "two_sample": (10, False),
    "simulations": (100, True),
    "gap_rows": (2, True),
    "nuts_rows": (1, True),
    "samples": (30, True),
    "baseline_rows": (20, True),
}
#: By default all rows are put under raw q_agg, at full cost, up to so many components; then fewer.
COMPONENTS = 5_000
ROWS, COST = 100, 200_000  # at least; what chains take is below that
OPTIONAL = ("first_rows", "q_agg_rows")  # whose default depends on the data
EvidenceMethod = Literal["auto", "refined", "importance"]


@dataclass(frozen=True)
class Effort:
    """How much is computed; more of it makes standard errors smaller.

    ``Effort.quick()`` is enough for a first look, and the default for what is to be reported.
    Where there are fewer data points than requested, all of them are used; every estimate states
    its size.

    Args:
        codes: latent draws, at least, for the terms of the ELBO and the density of codes: two at
            each of half as many data points, or more at each where there are fewer of these.
        evidence_rows: held-out data points whose log p(x) is estimated; 0 for none, and then there
            is no advice on where to sample from.
        evidence_draws: importance draws for each of them.
        first_rows: how many of them are measured first; if these leave the advice open, by the
            rule of :func:`~pyrovae.diagnostics.advice.is_settled`, as many again, and if these do
            too, the others. By default all, and 100 with more than 5,000 training rows, where a row
            takes long. Every number states its rows.
        q_agg_rows: at how many of them raw q_agg is put in the prior's place, which takes time in
            proportion to its N components: by default at all up to N = 5,000, then at 5,000 / N of
            them, but at least 100, and with ``evidence_cost`` less in proportion, but at least
            200,000. An ex-post prior of more than 5,000 components, such as q_agg with larger
            variances, has the same. Differences are over these rows alone.
        evidence_cost: ``max_cost`` of ``log_evidence``: evaluations of log p(x, z) at a data point
            at which the search for better draws ends, which leaves it out of the mean, and is said.
            The default is enough for 5,000 draws.
        export_rows, export_draws: data points, and draws at each, for ArviZ; 0 rows for no export.
        pictures: rows of data, and as many draws decoded from each density over z; 0 for none.
        two_sample: codes, one for each data point, that a classifier has to tell from as many draws
            from the prior.
        simulations: data points to simulate for the calibration of the guide; 0 for none.
        gap_rows: held-out data points at which the guide is compared with the best of its family;
            0 for none. 32 take some seconds.
        nuts_rows: held-out data points at which it is compared with NUTS; 0 for none: 4 take
            minutes.
        samples: decoded samples of each density, compared with as many rows of data; 0 for none.
        baseline_rows: training rows, at most, that simple densities are fitted to, to compare
            log p(x) with; 0 for none.
        method: where the importance draws come from, as in ``log_evidence``: ``"auto"``, a proposal
            of its own for each data point at which the guide is not good enough; ``"refined"``, for
            all of them; ``"importance"``, the guide alone, quicker and often not to be trusted.

    Raises:
        InputError: for a number that is not whole or too small to estimate anything.

    >>> import pyrovae as pv
    >>> pv.Effort(evidence_rows=200, nuts_rows=4).evidence_rows
    200
    """

    codes: int = 8192
    evidence_rows: int = 500
    evidence_draws: int = 500
    first_rows: int | None = None
    q_agg_rows: int | None = None
    export_rows: int = 100
    export_draws: int = 200
    pictures: int = 36
    two_sample: int = 1000
    simulations: int = 500
    gap_rows: int = 32
    nuts_rows: int = 0
    method: EvidenceMethod = "auto"
    evidence_cost: int = 1_000_000
    samples: int = 1000
    baseline_rows: int = 5000

    @classmethod
    def quick(cls) -> Effort:
        """An effort for a first look, in seconds: few rows and draws, and no gaps of the guide.

        >>> Effort.quick().evidence_rows
        40
        """
        return cls(
            codes=1000,
            evidence_rows=40,
            evidence_draws=100,
            two_sample=100,
            simulations=100,
            gap_rows=0,
            samples=100,
        )

    def rows_under_q_agg(self, components: int) -> int:
        """`q_agg_rows`, or how many these are by default, for so many components.

        >>> effort = Effort()
        >>> effort.rows_under_q_agg(1_000), effort.rows_under_q_agg(10_000)
        (500, 250)
        """
        chosen = self.q_agg_rows or max(ROWS, self.evidence_rows * COMPONENTS // components)
        return min(chosen, self.evidence_rows)

    def looks(self, rows: int, components: int) -> tuple[int, ...]:
        """At how many of so many rows log p(x) is known after each look, of one to three.

        Args:
            rows: held-out rows that are at hand.
            components: of q_agg.

        >>> Effort().looks(2_000, 1_000), Effort().looks(2_000, 10_000)
        ((500,), (100, 200, 500))
        """
        entire = min(rows, self.evidence_rows)
        first = self.first_rows or (ROWS if components > COMPONENTS else entire)
        return (*(rows for rows in (first, 2 * first) if rows < entire), entire)

    def cost_under_q_agg(self, components: int) -> int:
        """`evidence_cost`, or what it is by default with raw q_agg of so many components."""
        if self.q_agg_rows is not None:
            return self.evidence_cost
        cost = max(COST, self.evidence_cost * COMPONENTS // components)
        return min(cost, self.evidence_cost)

    def __post_init__(self) -> None:
        for name, (least, zero_allowed) in LEAST.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            is_integer = isinstance(value, Integral) and not isinstance(value, bool)
            if not is_integer or not (value >= least or (zero_allowed and value == 0)):
                or_zero = ", or 0 to leave that part out" if zero_allowed else ""
                raise InputError(
                    f"expected {name} of at least {least}, a whole number{or_zero}; got {value!r}."
                )
        if self.method not in get_args(EvidenceMethod):
            raise InputError(
                f"expected a method out of {get_args(EvidenceMethod)}; got {self.method!r}. For "
                "others use pyrovae.log_evidence."
            )


def left_out_of(part: str, setting: str) -> InputError:
    """The error for a request of what a diagnosis with an effort of 0 left out."""
    return InputError(
        f"expected a diagnosis with {part}; got one from an effort with {setting}=0. Diagnose with "
        f"effort=pyrovae.Effort({setting}=100)."
    )
