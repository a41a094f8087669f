"""What each training row gains by having been trained on, by training without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from scipy.special import polygamma, psi
from torch import Tensor

from pyrovae.data import Batch, Data, all_rows, as_batches, row_count, take_rows
from pyrovae.display import Result
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.evidence import Evidence, log_evidence
from pyrovae.models import VAE
from pyrovae.pairs import PyroFunction, modules_of
from pyrovae.populations.replicates import Labels, numbered
from pyrovae.progress import progress_bar
from pyrovae.randomness import check_seed, derived_seed, seeded, seeded_everywhere
from pyrovae.saving import load, save
from pyrovae.torch_modes import plain
from pyrovae.training import fit as fit_pair

if TYPE_CHECKING:
    import pandas as pd

Factory = Callable[[], VAE | tuple[PyroFunction, PyroFunction]]
Training = Mapping[str, Any] | Callable[[PyroFunction, PyroFunction, Data], Any]


@dataclass(frozen=True, repr=False)
class RefitMemorisation(Result):
    """How much each training row gains in log p(x) by having been trained on, in nats.

    Args:
        gain: mean of log p(x_n) over the refits that had row n, less that over those that had not,
            shape ``(N,)``: high for one-of-a-kind rows, near 0 for rows with others like them.
        standard_error: of each gain over repeats, each with refits and folds of its own, drawn
            towards that of all rows, shape ``(N,)``; infinite with one repeat.
        inside, outside: the two means, shape ``(N,)``.
        fold: the fold that each row is held out with in each repeat, shape ``(repeats, N)``.
        mean: of the gains, over rows.
        rejected: in how many refits k̂ rejects the row's log p(x), shape ``(N,)``.
    """

    gain: Tensor
    standard_error: Tensor
    inside: Tensor
    outside: Tensor
    fold: Tensor
    mean: Estimate
    rejected: Tensor

    @property
    def ranking(self) -> Tensor:
        """Numbers of the rows, those that gain most first, shape ``(N,)``."""
        return self.gain.argsort(descending=True)

    def exemplars(self, count: int = 5) -> dict[str, Tensor]:
        """The rows that gain most and least, shapes ``(≤ count,)``."""
        return {"most": self.ranking[:count], "least": self.ranking.flip(0)[:count]}

    def table(self) -> pd.DataFrame:
        """One row for each training row, those that gain most first."""
        import pandas as pd

        columns = ("gain", "standard_error", "inside", "outside", "rejected")
        values = {name: getattr(self, name)[self.ranking].numpy() for name in columns}
        return pd.DataFrame({"row": self.ranking.numpy(), **values})

    @property
    def concerns(self) -> tuple[str, ...]:
        """What these numbers can't tell."""
        sentences = []
        if len(self.fold) < 2:
            sentences.append(
                "Each row was held out once: how much its gain varies between refits isn't known. "
                "Take repeats=2 or more for errors of single rows."
            )
        if affected := int((self.rejected > 0).sum()):
            sentences.append(
                f"For {affected} of {len(self.gain)} rows k̂ rejects log p(x) in some refits: what "
                "the encoder misses on rows that it hasn't seen may count as their gain. Take "
                'evidence={"method": "auto"}, or more draws.'
            )
        return tuple(sentences)


