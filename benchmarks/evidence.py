"""log p(x) by each method on images, and by the default where it is known exactly.

Images: the share of k̂ above its limit, mean log p(x), evaluations of log p(x, z) and processor
time of an image for each method; then, with ``--annealed-rows``, the paired difference to long
annealing, which ``--keep`` lets be stopped and gone on with. Caltech-101, MNIST and Frey Faces take
``--data``, the folder of their files, and ``--checkpoint``, the weights of the study's one-layer
model (``studies/vampprior``); without it a plain VAE is trained on the silhouettes.

    python benchmarks/evidence.py digits
    python benchmarks/evidence.py caltech --data DIR --checkpoint FILE
    python benchmarks/evidence.py exact        # poor guides of a linear-Gaussian pair
    python benchmarks/evidence.py raw          # raw q_agg in closed form
    python benchmarks/evidence.py advice       # how often advice is wrong
    python benchmarks/evidence.py shapes       # two modes, heavy tails, a boundary
    python benchmarks/evidence.py rejected     # what new draws for rows that k̂ rejects change
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from exact_problems import mixture_evidence
from torch import Tensor

import pyrovae as pv
from pyrovae.command.analysis import AnalysisOptions, build
from pyrovae.data import default_likelihood, load, split
from pyrovae.estimates import mean_estimate
from pyrovae.evidence import Evidence, automatic
from pyrovae.testing import LinearGaussian, linear_gaussian_vae

METHODS = ("importance", "refined", "auto")
AT_ONCE = 4  # images whose long chains run between two savings


# -- images ----------------------------------------------------------------------------------------


def digits() -> tuple[pv.VAE, Tensor]:
    """The VAE that ``pyrovae analyze digits`` trains, and held-out images."""
    data = load("digits").single()
    train, validation, test = (part.values for part in split(data, seed=0))
    vae = build(data, train, default_likelihood(data), AnalysisOptions())
    pv.fit(vae.model, vae.guide, train, validation=validation, epochs=120, patience=30)
    return vae, test


def silhouettes(path: Path) -> tuple[pv.VAE, Tensor]:
    """A plain VAE of 40 units, trained here for 30 epochs, and test images in random order."""
    with np.load(path / "caltech101_silhouettes.npz") as content:
        train, validation, test = (
            torch.tensor(content[name], dtype=torch.float32).flatten(1)
            for name in ("x_train", "x_val", "x_test")
        )
    vae = pv.VAE(
        pv.mlp_encoder((784,), 40, hidden=(300, 300)),
        pv.mlp_decoder(40, (784,), "bernoulli", hidden=(300, 300)),
        pv.StandardNormal(40),
    )
    pv.fit(vae.model, vae.guide, train, validation=validation[:500], epochs=30, patience=30)
    return vae, test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]


def of_study(name: str, data: Path, checkpoint: Path) -> tuple[pv.VAE, Tensor]:
    """The study's model of one layer with a standard prior, and test images in random order."""
    from studies.vampprior import data as sources
    from studies.vampprior import networks

    images, source = sources.load(name, data), sources.SOURCES[name]
    vae = networks.build(
        1, "standard", "he", images.train, levels=source.levels, grey=source.grey, seed=0
    )
    vae.load_state_dict(torch.load(checkpoint))
    return vae.eval(), images.test


def on_images(options: argparse.Namespace) -> None:
    """Print a line for each method, and the difference to long annealing."""
    if options.part == "digits":
        vae, test = digits()
    elif options.data is None or (options.checkpoint is None and options.part != "caltech"):
        raise SystemExit(f"{options.part} needs --data, a folder, and --checkpoint, a file.")
    elif options.checkpoint is None:
        vae, test = silhouettes(options.data)
    else:
        vae, test = of_study(options.part, options.data, options.checkpoint)
    x = test[: options.rows]
    print(f"{options.part}: {len(x)} images, {options.draws} draws")
    for method in METHODS:
        start = time.process_time()
        result = quiet(vae, x, method=method, draws=options.draws)
        seconds = (time.process_time() - start) / len(x)
        print(
            f"{method:12} {f'{result.mean():.3f}':>20}; k̂ above its limit at "
            f"{share(result.unresolved)}; {mean_cost(result):,.0f} evaluations and "
            f"{seconds:.2f} s an image; rungs {dict(Counter(result.rungs or ()))}",
            flush=True,
        )
    if options.annealed_rows:
        beside_annealing(vae, x[: options.annealed_rows], result, options)


