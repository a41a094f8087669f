"""Two latent layers: p(z2) p(z1 | z2) p(x | z1, z2), with a standard normal and a VampPrior on top.

Each model is trained on binarised digits. Then an ex-post prior is fitted to the aggregated
posterior of its top latent and put in the place of p(z2), with all else as it was trained, and log
p(x) of test images is estimated under both. Last, both layers are taken as one latent.

python examples/two_layers.py --epochs 5
"""

import argparse

import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.data.datasets import load, split

TOP, INNER, HIDDEN = 4, 8, (100, 100)
PSEUDO_INPUTS = 50
BOTH = ("z2", "z1")
TERMS_ALONE = pv.Effort(
    codes=1000, evidence_rows=0, simulations=0, gap_rows=0, samples=0, export_rows=0, pictures=0
)


def build(train: Tensor, prior: str) -> pv.HierarchicalVAE:
    """The five networks; a module of two inputs gets them one behind the other."""
    torch.manual_seed(0)
    encoder = pv.mlp_encoder((8, 8), TOP, hidden=HIDDEN)
    flat, same = nn.Flatten(), nn.Identity()
    top = pv.StandardNormal(TOP) if prior == "standard normal" else None
    return pv.HierarchicalVAE(
        encoder,
        pv.Branches((same, same), pv.mlp_decoder(INNER + TOP, (8, 8), hidden=HIDDEN)),
        top or pv.VampPrior.from_data(encoder, train, PSEUDO_INPUTS, bounds=(0.0, 1.0)),
        inner_encoder=pv.Branches((flat, same), pv.mlp_encoder((64 + TOP,), INNER, hidden=HIDDEN)),
        conditional=pv.mlp_encoder((TOP,), INNER, hidden=HIDDEN),
    )


def main() -> None:
    """Train both, measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100, help="passes over the data")
    epochs = parser.parse_args().epochs
    train, validation, test = (part.values.round() for part in split(load("digits")))
    new = test if epochs > 10 else test[:40]

    for prior in ("standard normal", "VampPrior"):
        vae = build(train, prior)
        run = pv.fit(
            vae.model,
            vae.guide,
            train,
            validation=validation,
            epochs=epochs,
            kl_warmup=epochs // 2,
        )
        print(f"\n{prior} on top: {run}.")

        agg = pv.aggregate(vae.guide, train, site="z2")
        held_out = pv.encode(vae.guide, validation, site="z2")
        smooth = pv.fit_ex_post_prior(agg, held_out=held_out)
        for name, pair in (
            ("its own prior", vae),
            (f"the ex-post prior ({smooth.choice})", vae.with_prior(smooth)),
        ):
            found = pv.log_evidence(pair.model, pair.guide, new, site="z2", draws=500)
            print(f"log p(x) of test images under {name}: {found.mean()}")

        few, fewer = train[:200], test[:50]
        for site in ("z2", BOTH):
            terms = pv.diagnose(
                vae.model,
                vae.guide,
                few,
                held_out=fewer,
                site=site,
                effort=TERMS_ALONE,
            ).training
            print(
                f"{'z2 and z1' if site == BOTH else site} of 200 images: rate {terms.rate}, "
                f"KL(q_agg‖p) {terms.marginal_kl}, MI {terms.index_code_mi}"
            )


if __name__ == "__main__":
    main()
