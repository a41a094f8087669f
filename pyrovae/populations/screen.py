"""Which training rows an aggregated posterior rests on alone, without training anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrovae.data import Data
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.evidence import k_limit, proposal_for, smooth
from pyrovae.mixture import AggregatedPosterior
from pyrovae.pairs import Pair, PyroFunction, encode_rows, measuring, over_rows
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded
from pyrovae.torch_modes import plain

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64  # whose proposals are found together
TWIN = math.log(0.5)  # of likeness


@dataclass(frozen=True, repr=False)
class MemorisationScreen(Result):
    """How far each training row is on its own among the codes, in nats.

    Args:
        log_density: log q_agg(μ_n) without the row's own component, at the mean μ_n of its
            encoding, shape ``(N,)``: low for codes far from all others.
        components: effective number of components at μ_n, its own counted, shape ``(N,)``: near 1
            for one-of-a-kind rows, wherever their codes lie.
        nearest: the other row that is most responsible for μ_n, shape ``(N,)``.
        share: its responsibility without the row's own component, shape ``(N,)``.
        likeness: log q(μ_n | its encoding) − log q(μ_n | own encoding), shape ``(N,)``: 0 for a
            copy, far below for a row without near-duplicates.
        gain: log p(x_n) under q_agg less that without the row's own component, shape ``(N,)``;
            ``None`` without a pair.
        standard_error: of each gain over draws, shape ``(N,)``.
        pareto_k: k̂ of the weights without the row's own component, shape ``(N,)``; above
            min(1 − 1/log10 S, 0.7) the gain cannot be trusted, and is probably too high.
        draws: S, of codes for each row; 0 without a pair.
    """

    log_density: Tensor
    components: Tensor
    nearest: Tensor
    share: Tensor
    likeness: Tensor
    gain: Tensor | None = None
    standard_error: Tensor | None = None
    pareto_k: Tensor | None = None
    draws: int = 0

    @property
    def twins(self) -> Tensor:
        """Pairs of rows and the nearest other row, of likeness above log ½, shape ``(P, 2)``.

        Those most alike come first; a pair that finds each other is there once.
        """
        rows = (self.likeness > TWIN).nonzero().squeeze(-1)
        rows = rows[self.likeness[rows].argsort(descending=True, stable=True)]
        pairs = [
            tuple(sorted(pair))
            for pair in zip(rows.tolist(), self.nearest[rows].tolist(), strict=True)
        ]
        return torch.tensor(list(dict.fromkeys(pairs)), dtype=torch.long).view(-1, 2)

    def exemplars(self, count: int = 5) -> dict[str, Tensor]:
        """Rows to look at: the most on their own, and those most like another, ``(≤ count,)``."""
        return {
            "one_of_a_kind": self.components.argsort()[:count],
            "near_duplicates": self.likeness.argsort(descending=True)[:count],
        }

    def table(self) -> pd.DataFrame:
        """One row for each training row, those with the fewest components at their code first."""
        import pandas as pd

        order = self.components.argsort()
        names = [f for f in self.__dataclass_fields__ if isinstance(getattr(self, f), Tensor)]
        return pd.DataFrame(
            {"row": order.numpy()} | {name: getattr(self, name)[order].numpy() for name in names}
        )

    @property
    def concerns(self) -> tuple[str, ...]:
        """What these numbers can't tell."""
        if self.pareto_k is None:
            return ()
        rejected = int((~(self.pareto_k <= k_limit(self.draws))).sum())
        if not rejected:
            return ()
        return (
            f"For {rejected} of {len(self.pareto_k)} rows k̂ rejects log p(x) without their own "
            "component: their gain is probably too high. Take more draws, or refits: "
            "pyrovae.memorisation.",
        )