def beside_annealing(vae: pv.VAE, x: Tensor, auto: Evidence, options: argparse.Namespace) -> None:
    """Print auto − annealing, paired, of as many images as long chains have been run for."""
    values = torch.load(options.keep) if options.keep and options.keep.exists() else torch.empty(0)
    path = pv.Annealing(temperatures=options.temperatures, progress=False)
    while len(values) < len(x):
        rows = x[len(values) : len(values) + AT_ONCE]
        result = quiet(vae, rows, method=path, draws=options.chains, seed=len(values))
        values = torch.cat([values, result.values])
        if options.keep:
            torch.save(values, options.keep)
        cost = mean_cost(result)
        difference = auto.values[: len(values)] - values
        paired = mean_estimate(difference, over="data")
        print(
            f"auto − annealing ({options.temperatures} temperatures, {options.chains} chains): "
            f"{paired:.3f} over {len(values)} images; evaluations 1 : "
            f"{cost / mean_cost(auto):.0f}",
            flush=True,
        )


# -- exact problems --------------------------------------------------------------------------------


def poor_guides(latent: int) -> dict[str, tuple[Callable, Callable, LinearGaussian]]:
    """Model and guide by what is wrong with the guide, and the exact pair."""
    exact = linear_gaussian_vae(2 * latent, latent)
    distortions = {
        "mean + 2 sd": {"shift": 2.0},
        "scale × 0.3": {"scale": 0.3},
        "scale × 3": {"scale": 3.0},
    }
    pairs = {}
    for name, distortion in distortions.items():
        vae = exact.vae(**distortion)
        pairs[name] = (vae.model, vae.guide, exact)
    turn = torch.linalg.qr(torch.randn(latent, latent, dtype=torch.float64)).Q
    weight = exact.weight @ turn  # p(x) is the same, and the posterior is not diagonal any more
    precision = torch.eye(latent, dtype=torch.float64) + weight.T @ weight / exact.noise**2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            mean = z @ weight.T + exact.bias
            pyro.sample("x", dist.Normal(mean, exact.noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = torch.linalg.solve(precision, weight.T @ (x - exact.bias).T / exact.noise**2).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, precision.diagonal().rsqrt()).to_event(1))

    return pairs | {"correlation": (model, guide, exact)}


def on_exact(options: argparse.Namespace) -> None:
    """Print the error and the coverage over rows that are a repeat each."""
    for latent in (2, 10, 40):
        for name, (model, guide, exact) in poor_guides(latent).items():
            x = exact.sample(options.repeats, seed=1)
            result = of_pair(model, guide, x, draws=options.draws)
            off = (result.values - exact.log_prob(x)) / result.standard_error
            print(
                f"D = {latent:2}, {name:12}: mean error {(off * result.standard_error).mean():+.4f}"
                f" ± {result.standard_error.square().sum().sqrt() / len(x):.4f}, largest "
                f"{off.abs().max():.1f} s.e., coverage {(off.abs() < 1.96).double().mean():.1%}, "
                f"unresolved {share(result.unresolved)}",
                flush=True,
            )


def on_raw(options: argparse.Namespace) -> None:
    """Print log p(x) with raw q_agg in the prior's place beside its closed form."""
    for latent, components in ((5, 300), (6, 2000), (10, 300), (20, 2000)):
        exact = linear_gaussian_vae(2 * latent, latent, noise=0.3)
        vae, x = exact.vae(), exact.sample(min(options.repeats, 300), seed=2)
        aggregated = pv.aggregate(vae.guide, exact.sample(components, seed=1))
        truth = mixture_evidence(exact, aggregated).log_prob(x)
        result = quiet(vae, x, draws=options.draws, prior=aggregated)
        off = ((result.values - truth) / result.standard_error)[~result.unresolved]
        print(
            f"D = {latent}, {components} components: mean error "
            f"{(result.values - truth).mean():+.4f}, largest {off.abs().max():.1f} s.e. of the "
            f"resolved, unresolved {share(result.unresolved)}, {mean_cost(result):,.0f} "
            "evaluations a row",
            flush=True,
        )


