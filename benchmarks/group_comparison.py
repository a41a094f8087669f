"""Groups of donors: false discoveries where there is nothing, power, and the time of one pass.

Donors differ in the shares of three kinds of cells and by a shift of their own. Under the null
hypothesis the groups are donors alike; else one kind is shifted in one group. Beside the test of
`compare_groups` stands the rule of a fixed limit of the log ratio of two mixtures, as scvi-tools'
`differential_abundance` has it, its limit chosen such that it finds something as often as the test
does where there is nothing.

    python benchmarks/group_comparison.py --repetitions 400
    python benchmarks/group_comparison.py --pass
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae import AggregatedPosterior, compare_groups
from pyrovae.randomness import seeded

DONORS, CELLS, LEVEL = 10, 60, 0.1
CENTRES = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])


@dataclass(frozen=True)
class Cells:
    """Encodings of cells with their kinds, donors and groups."""

    agg: AggregatedPosterior
    kind: Tensor
    donor: Tensor
    group: Tensor


def cells(seed: int, shift: float) -> Cells:
    """Donors of two groups, of which the first has one kind of cells shifted."""
    with seeded(seed, "cells of donors"):
        donor = torch.arange(DONORS).repeat_interleave(CELLS)
        group = (donor >= DONORS // 2).long()
        shares = dist.Dirichlet(torch.full((3,), 5.0)).sample((DONORS,))
        kind = dist.Categorical(shares[donor]).sample()
        own = 0.1 * torch.randn(DONORS, 2)
        means = CENTRES[kind] + own[donor] + 0.5 * torch.randn(len(donor), 2)
        means[(kind == 1) & (group == 0), 1] += shift
    encoding = dist.Normal(means, torch.full_like(means, 0.3)).to_event(1)
    return Cells(AggregatedPosterior(encoding), kind, donor, group)


def plain_ratio(of: Cells) -> Tensor:
    """log q_A(z_n) − log q_B(z_n) of the donors' mixtures, with each cell's own component."""
    codes = of.agg.encoding.mean
    by_donor = [of.agg[of.donor == donor].log_prob(codes) for donor in range(DONORS)]
    half = DONORS // 2
    one, other = (torch.stack(part).logsumexp(0) for part in (by_donor[:half], by_donor[half:]))
    return one - other


def rates(repetitions: int, shift: float) -> None:
    """Print how often something is found where there is nothing, and what is found of a shift."""
    found, largest = [], []
    for seed in range(repetitions):
        null = cells(seed, 0.0)
        contrast = compare_groups(
            null.agg, null.group, replicates=null.donor, level=LEVEL
        ).contrast("0", "1")
        found.append(bool(contrast.found.any()))
        largest.append(plain_ratio(null).abs().max())
    rate = sum(found) / repetitions
    error = (LEVEL * (1 - LEVEL) / repetitions) ** 0.5
    limit = torch.stack(largest).quantile(1 - rate)
    print(f"nothing to find: something found in {rate:.1%} (nominal {LEVEL:.0%} ± {error:.1%})")
    print(f"limit of |log ratio| that does so as often: {float(limit):.2f}")
    shares: dict[str, list[tuple[float, float]]] = {"test": [], "fixed limit": []}
    for seed in range(repetitions):
        true = cells(repetitions + seed, shift)
        differs = true.kind == 1
        contrast = compare_groups(
            true.agg, true.group, replicates=true.donor, level=LEVEL
        ).contrast("0", "1")
        for name, rows in (
            ("test", contrast.found),
            ("fixed limit", plain_ratio(true).abs() > limit),
        ):
            false = float((rows & ~differs).sum() / rows.sum().clamp_min(1))
            shares[name].append((float(rows[differs].double().mean()), false))
    for name, pairs in shares.items():
        power, false = torch.tensor(pairs).mean(0).tolist()
        print(
            f"shift of {shift}: {name} finds {power:.1%} of the shifted; {false:.1%} of it falsely"
        )


def one_pass(rows: int = 60_000, groups: int = 100, units: int = 10) -> None:
    """Print the time of all densities of all groups beside a loop of plain mixtures."""
    with seeded(0, "rows of groups"):
        means = torch.randn(rows, units)
        scales = 0.1 + 0.2 * torch.rand(rows, units)
    agg = AggregatedPosterior(dist.Normal(means, scales).to_event(1))
    group = torch.arange(rows) % groups
    start = time.process_time()
    comparison = compare_groups(agg, group)
    ours = time.process_time() - start
    start = time.process_time()
    first = group == 0
    components = torch.distributions.Independent(
        torch.distributions.Normal(means[first], scales[first]), 1
    )
    weights = torch.distributions.Categorical(torch.ones(int(first.sum())))
    mixture = torch.distributions.MixtureSameFamily(weights, components)
    values = torch.cat([mixture.log_prob(part) for part in means.split(2048)])
    loop = (time.process_time() - start) * groups
    others = ~first
    gap = float((values[others].double() - comparison.log_density[others, 0]).abs().max())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{rows} codes x {groups} groups, D = {units}: {ours:.1f} s; a loop of torch's mixtures")
    print(f"{loop:.0f} s (one of {groups} measured), {loop / ours:.0f} times; {peak:.2f} GB; ")
    print(f"largest difference {gap:.1e} nats")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=400, help="of each (default 400)")
    parser.add_argument("--shift", type=float, default=0.6, help="of one kind (default 0.6)")
    parser.add_argument("--pass", dest="one_pass", action="store_true", help="only the timing")
    options = parser.parse_args()
    if options.one_pass:
        one_pass()
    else:
        rates(options.repetitions, options.shift)


if __name__ == "__main__":
    main()