@torch.no_grad()
@plain()
def memorisation_screen(
    agg: AggregatedPosterior,
    *,
    pair: tuple[PyroFunction, PyroFunction] | None = None,
    train: Data | None = None,
    draws: int = 1000,
    site: str | tuple[str, ...] = "z",
    data_plate: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> MemorisationScreen:
    r"""Which training rows are on their own among the codes, and which have a near-duplicate.

    .. math:: q^{-n}_{agg}(z) = \frac{\sum_{m ≠ n} w_m q(z | x_m)}{1 - w_n}, \quad
        G_n = \log \frac{∫ p(x_n | z)\, q_{agg}(z)\, dz}{∫ p(x_n | z)\, q^{-n}_{agg}(z)\, dz}

    Nothing is trained anew: it says what the row's own component does for the row, where
    `memorisation` says what having the row in training did to encoder and decoder. Both integrals
    are over the same draws of a refined proposal. What the encoder leaves out of a row doesn't show
    in its code: two rows are near-duplicates here if the encoder can't tell them apart.

    Args:
        agg: q_agg of N training rows, of any framework.
        pair: ``(model, guide)``, for the gain in log p(x).
        train: the rows that ``agg`` is of, with ``pair``.
        draws: of codes for each row.
        site, data_plate: as `pyrovae.log_evidence` takes them.
        seed: names the draws.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: with fewer than two rows, a pair without its rows or with other ones than
            ``agg`` has, or a pair that has no refined proposals.

    >>> import pyro.distributions as dist
    >>> means = torch.tensor([[0.0], [0.0], [0.1], [9.0]])
    >>> agg = AggregatedPosterior(dist.Normal(means, torch.full_like(means, 0.3)).to_event(1))
    >>> screen = memorisation_screen(agg)
    >>> screen.exemplars(1)["one_of_a_kind"], screen.twins[0]
    (tensor([3]), tensor([0, 1]))
    """
    check_seed(seed)
    codes, number = agg.encoding.mean, torch.arange(agg.size)
    alone = agg.leave_one_out_log_prob(codes, number).double()
    found = agg.responsibilities(codes, top=2)
    first = found.index[:, 0]
    nearest = torch.where(first == number, found.index[:, 1], first)
    likely = agg[nearest].encoding.log_prob(codes).double()
    weight = agg.log_weights.double()
    share = (weight[nearest] - torch.log1p(-weight.exp()) + likely - alone).exp()
    values = {
        "log_density": alone,
        "components": agg.effective_components(codes).double(),
        "nearest": nearest,
        "share": share,
        "likeness": likely - agg.encoding.log_prob(codes).double(),
    }
    if pair is None and train is None:
        return MemorisationScreen(**values)
    if pair is None or train is None:
        raise InputError("expected pair= and train= together; got one of them. Give both, or none.")
    over, (x,) = over_rows(Pair(*pair, site, data_plate=data_plate), train)
    if len(x) != agg.size:
        raise InputError(
            f"expected the {agg.size} rows that q_agg is of as train=; got {len(x)}. Give the same."
        )
    with measuring(*pair), progress_bar("screen", len(x), progress=progress) as bar:
        gains = _gains(over, x, agg, draws, seed, bar.tick)
    return MemorisationScreen(**values, **gains, draws=draws)


def _gains(
    pair: Pair,
    x: Tensor,
    agg: AggregatedPosterior,
    draws: int,
    seed: int,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """log p(x) under q_agg less that under q_agg without the row, with error and k̂, ``(N,)``."""
    encoded, prior = encode_rows(pair, x), pair.prior(x)
    parts = []
    for index, rows in enumerate(torch.arange(len(x)).split(ROWS)):
        own = derived_seed(seed, "proposals of a screen", index)
        proposal = proposal_for(pair, x[rows], encoded=encoded.take(rows), seed=own)
        with seeded(seed, "draws of a screen", index):
            u = proposal.sample(draws)
        z = proposal.target.codes(u)[0].split(proposal.target.sizes, -1)[0]
        rest = proposal.target.of_draws(u) - proposal.log_prob(u) - prior.log_prob(z)
        whole = rest + agg.log_prob(z)
        without = rest + agg.leave_one_out_log_prob(z, rows)
        parts.append(_ratio(whole.T.double(), without.T.double()))
        tick(len(rows))
    names = ("gain", "standard_error", "pareto_k")
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))


def _ratio(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log of the ratio of two mean weights, its error by the delta method, and k̂ of the second."""
    means = [weights.logsumexp(1) - math.log(weights.shape[1]) for weights in (one, other)]
    relative = (one - means[0][:, None]).exp() - (other - means[1][:, None]).exp()
    error = relative.std(1) / math.sqrt(one.shape[1])
    return means[0] - means[1], error, smooth(other)[1]
