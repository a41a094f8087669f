"""Where cells of treated and of control donors differ, with errors over donors and not over cells.

Ten thousand cells of eight donors are eight donors: cells of one donor are alike for reasons that
have nothing to do with the treatment. Counts of 40 genes are simulated with three kinds of cells;
the treatment changes one of them, and each donor has shares of the kinds and a shift of its own.

python examples/groups_of_cells.py --epochs 5 --out groups.png
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv

DONORS, CELLS, GENES, KINDS = 10, 120, 40, 3


def simulate() -> tuple[Tensor, Tensor, Tensor]:
    """Counts, shape ``(N, 40)``, with each cell's donor and kind; donors 0 to 4 are treated."""
    donor = torch.arange(DONORS).repeat_interleave(CELLS)
    shares = dist.Dirichlet(torch.full((KINDS,), 8.0)).sample((DONORS,))
    kind = dist.Categorical(shares[donor]).sample()
    log_rates = 1.0 + torch.randn(KINDS, GENES)[kind] + 0.15 * torch.randn(DONORS, GENES)[donor]
    treated = (donor < DONORS // 2) & (kind == 0)
    log_rates[treated, :12] += 1.2  # the treatment turns on twelve genes of one kind
    return dist.GammaPoisson(5.0, 5.0 / log_rates.exp()).sample(), donor, kind


def main() -> None:
    """Train, compare the groups, and draw where they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="passes over the data at most")
    parser.add_argument("--out", help="file for the picture")
    arguments = parser.parse_args()

    pyro.set_rng_seed(0)
    counts, donor, kind = simulate()
    vae = pv.VAE(
        pv.mlp_encoder((GENES,), 4, hidden=(64,)),
        pv.mlp_decoder(4, (GENES,), "negative_binomial", hidden=(64,)),
        pv.StandardNormal(4),
    )
    pv.fit(vae.model, vae.guide, counts, epochs=arguments.epochs, optimizer=pv.adam(3e-3))
    agg = pv.aggregate(vae.guide, counts)
    group = ["treated" if d < DONORS // 2 else "control" for d in donor.tolist()]
    contrast = pv.compare_groups(agg, group, replicates=donor).contrast("treated", "control")

    print(f"all cells together: p = {contrast.global_p_value:.3f} by permuting donors")
    print(f"KL(treated‖control) = {contrast.divergence:.2f} nats, over donors")
    for number in range(KINDS):
        found = contrast.found[kind == number].double().mean()
        print(f"kind {number}: {found:.0%} of the cells found at a false discovery rate of 10 %")
    print(f"cells to look at: {contrast.exemplars(3)}")
    if arguments.out:
        draw(agg, contrast.log_ratio, contrast.found).savefig(arguments.out, dpi=110)


def draw(agg: pv.AggregatedPosterior, ratio: Tensor, found: Tensor) -> Figure:
    """The codes along their two principal components, by log ratio and by what is found."""
    codes = agg.encoding.mean
    plane = (codes - codes.mean(0)) @ torch.pca_lowrank(codes, 2)[2]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    limit = float(ratio.abs().quantile(0.98))
    points = left.scatter(*plane.T, c=ratio, s=6, cmap="PuOr", vmin=-limit, vmax=limit)
    figure.colorbar(points, ax=left, label="log q(treated) − log q(control), nats")
    right.scatter(*plane[~found].T, s=6, color="#BBBBBB", label="not told apart")
    right.scatter(*plane[found].T, s=6, color="#D55E00", label="found at 10 %")
    right.legend(frameon=False)
    for ax in (left, right):
        ax.set(xlabel="first component of the codes", ylabel="second")
    return figure


if __name__ == "__main__":
    main()