@plain()
def memorisation(  # noqa: PLR0913 - a flat front door, where most arguments have defaults
    pair_factory: Factory,
    train: Data,
    *,
    folds: int = 5,
    repeats: int = 2,
    groups: Labels | None = None,
    fit: Training | None = None,
    evidence: Mapping[str, Any] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> RefitMemorisation:
    r"""What each training row gains in log p(x) by having been trained on: K-fold refits.

    .. math:: G_n = E[\log p(x_n) \mid n \text{ trained on}]
        - E[\log p(x_n) \mid n \text{ held out}]

    Each of the K refits of a repeat is trained without one fold and scores all rows, so that a row
    has K − 1 values inside and one outside, and what makes one refit better than another cancels in
    the mean. One-of-a-kind rows gain most. A row with a near-duplicate doesn't: the twin is still
    in training when the row is held out. Hold them out together by ``groups`` to see what both have
    gained, and find them by `memorisation_screen`.

    Args:
        pair_factory: makes an untrained VAE or pair ``(model, guide)``, a new one each time.
        train: N rows, shape ``(N, ...)``; a tuple where the pair takes more arguments.
        folds: K, 2 to the number of rows or groups. The more, the nearer a refit is to the pair
            that is trained on all rows, and the longer it takes.
        repeats: how often, each with folds of its own.
        groups: a label for each row; rows of one label are held out together.
        fit: keywords of `pyrovae.fit` for each refit, such as ``{"epochs": 50}``, or a function
            that trains, called as ``fit(model, guide, rows)``.
        evidence: keywords of `pyrovae.log_evidence`, such as ``{"draws": 200}``.
        seed: names all draws.
        checkpoint: file with the refits that are done, to go on from.
        progress: show a progress bar; by default if stderr is a terminal.

    Raises:
        InputError: for folds or repeats out of range, labels that don't fit the rows, or a
            checkpoint of other data, settings or networks.

    van den Burg & Williams 2021, "On memorization in probabilistic deep generative models"; the
    errors are moderated as in Smyth 2004, "Linear models and empirical Bayes methods".

    >>> import pyrovae as pv
    >>> def factory():
    ...     return pv.VAE(pv.mlp_encoder((8,), 2), pv.mlp_decoder(2, (8,)), pv.StandardNormal(2))
    >>> rows = torch.rand(30, 8).round()
    >>> options = {"fit": {"epochs": 1}, "evidence": {"method": "importance", "draws": 10}}
    >>> memorisation(factory, rows, folds=3, **options).gain.shape
    torch.Size([30])
    """
    check_seed(seed)
    rows = all_rows(train)
    size = row_count(rows)
    member, labels = numbered(range(size) if groups is None else groups, size, "groups")
    if not 2 <= folds <= len(labels) or repeats < 1:
        raise InputError(
            f"expected 2 to {len(labels)} folds, at most one for each row or group, and at least "
            f"one repeat; got folds={folds}, repeats={repeats}."
        )
    fold = torch.stack([_folds(len(labels), folds, derived_seed(seed, "folds of refits", r))[member]
                        for r in range(repeats)])  # fmt: skip
    training, scoring = {} if fit is None else fit, {} if evidence is None else evidence
    options: dict[str, Any] = {
        "fit": training, "evidence": scoring, "seed": seed, "fold": fold,
    }  # fmt: skip
    if checkpoint is not None:
        with pyro.get_param_store().scope():
            networks = _shapes(*_new_pair(pair_factory, derived_seed(seed, "a first look")))
        options |= {"pair": pair_factory, "networks": networks}
    done = _Done(checkpoint, rows, options)
    total = repeats * folds
    with progress_bar("refits", total, done=len(done.values), progress=progress) as bar:
        for number in range(len(done.values), total):
            kept = (fold[number // folds] != number % folds).nonzero().squeeze(-1)
            own = derived_seed(seed, "refit of a fold", number)
            found = _refit(pair_factory, rows, kept, training, scoring, own)
            done.add(found.values, found.unresolved)
            bar.tick()
    shape = (repeats, folds, size)
    values = torch.stack(done.values).view(shape).double()
    return _compare(values, fold, torch.stack(done.rejected).sum(0))


def _folds(count: int, folds: int, seed: int) -> Tensor:
    """The fold of each of some rows or groups, of sizes that differ by at most one."""
    with seeded(seed, "order of folds"):
        order = torch.randperm(count)
    fold = torch.empty(count, dtype=torch.long)
    fold[order] = torch.arange(count) % folds
    return fold


def _new_pair(pair_factory: Factory, seed: int) -> tuple[PyroFunction, PyroFunction]:
    with seeded_everywhere(seed, "a new pair"):
        pair = pair_factory()
    return (pair.model, pair.guide) if isinstance(pair, VAE) else pair


def _shapes(model: PyroFunction, guide: PyroFunction) -> dict[str, Any]:
    """Names and shapes of the parameters of a pair's networks."""
    named = (part for module in modules_of(model, guide) for part in module.named_parameters())
    return {name: list(parameter.shape) for name, parameter in named}


def _single(rows: Batch) -> Data:
    """Rows as a user passes them."""
    return rows if len(rows) > 1 else rows[0]


def _refit(
    pair_factory: Factory,
    rows: Batch,
    kept: Tensor,
    training: Training,
    scoring: Mapping[str, Any],
    seed: int,
) -> Evidence:
    """log p(x) of all rows under a new pair that was trained on some of them."""
    some = _single(take_rows(rows, kept))
    with pyro.get_param_store().scope():  # an empty one, for pairs with parameters in the store
        model, guide = _new_pair(pair_factory, seed)
        if callable(training):
            with seeded_everywhere(seed, "training of a refit"), torch.enable_grad():
                training(model, guide, some)
        else:
            own = derived_seed(seed, "fit of a refit")
            fit_pair(model, guide, some, **{"seed": own, "progress": False} | dict(training))
        own = derived_seed(seed, "log p(x) under a refit")
        options = {"seed": own, "warn": False} | dict(scoring)  # the result counts what k̂ rejects
        return log_evidence(model, guide, _single(rows), **options)


def _compare(values: Tensor, fold: Tensor, rejected: Tensor) -> RefitMemorisation:
    """The gains from log p(x) of all rows under all refits, shape ``(repeats, folds, N)``."""
    folds = values.shape[1]
    outside = values.gather(1, fold.unsqueeze(1)).squeeze(1)
    held_out = torch.nn.functional.one_hot(fold, folds).movedim(-1, 1).bool()
    inside = values.masked_fill(held_out, 0.0).sum(1) / (folds - 1)
    gains = inside - outside
    gain = gains.mean(0)
    error = torch.full_like(gain, torch.inf)
    if len(gains) > 1:
        error = (moderated(gains.var(0), len(gains) - 1) / len(gains)).sqrt()
    return RefitMemorisation(
        gain, error, inside.mean(0), outside.mean(0), fold, mean_estimate(gain), rejected
    )


def moderated(variance: Tensor, freedom: int) -> Tensor:
    r"""Sample variances drawn towards each other, by as much as their spread tells they are alike.

    .. math:: \tilde s_n^2 = (d_0 s_0^2 + d s_n^2) / (d_0 + d)

    d_0 and s_0² are those of the scaled inverse χ² that the true variances would follow, by moments
    of log s². With a few repeats a row's own variance alone says next to nothing.

    Args:
        variance: s² of each row, shape ``(N,)``.
        freedom: d, the degrees of freedom of each.

    Smyth 2004, "Linear models and empirical Bayes methods for assessing differential expression".
    """
    from scipy.optimize import brentq

    positive = variance[variance > 0].double()
    if len(positive) < 2:
        return variance
    half = freedom / 2
    logs = positive.log().numpy() - psi(half) + np.log(half)
    excess = float(logs.var(ddof=1) - polygamma(1, half))
    if excess <= float(polygamma(1, 1e6)):  # as alike as chance makes them
        return positive.mean().expand(variance.shape)
    prior = brentq(lambda d: float(polygamma(1, d)) - excess, 1e-6, 1e6)  # d_0 / 2
    common = float(np.exp(logs.mean() + psi(prior) - np.log(prior)))
    return (prior * common + half * variance) / (prior + half)


class _Done:
    """The refits that are done, in a file if there is one.

    Args:
        path: the file.
        rows: of the data.
        options: what the refits depend on; functions by their names.
    """

    def __init__(self, path: str | Path | None, rows: Batch, options: dict[str, Any]) -> None:
        self.values: list[Tensor] = []
        self.rejected: list[Tensor] = []
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        data = as_batches(_single(rows), 8192).fingerprint()
        self._key = f"{data}; {', '.join(_described(options))}"
        if not self._path.exists():
            return
        held = load(self._path)
        if not isinstance(held, dict) or held.get("refits of") != self._key:
            raise InputError(
                f"expected refits on these rows with these settings in {str(path)!r}; got others. "
                "Name another file by checkpoint=, or delete this one."
            )
        self.values, self.rejected = held["values"], held["rejected"]

    def add(self, values: Tensor, rejected: Tensor) -> None:
        self.values.append(values)
        self.rejected.append(rejected)
        if self._path is not None:
            content = {"values": self.values, "rejected": self.rejected}
            save({"refits of": self._key, **content}, self._path)


def _described(options: Mapping[str, Any]) -> Iterator[str]:
    """Settings as texts that are the same in another session."""
    for name, value in sorted(options.items()):
        if isinstance(value, Mapping):
            yield f"{name}({', '.join(_described(value))})"
        elif isinstance(value, Tensor):
            yield f"{name}={value.tolist()}"
        elif callable(value):
            yield f"{name}={getattr(value, '__qualname__', type(value).__qualname__)}"
        else:
            yield f"{name}={value!r}"
