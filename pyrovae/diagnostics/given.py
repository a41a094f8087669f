"""What a diagnosis is given, checked before the work: the pair, the rows, and q_agg."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, Data, all_rows
from pyrovae.diagnostics.effort import Effort
from pyrovae.errors import InputError
from pyrovae.evidence import left_out
from pyrovae.mixture import AggregatedPosterior, families
from pyrovae.pairs import Pair, elbo_terms, encode_rows, over_rows
from pyrovae.randomness import seeded
from pyrovae.scale import same_normals

MANY_PAIRS = 1e8  # of data point and code: minutes even for a small guide
PROBED = 64  # rows encoded anew


def check_pair(pair: Pair, x: Tensor, *, prior: dist.Distribution | None = None) -> None:
    """Raise unless a pair has all that a diagnosis needs, by trying it on two rows.

    Args:
        pair: model and guide.
        x: rows, shape ``(N, ...)``.
        prior: as :func:`diagnose` takes it.

    Raises:
        InputError: naming the site or the plate that is missing or ambiguous, or if the guide's
            support is not the prior's.
    """
    if not pair.traits.takes_any_number_of_rows(x):
        raise InputError(
            "expected a pair that takes any number of rows, so that held-out data can be encoded; "
            "got one with a plate or parameters of fixed size. Write an amortized guide. "
            "Where there are parameters for each row, as in AutoNormal, just these rows can go to "
            "pyrovae.aggregate, with batch_size= their number, and to pyrovae.log_evidence."
        )
    rows = x[:2]
    guide = pair.encode(rows)
    z = guide.sample()
    elbo_terms(pair, rows, z)
    likelihood = pair.decode(rows, z)
    try:
        likelihood.sample()
    except NotImplementedError as error:
        raise InputError(
            "expected a likelihood that can be drawn from, for pictures and predictive draws; got "
            f"{families.family(likelihood)}, which has no sample(). Add it to its class, or use "
            "pyrovae.log_evidence, which does without."
        ) from error
    source = pair.prior(rows) if prior is None else prior
    if share := left_out(guide, source):
        raise InputError(
            f"expected a guide whose support is the prior's; got one that leaves out {share:.0%} "
            "of the prior's draws. There q_agg has no density, and posterior mass is missed "
            "unnoticed. Use a guide such as a Normal, or transform it to the "
            "prior's support."
        )


def read_all(*data: Data) -> list[Batch]:
    """All rows of each data set, which are read once."""
    return [all_rows(one) for one in data]


def split_rows(
    pair: Pair, data: Sequence[Batch], seed: int
) -> tuple[Pair, Tensor, Tensor, Tensor, Tensor]:
    """The pair over rows; rows for training, validation and test; and the numbers of the last."""
    pair, (train_x, held_out_x, *rest) = over_rows(pair, *data)
    if rest:
        numbers = torch.arange(len(held_out_x), device=held_out_x.device)
        return pair, train_x, rest[0], held_out_x, numbers
    with seeded(seed, "halves of the held-out rows"):
        order = torch.randperm(len(held_out_x)).to(held_out_x.device)
    half = len(held_out_x) // 2
    validation_numbers, test_numbers = order[:half].sort().values, order[half:].sort().values
    return pair, train_x, held_out_x[validation_numbers], held_out_x[test_numbers], test_numbers


def q_agg_of(
    pair: Pair, rows: Tensor, given: AggregatedPosterior | None, effort: Effort
) -> AggregatedPosterior:
    """q_agg, with a warning where its density runs the guide for every data point and code."""
    if given is not None:
        return _checked(pair, rows, given)
    encoding = encode_rows(pair, rows).density
    codes = effort.codes + effort.evidence_rows * effort.evidence_draws
    pairs = encoding.batch_shape[0] * codes
    if isinstance(encoding, families.Editable) and pairs > MANY_PAIRS:
        warnings.warn(
            f"The density of q_agg runs the guide for each of {pairs:.1g} pairs of data point and "
            "code, which may take hours. Pass fewer rows, or a smaller effort= (codes, "
            "evidence_rows, evidence_draws).",
            stacklevel=4,
        )
    return AggregatedPosterior(encoding)


def _checked(pair: Pair, train: Tensor, aggregated: AggregatedPosterior) -> AggregatedPosterior:
    """What was aggregated before, if it is of the training rows, of which the first are encoded.

    Raises:
        InputError: if there are not as many rows, of equal weights, or the first are others.
    """
    here = encode_rows(pair, train[:PROBED]).density
    if aggregated.size != len(train):
        found = f"one of {aggregated.size} rows"
    elif bool((aggregated.log_weights != aggregated.log_weights[0]).any()):
        found = "unequal weights"
    else:
        there = aggregated[: len(train[:PROBED])].encoding
        kinds = [str(q.mean.dtype).removeprefix("torch.") for q in (here, there)]
        now, before = families.diagonal_normal(here), families.diagonal_normal(there)
        stored = getattr(aggregated, "stored_dtype", torch.float32)
        same = now is not None and before is not None and same_normals(now, before, stored)
        found = "" if same else "other encodings of the first rows, or no normals"
        if not found and kinds[0] != kinds[1]:
            found = f"one in {kinds[1]}, not {kinds[0]} as the guide's encodings are"
    if found:
        raise InputError(
            f"expected aggregated= of the {len(train)} training rows, by this guide; got {found}. "
            "Leave it out: the rows are then encoded."
        )
    return aggregated
