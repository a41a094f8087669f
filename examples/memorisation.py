"""Which digits a model knows by heart, and which new images are unlike all that it has seen.

Among 300 digits are ten with their pixels in disorder, each in one of its own. Refits without each
fold say what a row gains in log p(x) by having been trained on: these ten gain most. New images are
half digits and half digits that are turned, and each has a p-value of its own.

python examples/memorisation.py --epochs 10 --out memorisation.png
"""

import argparse

import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyrovae as pv
from pyrovae.data import load
from pyrovae.populations import Novelty, RefitMemorisation

ROWS, SCRAMBLED, SHOWN = 300, 10, 8


def factory() -> pv.VAE:
    """A new pair, which each refit trains."""
    return pv.VAE(
        pv.mlp_encoder((64,), 8, hidden=(128,)),
        pv.mlp_decoder(8, (64,), "bernoulli", hidden=(128,)),
        pv.StandardNormal(8),
    )


def main() -> None:
    """Plant rows, refit, score new images, and draw what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data")
    parser.add_argument("--out", help="file for the picture")
    arguments = parser.parse_args()

    pyro.set_rng_seed(0)
    digits = (load("digits").values.flatten(1) >= 0.5).float()
    digits = digits[torch.randperm(len(digits))]
    train, held_out, new = digits[:ROWS].clone(), digits[ROWS : ROWS + 100], digits[-40:].clone()
    for row in train[-SCRAMBLED:]:
        row[:] = row[torch.randperm(64)]
    new[20:] = new[20:].view(-1, 8, 8).rot90(1, (1, 2)).flatten(1)

    settings = {"epochs": arguments.epochs, "batch_size": 25, "optimizer": pv.adam(2e-3)}
    gains = pv.memorisation(
        factory, train, folds=3, fit=settings, evidence={"method": "refined", "draws": 100}
    )
    print(f"gain in log p(x) by having been trained on: {gains.mean} nats")
    print(f"rows that gain most: {gains.exemplars(SHOWN)['most'].tolist()}")
    ranked = pv.auroc(gains.gain[-SCRAMBLED:], gains.gain[:-SCRAMBLED])
    print(f"AUROC of the ten planted rows: {ranked}")

    vae = factory()
    pv.fit(vae.model, vae.guide, train, **settings)
    agg = pv.aggregate(vae.guide, train)
    screen = pv.memorisation_screen(agg)
    print(f"without refits, fewest components: {screen.exemplars(SHOWN)['one_of_a_kind'].tolist()}")
    print(f"pairs with near-duplicate codes: {len(screen.twins)}")
    copies = pv.sample_copies(agg, {"q_agg": agg}, held_out=pv.encode(vae.guide, held_out).sample())
    print(f"draws of q_agg that one row carries: {copies.shares['q_agg']}")
    print(f"the same of held-out codes, which copy nothing: {copies.shares['held_out']}")

    found = pv.novelty((vae.model, vae.guide), new, calibration=held_out, draws=200)
    print(f"new rows found (20 to 39 are turned): {found.found.nonzero().flatten().tolist()}")
    if arguments.out:
        draw(train, gains, new, found).savefig(arguments.out, dpi=110)


def draw(train: Tensor, gains: RefitMemorisation, new: Tensor, found: Novelty) -> Figure:
    """The rows that gain most and least, and new rows from the least to the most alike."""
    lines = {
        "gain most": (train, gains.ranking, gains.gain, "{:+.1f}"),
        "gain least": (train, gains.ranking.flip(0), gains.gain, "{:+.1f}"),
        "new, most unlike": (new, found.p_value.argsort(), found.p_value, "p = {:.3f}"),
        "new, most alike": (
            new,
            found.p_value.argsort(descending=True),
            found.p_value,
            "p = {:.2f}",
        ),
    }
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots(len(lines), SHOWN)
    for line, (title, (rows, order, values, form)) in zip(axes, lines.items(), strict=True):
        line[0].set_ylabel(title)
        for ax, n in zip(line, order.tolist(), strict=False):
            ax.imshow(rows[n].view(8, 8), cmap="gray_r")
            ax.set_title(form.format(float(values[n])), fontsize=9)
            ax.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    main()
