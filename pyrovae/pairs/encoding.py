"""From data to the guide's distributions, and from these to the aggregated posterior."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from numbers import Integral

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.data import Batch, Data, as_batches, check_arguments, row_count, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior, no_numbers
from pyrovae.mixture.families import Pushed, concatenate, convert, snapshot
from pyrovae.pairs.guide_density import Encoded
from pyrovae.pairs.joint_sites import Ancestral
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.position_parameters import by_place
from pyrovae.pairs.refinement import refine as refined
from pyrovae.pairs.restore import PyroFunction, measuring
from pyrovae.pairs.trace_reader import Reader
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed

REFINED = 256  # rows that are refined together


def encode(
    guide: PyroFunction,
    data: Data,
    *,
    site: str | tuple[str, ...] = "z",
    data_plate: str | None = None,
    batch_size: int = 4096,
    model: PyroFunction | None = None,
    refine: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> dist.Distribution:
    """q(z | x_n) for every data point, a batch at a time.

    Args:
        guide: any Pyro guide with a latent site in a data plate.
        data: rows, shape ``(N, ...)``, as :func:`pyrovae.fit` takes them; a tuple where the guide
            takes more arguments, ``guide(x, y)``. For a ``DataLoader`` its data set is encoded, in
            the order of that.
        site: name of the latent site, or the names of several, which are taken as one vector.
            Where one of these depends on the draws of another, or the guide has a flow of its own
            for each row, the result is an :class:`~pyrovae.pairs.joint_sites.Ancestral`, which
            runs the guide whenever it is used. Where the site depends on a label that the guide
            draws, the result is a mixture over labels.
        data_plate: name of the plate over the data; by default the one with as many rows as a
            batch.
        batch_size: rows that go through the guide at once; the result does not depend on it. A
            guide with a plate of fixed size takes all rows at once: give their number.
        model: the guide's model, called in the same way. It is needed to refine, and where a mask
            leaves out a part of some rows, such as the steps after a sequence's end: that part gets
            the model's prior.
        refine: steps of an optimiser by which each row's q(z | x_n) climbs its own ELBO, within the
            guide's family, so that what the encoder misses on new data is made up for
            (semi-amortised encoding, Kim et al. 2018); 0 for none. 100 go most of the way. Rows go
            through the model 256 at a time, whatever ``batch_size``, with 16 draws a step.
        seed: names the draws of these steps.
        progress: whether they show a bar; ``None`` shows it if stderr is a terminal.

    Returns:
        the guide's distribution, batch shape ``(N,)``, event shape ``(D,)``, without gradient. An
        event of more dimensions, or plates other than the data's, are flattened into one vector.
        Unless it is an ``Ancestral``, it is a copy, which further training does not change.

    Raises:
        InputError: for data that are refused or have other arguments than the guide, or rows
            without a fixed order, such as those of a loader that draws them with replacement; if
            the guide has no such site, the site depends on draws at one that is not named, its
            family cannot be concatenated, it has parameters for each row and there is more than
            one batch, it is masked and no model is given, or the encoding of a row is not finite.
            To refine also without a model, if draws at the site or at sites that depend on it have
            no gradients, or if one of several sites depends on another.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae()
    >>> vae, x = exact.vae(), exact.sample(30)
    >>> pv.encode(vae.guide, x).batch_shape
    torch.Size([30])
    """
    _check_refinement(refine, model)
    check_seed(seed)
    pair = guide_pair(guide, site, data_plate, model)
    return encode_rows(
        pair, data, batch_size=batch_size, refine=refine, seed=seed, progress=progress
    ).density


def encode_rows(
    pair: Pair,
    data: Data,
    *,
    batch_size: int = 4096,
    refine: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> Encoded:
    """As :func:`encode`, of a pair, with what else is known of the rows once they are encoded."""
    parts: list[dist.Distribution] = []
    masked = False
    with torch.no_grad(), measuring(pair.model, pair.guide):
        batches = as_batches(data, REFINED if refine else batch_size, name="data")
        steps = progress_bar("refining q(z|x)", refine * len(batches), progress=progress)
        with steps if refine else nullcontext() as bar:
            for batch, encoded in encode_batches(pair, with_row_numbers(batches.ordered())):
                part, masked = encoded.density, masked or encoded.masked
                if bar is not None:
                    stream = derived_seed(seed, "refined encoding", len(parts))
                    part = refined(pair, batch, part, steps=refine, seed=stream, tick=bar.tick)
                parts.append(part)
        try:
            one = convert(parts[0], Tensor.clone) if len(parts) == 1 else concatenate(parts)
            return Encoded(snapshot(one), masked)
        except InputError:  # transforms by row, or masks that only some batches have
            if not any(isinstance(part, Pushed | Ancestral) for part in parts):
                raise
            joints = [pair.guide_density.run(batch) for batch in batches.ordered()]
            return Encoded(concatenate(joints), masked)


def with_row_numbers(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """Each batch with the number of its first row."""
    start = 0
    for batch in batches:
        yield start, batch
        start += row_count(batch)


def encode_batches(
    pair: Pair, batches: Iterable[tuple[int, Batch]]
) -> Iterator[tuple[Batch, Encoded]]:
    """Each batch with its encoding, checked; to be used within ``measuring``, without gradients.

    Args:
        pair: the guide, with any model.
        batches: each with the number of its first row, for errors.

    Raises:
        InputError: as :func:`encode`.
    """
    first: Batch = ()
    for number, (start, batch) in enumerate(batches):
        check_arguments(pair.guide, batch, "guide")
        if number == 1:
            _check_batches(pair, first)
        yield batch, _encode(pair, batch, start)
        first = first or batch


def _check_refinement(steps: int, model: PyroFunction | None) -> None:
    """Raise unless the steps are a number of them, and there is an ELBO to climb."""
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 0:
        raise InputError(
            f"expected refine= as a whole number of steps, 0 for none; got {steps!r}. Try 100."
        )
    if steps and model is None:
        raise InputError(
            "expected the model, whose ELBO is climbed; got refine= without one. Give it with "
            "model=."
        )


def _check_batches(pair: Pair, batch: Batch) -> None:
    """Raise if a guide would give the rows of every batch the parameters of the first batch."""
    model = Reader(_no_model, "model")
    if parameters := by_place(model, pair.guide_reader, batch):
        shape = tuple(parameters[0].shape)
        raise InputError(
            f"expected a guide that encodes each row by itself, for batches of {row_count(batch)}; "
            f"got one that has parameters for each place in a batch, of shape {shape}. Give all "
            "rows that it was trained on at once: batch_size= their number."
        )


def _encode(pair: Pair, batch: Batch, first_row: int) -> Encoded:
    """The encoding of a batch, checked to have finite parameters.

    Args:
        pair: the guide, with any model.
        batch: rows.
        first_row: number of the batch's first row in the data, for the error.
    """
    try:
        encoded = pair.guide_density.encode(batch)
        faults = no_numbers(encoded.density)
        row = None if faults is None or not bool(faults.any()) else int(faults.nonzero()[0])
        error = None
    except ValueError as refusal:
        row, error = _refused_row(pair, batch) if _is_of_parameters(refusal) else None, refusal
        if row is None:
            raise
    if row is not None:
        raise InputError(
            "expected a guide whose distributions have finite parameters; got NaN or infinite ones "
            f"for row {first_row + row} of the data (counted from 0). Look at that row and at what "
            "the guide makes of it, or leave it out."
        ) from error
    return encoded


def _refused_row(pair: Pair, batch: Batch) -> int | None:
    """The first row for which a distribution refuses its parameters; none for other errors."""
    low, high = 0, row_count(batch)  # the first `low` rows pass, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pair.encode(take_rows(batch, slice(0, middle)))
        except ValueError as error:
            if not _is_of_parameters(error):
                return None
            high = middle
        else:
            low = middle
    return low


def _is_of_parameters(error: ValueError) -> bool:
    """Whether this is torch's refusal of a distribution's parameters."""
    return str(error).startswith("Expected parameter")


def guide_pair(
    guide: PyroFunction,
    site: str | tuple[str, ...],
    data_plate: str | None,
    model: PyroFunction | None,
) -> Pair:
    """A pair of which the guide is run, and the model only if there is one."""
    return Pair(model or _no_model, guide, site, data_plate=data_plate)


def _no_model(*batch: Tensor) -> None:
    """Takes the model's place in a pair of which only the guide is run."""


def aggregate(  # noqa: PLR0913 - a flat front door
    guide: PyroFunction,
    data: Data,
    *,
    site: str | tuple[str, ...] = "z",
    data_plate: str | None = None,
    weights: Tensor | None = None,
    batch_size: int = 4096,
    model: PyroFunction | None = None,
    refine: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> AggregatedPosterior:
    """The aggregated posterior q_agg(z) = Σ_n w_n q(z | x_n) of a data set.

    Args:
        guide, data, site, data_plate, batch_size, model, refine, seed, progress: as
            :func:`encode`.
        weights: w_n, shape ``(N,)``, which the mixture normalises; equal if not given.

    >>> import pyrovae as pv
    >>> from pyrovae.testing import linear_gaussian_vae
    >>> exact = linear_gaussian_vae(data_dim=6, latent=2)
    >>> agg = pv.aggregate(exact.vae().guide, exact.sample(100))
    >>> agg.log_prob(agg.sample((3,))).shape
    torch.Size([3])
    """
    encoding = encode(
        guide, data, site=site, data_plate=data_plate, batch_size=batch_size, model=model,
        refine=refine, seed=seed, progress=progress,
    )  # fmt: skip
    return AggregatedPosterior(encoding, weights)
