"""log p(x) of held-out rows under each density: at which rows, and for what cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.diagnostics.advice import PREFERENCE, is_settled
from pyrovae.diagnostics.effort import COMPONENTS, Effort
from pyrovae.evidence import (
    Evidence,
    automatic_evidence,
    compare_priors,
    join,
    refined_evidence,
)
from pyrovae.mixture import Mixture
from pyrovae.pairs import Encoded, Pair
from pyrovae.progress import Bar
from pyrovae.randomness import derived_seed, seeded


def shuffle(rows: int, seed: int) -> Tensor:
    """Numbers of rows in a random order, of which as many as needed are taken from the start."""
    with seeded(seed, "order of the held-out rows"):
        return torch.randperm(rows)


def choose_rows(rows: int, size: int, seed: int) -> Tensor:
    """Numbers of a random choice of rows, in rising order."""
    return shuffle(rows, seed)[:size].sort().values


def evidence_steps(effort: Effort, rows: int, components: int) -> int:
    """Steps of the progress bar that the estimates of log p(x) take."""
    rows = min(effort.evidence_rows, rows)
    if effort.method == "importance":
        return rows
    return (len(PREFERENCE) - 1) * rows + min(rows, effort.rows_under_q_agg(components))


def evidence_under(
    pair: Pair,
    x: Tensor,
    encoded: Encoded,
    numbers: Tensor,
    densities: Mapping[str, dist.Distribution],
    needed: float,
    effort: Effort,
    seed: int,
    bar: Bar,
) -> tuple[dict[str, Evidence], Tensor]:
    """log p(x) of a random choice of rows under each density, by name; empty without rows.

    Returns:
        the estimates, with ``numbers`` of their rows, and the places of these rows in ``x``, in
        rising order: those of a first look if it settles the advice.
    """
    chosen = choose_rows(len(x), effort.evidence_rows, seed)
    if not len(chosen):
        return {}, chosen
    priors = {**densities, "prior": None}  # the model's own, whatever it is compared with
    results: dict[str, Evidence] = {}
    if effort.method == "importance":  # one set of draws serves all
        results = compare_priors(
            pair,
            x[chosen],
            priors,
            draws=effort.evidence_draws,
            encoded=encoded.take(chosen),
            seed=seed,
            tick=bar.tick,
        )
        results = {n: replace(found, rows=numbers[chosen]) for n, found in results.items()}
        return {**results, "q_agg": replace(results["q_agg"], needed=needed)}, chosen
    sizes = {n: density.size for n, density in densities.items() if isinstance(density, Mixture)}
    large = {n: size for n, size in sizes.items() if n == "q_agg" or size > COMPONENTS}
    most = dict.fromkeys(priors, len(chosen))
    most |= {name: effort.rows_under_q_agg(size) for name, size in large.items()}
    order = chosen[shuffle(len(chosen), derived_seed(seed, "rows under q_agg")).to(chosen.device)]
    known = 0
    for number, look in enumerate(effort.looks(len(chosen), sizes["q_agg"])):
        for name, prior in priors.items():
            rows = order[known : min(look, most[name])].sort().values
            if not len(rows):
                continue
            cost = effort.evidence_cost
            if name in large:
                cost = effort.cost_under_q_agg(large[name])
            found = _estimator(effort, cost)(
                pair,
                x[rows],
                draws=effort.evidence_draws,
                prior=prior,
                encoded=encoded.take(rows),
                seed=derived_seed(seed, "later look", number) if number else seed,
                tick=bar.tick,
            )
            results[name] = _with_rows(results.get(name), replace(found, rows=numbers[rows]))
        known = look
        results["q_agg"] = replace(results["q_agg"], needed=needed)
        more = [n for n, rows in most.items() if n != "prior" and rows > known]
        if known == len(chosen) or is_settled(results, more, look=number):
            break
    steps = evidence_steps(effort, len(x), sizes["q_agg"])
    bar.tick(steps - sum(len(found.values) for found in results.values()))
    return results, order[:known].sort().values


def _with_rows(first: Evidence | None, more: Evidence) -> Evidence:
    """What is known of some rows and of others, in the order of their numbers."""
    if first is None:
        return more
    both = join([first, more])
    return both.subset(cast(Tensor, both.rows).argsort())


def _estimator(effort: Effort, max_cost: int) -> Callable[..., Evidence]:
    if effort.method == "refined":
        return refined_evidence
    return partial(automatic_evidence, max_cost=max_cost)
