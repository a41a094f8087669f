"""The picture in the README: a latent plane of handwritten digits, seen as three densities.

python examples/picture.py --out docs/picture.png
"""

import argparse
from dataclasses import replace

import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.command.analysis import AnalysisOptions, build
from pyrovae.data.datasets import load, split
from pyrovae.plots.grids import mass_levels, pair_density

EDGE = 4.2  # of the plane that is drawn, in units of z
SIDE = 7  # images in a row of the sheet


def ellipses(ax: Axes, agg: pv.AggregatedPosterior, labels: torch.Tensor) -> None:
    """Every component as the ellipse of its standard deviations, coloured by its digit."""
    encoding = agg.component_distribution
    width, height = (2 * encoding.stddev).T.numpy()
    ax.add_collection(
        EllipseCollection(
            width,
            height,
            [0.0] * len(width),
            units="xy",
            offsets=encoding.mean.numpy(),
            offset_transform=ax.transData,
            array=labels.numpy(),
            cmap="tab10",
            facecolor="none",
            linewidth=0.6,
        )
    )


def density(ax: Axes, distribution: pv.AggregatedPosterior, shades: str) -> None:
    """A density over the plane as shades, with the prior's 50 and 90 % contours over it."""
    grid = torch.linspace(-EDGE, EDGE, 240)
    heights = pair_density(distribution, [0, 1], grid, grid)
    extent = (-EDGE, EDGE, -EDGE, EDGE)
    ax.imshow(heights**0.5, extent=extent, origin="lower", cmap=shades)
    prior = pair_density(pv.StandardNormal(2)(), [0, 1], grid, grid)
    levels = mass_levels(prior, [0.5, 0.9])
    ax.contour(prior, levels, extent=extent, colors="#0072B2", linestyles="--", linewidths=1.2)


def sheet(ax: Axes, images: torch.Tensor, title: str) -> None:
    """A square of images."""
    framed = torch.nn.functional.pad(images[: SIDE**2], (1, 1, 1, 1))
    rows = [torch.cat(list(row), 1) for row in framed.view(SIDE, SIDE, 10, 10)]
    ax.imshow(torch.cat(rows).numpy(), cmap="gray_r", vmin=0, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()


def main() -> None:
    """Train a VAE with two latent units and draw what its latent plane holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300, help="passes over the data")
    parser.add_argument("--out", default="picture.png", help="file to write")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    data = load("digits")
    parts = split(data)
    train, validation, test = (part.values for part in parts)
    vae = build(data, train, "normal", AnalysisOptions(latent=2, hidden=(128, 128)))
    pv.fit(vae.model, vae.guide, train, validation=validation, epochs=arguments.epochs)
    found = pv.diagnose(
        vae.model,
        vae.guide,
        train,
        held_out=test,
        validation=validation,
        effort=replace(
            pv.Effort() if arguments.epochs > 10 else pv.Effort.quick(), pictures=SIDE**2
        ),
    )

    figure = Figure(figsize=(10, 6.6), layout="constrained")
    top, bottom = figure.subplots(2, 3)
    ellipses(top[0], found.aggregated, parts.train.labels)
    top[0].set_title(f"q(z|x): {len(train):,} Gaussians, one for each image", fontsize=10)
    density(top[1], found.aggregated, "Oranges")
    top[1].set_title("q_agg(z): their mixture", fontsize=10)
    density(top[2], found.ex_post.distribution, "Greens")
    top[2].set_title(f"ex-post prior: {found.ex_post.choice}", fontsize=10)
    for ax in top:
        ax.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect="equal", xticks=[], yticks=[])
    sheet(bottom[0], found.pictures.samples["prior"], "decoded from the prior")
    for ax, name, title in ((bottom[1], "q_agg", "raw q_agg"), (bottom[2], "ex_post", "ex-post")):
        gain = found.evidence[name].minus(found.evidence["prior"])
        gained = f"log p(x) {gain.value:+.2f} ± {gain.standard_error:.2f} nats"
        sheet(ax, found.pictures.samples[name], f"{title}: {gained}")
    figure.savefig(arguments.out, dpi=110)
    print(f"{arguments.out}: {found.advice}")


if __name__ == "__main__":
    main()