def on_advice(options: argparse.Namespace) -> None:
    """Print how often the density that is advised has a lower log p(x) than the prior.

    Data come from p(z) = N(0, I), which no other density can beat, or from a pair whose prior is
    three times as wide, where q_agg or what is fitted to it may gain. Guides are off in 3 ways.
    """
    wrong, said, gains = 0, Counter[str](), []
    effort = pv.Effort(
        codes=400, evidence_rows=50, export_rows=0, pictures=0, two_sample=20, simulations=0,
        gap_rows=0, samples=0,
    )  # fmt: skip
    distortions = ({"scale": 0.3, "shift": 2.0}, {"shift": 2.0}, {"scale": 0.5, "shift": 1.0})
    for repeat in range(options.repeats):
        latent, width = (2, 6)[repeat % 2], (1.0, 3.0)[repeat // 2 % 2]
        exact = linear_gaussian_vae(12, latent, seed=repeat)
        vae = exact.vae(**distortions[repeat // 4 % 3])
        vae = vae.with_prior(dist.Normal(exact.weight.new_zeros(latent), width).to_event(1))
        train, validation, x = (
            exact.sample(size, seed=3 * repeat + part) for part, size in enumerate((300, 150, 100))
        )
        with warnings.catch_warnings(action="ignore"):
            diagnosis = pv.diagnose(
                vae.model, vae.guide, train, held_out=x, validation=validation,
                effort=effort, seed=repeat, progress=False,
            )  # fmt: skip
        fresh = exact.sample(5000, seed=10**6 + repeat)
        of_prior = LinearGaussian(width * exact.weight, exact.bias, exact.noise).log_prob(fresh)
        densities = {"q_agg": diagnosis.aggregated, "ex_post": diagnosis.ex_post.distribution}
        choice = diagnosis.recommended
        if choice in densities:
            gain = mixture_evidence(exact, densities[choice]).log_prob(fresh) - of_prior
            gains.append(float(gain.mean()))
            wrong += gains[-1] <= 0
        said[f"{choice}, prior {'as wide as it is' if width == 1 else 'three times as wide'}"] += 1
        if said.total() % 10 == 0:
            print(
                f"advice: wrong at {wrong} of {said.total()}; {dict(said)}; least true gain "
                f"{min(gains, default=float('nan')):.2f}",
                flush=True,
            )


def on_rejected(options: argparse.Namespace) -> None:
    """Print what it changes that rows whose weights k̂ rejects have new ones."""
    given = options.checkpoint is not None
    vae, x = of_study("mnist", options.data, options.checkpoint) if given else digits()
    x = x[: options.rows]
    for draws in (100, 500):
        runs = partial(quiet, vae, x, draws=draws)
        last = [runs(seed=seed) for seed in range(3)]
        with patch.object(automatic, "_rejected", lambda weights: torch.zeros_like(weights[0]) > 0):
            first = [runs(seed=seed) for seed in range(3)]
        change = torch.cat([a.values - b.values for a, b in zip(last, first, strict=True)])
        before, after = (
            share(torch.cat([result.unresolved for result in results])) for results in (first, last)
        )
        print(
            f"{draws} draws: mean changed by {change.mean():+.4f} ± "
            f"{change.std() / len(change) ** 0.5:.4f} nats, k̂ above its limit at {before} before, "
            f"{after} after",
            flush=True,
        )


def shapes() -> dict[str, tuple[Callable, Callable, Tensor]]:
    """Pairs of one unit whose posterior has two modes, heavy tails or a boundary, with a grid."""
    line = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    long_line = torch.linspace(-3000, 3000, 200_001, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)

    def pair(prior: dist.Distribution, likelihood: Callable, q: Callable) -> tuple:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior.to_event(1))
                pyro.sample("x", likelihood(z).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", q(x).to_event(1))

        return model, guide

    two = pair(
        dist.Normal(zero, 1.0),
        lambda z: dist.Normal(z.square(), 0.2),
        lambda x: dist.Normal(x.clamp_min(0.1).sqrt(), 0.1),
    )
    heavy = pair(
        dist.StudentT(2.0, zero, 1.0),
        lambda z: dist.StudentT(2.0, z, 0.5),
        lambda x: dist.Normal(x / 2, 0.3),
    )
    edge = pair(
        dist.Gamma(zero + 0.5, 1.0),
        lambda z: dist.Poisson(z, validate_args=False),
        lambda x: dist.LogNormal((x + 1.0).log(), 0.2),
    )
    return {
        "two modes": (*two, line),
        "heavy tails": (*heavy, long_line),
        "boundary": (*edge, line),
    }


def on_shapes(options: argparse.Namespace) -> None:
    """Print how many rows are neither within 4.5 standard errors nor said to be unresolved."""
    for name, (model, guide, line) in shapes().items():
        x = simulated(name, min(options.repeats, 200))
        if name == "boundary":
            truth = dist.GammaPoisson(0.5, 1.0).log_prob(x.double().squeeze(-1))
        else:
            truth = integral(model, x, line)
        result = of_pair(model, guide, x, draws=options.draws)
        off = ((result.values - truth) / result.standard_error).abs()
        missed = (off > 4.5) & ~result.unresolved
        print(
            f"{name:12}: missed without a word {int(missed.sum())} of {len(x)}, largest "
            f"{off[~result.unresolved].max():.1f} s.e., unresolved {share(result.unresolved)}, "
            f"rungs {dict(Counter(result.rungs or ()))}",
            flush=True,
        )


def simulated(name: str, rows: int) -> Tensor:
    """Rows from the model of a shape."""
    shape = torch.Size([rows, 1])
    if name == "two modes":
        z = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0).sample(shape)
        return z.square() + 0.2 * torch.randn_like(z)
    if name == "heavy tails":
        z, noise = dist.StudentT(torch.tensor(2.0, dtype=torch.float64)).sample((2, *shape))
        return z + 0.5 * noise
    return dist.Poisson(
        dist.Gamma(torch.tensor(0.5, dtype=torch.float64), 1.0).sample(shape)
    ).sample()


def integral(model: Callable, x: Tensor, line: Tensor) -> Tensor:
    """log p(x) of each row by a sum over a grid of codes of one unit."""
    values = []
    for row in x:
        conditioned = pyro.poutine.condition(model, {"z": line.unsqueeze(-1)})
        trace = pyro.poutine.trace(conditioned).get_trace(row.expand(len(line), 1))
        trace.compute_log_prob()
        joint = sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site)
        values.append(joint.logsumexp(0) + (line[1] - line[0]).log())
    return torch.stack(values)


# -- what all share --------------------------------------------------------------------------------


def quiet(vae: pv.VAE, x: Tensor, **settings: object) -> Evidence:
    """log p(x) without the warnings, which say what the table shows."""
    return of_pair(vae.model, vae.guide, x, **settings)


def of_pair(model: Callable, guide: Callable, x: Tensor, **settings: object) -> Evidence:
    """The same of any pair."""
    with warnings.catch_warnings(action="ignore"):
        return pv.log_evidence(model, guide, x, **settings)


def share(rows: Tensor) -> str:
    """A number of rows, and their share."""
    return f"{int(rows.sum())} of {len(rows)} ({float(rows.double().mean()):.1%})"


def mean_cost(result: Evidence) -> float:
    """Evaluations of log p(x, z) a row."""
    return float("nan") if result.cost is None else float(result.cost.double().mean())


PARTS = {
    "exact": on_exact,
    "raw": on_raw,
    "advice": on_advice,
    "shapes": on_shapes,
    "rejected": on_rejected,
}
IMAGES = ("digits", "caltech", "mnist", "frey")


def main() -> None:
    """Measure one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=[*IMAGES, *PARTS])
    parser.add_argument("--data", type=Path, help="the folder of the images' .npz files")
    parser.add_argument("--checkpoint", type=Path, help="weights of the study's one-layer model")
    parser.add_argument("--rows", type=int, default=359, help="held-out images, at most")
    parser.add_argument("--draws", type=int, default=2000, help="for each image or row")
    parser.add_argument("--annealed-rows", type=int, default=0, help="images for long annealing")
    parser.add_argument("--temperatures", type=int, default=1000, help="of long annealing")
    parser.add_argument("--chains", type=int, default=64, help="of long annealing")
    parser.add_argument("--keep", type=Path, help="file of annealed values, to go on with")
    parser.add_argument("--repeats", type=int, default=400, help="of an exact problem")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    PARTS.get(options.part, on_images)(options)


if __name__ == "__main__":
    main()
