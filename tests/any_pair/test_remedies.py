"""What an error names as its remedy works when followed: every error of the files about pairs.

A case is a call that is refused, a part of what the refusal says, and the same call with the remedy
followed, which has to return. That no error lacks a case is a test of its own.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.infer import autoguide
from registry import EXACT
from torch import Tensor

import pyrovae as pv
from pyrovae.pairs.under_prior import UnderPrior

ROWS, LATENT = 40, 2
X = EXACT.sample(ROWS)
TINY = pv.Effort(
    codes=64, evidence_rows=6, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
    simulations=0, gap_rows=0, samples=30,
)  # fmt: skip
FILES = [
    *(
        f"pairs/{name}.py"
        for name in (
            "pair",
            "site_density",
            "trace_reader",
            "site_scores",
            "joint_sites",
            "encoding",
            "many_arguments",
            "under_prior",
            "nested_arguments",
            "reachable_modules",
        )
    ),
    "mixture/families/shared_transforms.py",
]


@dataclass(frozen=True)
class Case:
    """A refusal and what works after it.

    Args:
        name: what the user did.
        refused: the call.
        says: a part of the message, with its remedy.
        followed: the same with the remedy; each works.
    """

    name: str
    refused: Callable[[], Any]
    says: str
    followed: tuple[Callable[[], Any], ...]


CASES: list[Case] = []


def case(name: str, refused: Callable[[], Any], says: str, *followed: Callable[[], Any]) -> None:
    CASES.append(Case(name, refused, says, followed))


# -- pairs to be refused ---------------------------------------------------------------------------


def standard(units: int = LATENT) -> dist.Distribution:
    return dist.Normal(torch.zeros(units, dtype=X.dtype), 1.0).to_event(1)


def normal(x: Tensor) -> dist.Distribution:
    return dist.Normal(x[..., :LATENT], 1.0).to_event(1)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        observe(pyro.sample("z", standard()), x)


def observe(z: Tensor, x: Tensor) -> None:
    mean = z @ EXACT.weight.T + EXACT.bias
    pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", EXACT.posterior(x))


def in_plate(*sites: tuple[str, Callable[[Tensor], Any]]) -> Callable[[Tensor], None]:
    def of_sites(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name, law in sites:
                pyro.sample(name, law(x))

    return of_sites


def aggregate(guide: Any, **options: Any) -> Callable[[], Any]:
    return lambda: pv.aggregate(guide, options.get("data", X), **without(options, "data"))


def evidence(model: Any, guide: Any = guide, **options: Any) -> Callable[[], Any]:
    return lambda: pv.log_evidence(
        model, guide, options.get("data", X), **{"draws": 3} | without(options, "data")
    )


def diagnose(model: Any, guide: Any = guide, **options: Any) -> Callable[[], Any]:
    data, held_out = options.get("data", X), options.get("held_out", X[:12])
    rest = without(options, "data", "held_out")
    return lambda: pv.diagnose(model, guide, data, held_out=held_out, effort=TINY, **rest)


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", normal(x))
        pyro.sample("z", dist.Normal(top, 1.0).to_event(1))


def chain_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", standard())
        observe(pyro.sample("z", dist.Normal(top, 1.0).to_event(1)), x)


case(
    "a site given another",
    aggregate(chain),
    r"draws of \['top'\]. Name the site that is drawn first, site='top', or all of them as one, "
    r"site=\('top', 'z'\)",
    aggregate(chain, site="top"),
    aggregate(chain, site=("top", "z")),
    evidence(chain_model, chain, site="top"),
)


case(
    "half a step",
    aggregate(guide, model=model, refine=0.5),
    "a whole number of steps, 0 for none; got 0.5. Try 100",
    aggregate(guide, model=model, refine=2),
)
case(
    "steps without a model",
    aggregate(guide, refine=2),
    "whose ELBO is climbed; got refine= without one. Give it with model=",
    aggregate(guide, model=model, refine=2),
)


def three(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", normal(x))
        z = pyro.sample("z", dist.Normal(top, 1.0).to_event(1))
        pyro.sample("last", dist.Normal(z, 1.0).to_event(1))


case(
    "two of three in a row",
    aggregate(three, site=("z", "last")),
    r"site='top', or all of them as one, site=\('top', 'z', 'last'\)",
    aggregate(three, site="top"),
    aggregate(three, site=("top", "z", "last")),
)


def counted(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        depth = pyro.sample("depth", dist.Poisson(x[:, 0].exp()))
        pyro.sample("z", dist.Normal(x[:, :2] + depth.unsqueeze(-1), 1.0).to_event(1))


def counted_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        depth = pyro.sample("depth", dist.Poisson(1.0))
        z = pyro.sample("z", standard())
        observe(z + 0.1 * depth.unsqueeze(-1), x)


def with_depth(function: Any) -> Callable[[Tensor, Tensor], Any]:
    return lambda x, depth: pyro.poutine.condition(function, {"depth": depth})(x)


DEPTH = torch.arange(ROWS, dtype=X.dtype).remainder(3)

case(
    "a count without an end",
    aggregate(counted),
    r"Give the draws of \['depth'\] as data, in model and guide alike: lambda x, depth: "
    r'pyro.poutine.condition\(guide, \{"depth": depth\}\)\(x\)',
    lambda: pv.aggregate(with_depth(counted), (X, DEPTH), batch_size=7),
    lambda: pv.log_evidence(
        with_depth(counted_model), with_depth(counted), (X, DEPTH), draws=3
    ),
    diagnose(
        with_depth(counted_model), with_depth(counted), data=(X, DEPTH),
        held_out=(X[:12], DEPTH[:12]),
        observed="x",
    ),
)  # fmt: skip


def scaled(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], scale).to_event(1))


def scaled_model(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        observe(pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1)), x)


def fixed(function: Any) -> Any:
    return pyro.poutine.condition(function, {"scale": torch.tensor(0.9)})


case(
    "a guide whose codes hang on one draw for all rows",
    aggregate(scaled),
    r'in model and guide alike: pyro.poutine.condition\(guide, \{"scale": scale_value\}\)',
    aggregate(fixed(scaled)),
    evidence(fixed(scaled_model), fixed(scaled)),
    diagnose(fixed(scaled_model), fixed(scaled)),
)
case(
    "a prior that hangs on one draw for all rows",
    diagnose(scaled_model),
    r"by passing prior=. Fix what is one for all rows in model and guide alike: "
    r"pyro.poutine.condition\(model",
    diagnose(scaled_model, prior=standard()),
    evidence(scaled_model),
    diagnose(fixed(scaled_model)),
    evidence(fixed(scaled_model)),
)


def labelled_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        observe(pyro.sample("z", dist.Normal(x[:, :2].sign(), 1.0).to_event(1)), x)


case(
    "a prior by row",
    diagnose(labelled_model),
    "Compare the aggregated posterior with a prior of your own by passing prior=",
    diagnose(labelled_model, prior=standard()),
)


def noisy(in_rows: bool) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        if not in_rows:
            pyro.sample("noise", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", len(x)):
            if in_rows:
                pyro.sample("noise", dist.LogNormal(0.0, 0.1))
            pyro.sample("z", EXACT.posterior(x))

    return guide


def noisy_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("noise", dist.LogNormal(0.0, 0.1))
        observe(pyro.sample("z", standard()), x)


case(
    "a site in the plate of the model only",
    evidence(noisy_model, noisy(in_rows=False)),
    r"around the guide's site 'noise'; got none.*Put it under with pyro.plate",
    evidence(noisy_model, noisy(in_rows=True)),
)


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        mean = z @ EXACT.weight.T + EXACT.bias
        for name, part in (("left", slice(0, 3)), ("right", slice(3, 6))):
            pyro.sample(name, dist.Normal(mean[:, part], 1.0).to_event(1), obs=x[:, part])


case(
    "two observed sites",
    diagnose(two_sites),
    r"got \['left', 'right'\]. Give the site obs=, or name the one that is meant with observed=",
    diagnose(two_sites, observed="left"),
)
case(
    "an observed site that is not there",
    diagnose(two_sites, observed="middle"),
    r"got \['left', 'right'\]. Name one of those with observed=",
    diagnose(two_sites, observed="right"),
)


def unobserved(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        pyro.sample("x", dist.Normal(z @ EXACT.weight.T, 1.0).to_event(1))


case(
    "no data in the model",
    evidence(unobserved),
    "Give a site obs=, and the data as an argument",
    evidence(model),
)


def beside(x: Tensor) -> None:
    """A second code that the guide has too."""
    with pyro.plate("data", len(x)):
        z, w = pyro.sample("z", standard()), pyro.sample("w", standard())
        observe(z + w, x)


both = in_plate(("z", normal), ("w", normal))
case(
    "annealing beside a second code",
    evidence(beside, both, method=pv.Annealing(temperatures=3)),
    r"Name all of them as one: site=\('z', 'w'\)",
    evidence(beside, both, method=pv.Annealing(temperatures=3), site=("z", "w")),
)


def with_helper(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        helper = pyro.sample("helper", normal(x))
        pyro.sample("z", dist.Normal(0.5 * helper, 1.0).to_event(1))


def helper_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        pyro.sample("helper", dist.Normal(z, 1.0).to_event(1))
        observe(z, x)


case(
    "a site of the guide alone",
    evidence(model, with_helper),
    r"Let the model draw \['helper'\] given z, from any distribution",
    evidence(helper_model, with_helper),
    diagnose(helper_model, with_helper, site=("helper", "z"), prior=standard(4)),
)

# -- sites -----------------------------------------------------------------------------------------

case(
    "a latent of another name",
    aggregate(in_plate(("code", normal))),
    r"got \['code'\]. Name one of those with site=",
    aggregate(in_plate(("code", normal)), site="code"),
)


def observed_code(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", normal(x), obs=x[:, :2])
        pyro.sample("w", normal(x))


case(
    "an observed site as the latent",
    aggregate(observed_code),
    r"Latent are \['w'\]: name one of those with site=",
    aggregate(observed_code, site="w"),
)


def square(x: Tensor) -> None:
    with pyro.plate("one", LATENT, dim=-2), pyro.plate("two", LATENT, dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(LATENT, LATENT), 1.0))


case(
    "two plates of one fixed size",
    aggregate(square, data=X[:LATENT]),
    "Name the one over the data with data_plate=",
    aggregate(square, data=X[:LATENT], data_plate="two"),
)


def no_plate(x: Tensor) -> None:
    pyro.sample("z", normal(x))


case(
    "no plate",
    aggregate(no_plate),
    r"Put it under with pyro.plate\(\"data\", len\(x\)\):",
    aggregate(in_plate(("z", normal))),
)


def fixed_plate(rows: int | None) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        loc = pyro.param(f"loc{rows}", torch.zeros(rows or 1, LATENT))
        with pyro.plate("people", rows or len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return guide


case(
    "a plate of fixed size",
    aggregate(fixed_plate(ROWS), batch_size=7),
    "give as many rows as that: to encode and aggregate all of them at once, with batch_size=",
    aggregate(fixed_plate(ROWS), batch_size=ROWS),
    aggregate(fixed_plate(None), batch_size=7),
    evidence(model, fixed_plate(ROWS)),
)
case(
    "other rows than a plate of fixed size has",
    evidence(model, fixed_plate(ROWS), data=X[:7]),
    r'Write pyro.plate\("data", len\(x\)\), or, if the plate has a fixed size, give as many rows',
    evidence(model, fixed_plate(ROWS)),
    evidence(model, fixed_plate(None), data=X[:7]),
)


def in_units(x: Tensor) -> None:
    with pyro.plate("units", LATENT, dim=-1), pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0))


def by_row_in_plate(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        loc = pyro.param("locs", torch.zeros(ROWS, LATENT), event_dim=1)
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def by_place(x: Tensor) -> None:
    loc = pyro.param("places", lambda: x[:, :LATENT].clone())
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


case(
    "parameters by row in a plate that knows",
    aggregate(by_row_in_plate, batch_size=7),
    "Give all rows that it was trained on at once: to encode and aggregate with batch_size= their",
    aggregate(by_row_in_plate, batch_size=ROWS),
    evidence(model, by_row_in_plate),
)
case(
    "parameters by place in a batch",
    aggregate(by_place, batch_size=ROWS // 2),
    "Give all rows that it was trained on at once: batch_size=",
    aggregate(by_place, batch_size=ROWS),
)
case(
    "event dimensions that are not declared",
    aggregate(in_plate(("z", lambda x: dist.Normal(x[:, :2], 1.0)))),
    r"Declare them with .to_event\(1\), or give them a plate of their own",
    aggregate(in_plate(("z", normal))),
    aggregate(in_units),
)


def cholesky(x: Tensor) -> Any:
    return dist.LKJCholesky(3, torch.ones(len(x)))


case(
    "an event of two dimensions that can't be laid out",
    aggregate(in_plate(("z", cholesky))),
    r"Give it one vector a row: batch shape \(B,\), event shape \(D,\). It stands at the guide's",
    aggregate(in_plate(("z", lambda x: dist.MultivariateNormal(x[:, :2], torch.eye(2))))),
)


def of_units(units: int) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :units], 1.0).to_event(1))

    return guide


case(
    "other units in guide and model",
    evidence(model, of_units(3)),
    "Give guide and model as many latent units there",
    evidence(model, of_units(2)),
)


def with_factor(guide: Any, model: Any) -> tuple[Any, Any]:
    def bonus(function: Any) -> Callable[[Tensor], None]:
        def more(x: Tensor) -> None:
            function(x)
            with pyro.plate("more", len(x)):
                pyro.factor("bonus", x[:, 0], has_rsample=False)

        return more

    return bonus(guide), bonus(model)


case(
    "a factor in the guide",
    evidence(model, with_factor(guide, model)[0]),
    "got the factor 'bonus' in each row. Put it into the model",
    evidence(with_factor(guide, model)[1], guide),
)


def laid_out(kind: Any) -> Any:
    made = kind(model)
    made(X)
    return made


def all_at_once(of: Any) -> Any:
    return pv.aggregate(of, X, batch_size=ROWS)


def by_importance(of: Any) -> Any:
    return pv.log_evidence(model, of, X, draws=3)


for kind in ("DiagonalNormal", "MultivariateNormal", "LowRankMultivariateNormal", "IAFNormal"):
    for measure in (all_at_once, by_importance):
        case(
            f"Auto{kind}",
            lambda kind=kind, measure=measure: measure(laid_out(getattr(autoguide, f"Auto{kind}"))),
            "take pyro.infer.autoguide.AutoNormal, which has parameters for each",
            lambda measure=measure: measure(laid_out(autoguide.AutoNormal)),
            lambda measure=measure: measure(guide),
        )

case(
    "a diagnosis of a guide with parameters by row",
    lambda: diagnose(model, laid_out(autoguide.AutoNormal))(),
    "Write an amortized guide. Where there are parameters for each row, as in AutoNormal, just "
    "these rows can go to pyrovae.aggregate, with batch_size= their number, and to "
    "pyrovae.log_evidence",
    diagnose(model),
    lambda: all_at_once(laid_out(autoguide.AutoNormal)),
    lambda: by_importance(laid_out(autoguide.AutoNormal)),
)


def drawn_noise(x: Tensor) -> None:
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        mean = z @ EXACT.weight.T + EXACT.bias
        pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=x)


def known_noise(function: Any) -> Any:
    return pyro.poutine.condition(function, {"noise": torch.tensor(0.9)})


SHORT = pv.Annealing(temperatures=3)
for measure in (
    lambda *pair: pv.log_evidence(*pair, X[:4], method=SHORT, draws=3),
    lambda *pair: pv.beside_nuts(*pair, X[:2], draws=5, warmup=5, chains=2, progress=False),
):
    case(
        "chains beside what is drawn for all rows",
        lambda measure=measure: measure(drawn_noise, noisy(in_rows=False)),
        "Fix with pyro.poutine.condition those that all rows share, or use log_evidence's "
        "method='importance'",
        lambda measure=measure: measure(
            known_noise(drawn_noise), known_noise(noisy(in_rows=False))
        ),
        evidence(drawn_noise, noisy(in_rows=False), method="importance"),
    )

# -- several sites as one, points, labels ----------------------------------------------------------


def fixed_chain(rows: int | None) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        loc = pyro.param(f"loc{rows}", torch.zeros(rows or 1, LATENT))
        with pyro.plate("data", rows or len(x)):
            top = pyro.sample("top", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("z", dist.Normal(top, 1.0).to_event(1))

    return guide


case(
    "a fixed number of rows and sites that depend on each other",
    aggregate(fixed_chain(ROWS), site=("z", "top")),
    r'Write pyro.plate\("data", len\(x\)\), or name the site that is drawn first: site=\'top\'',
    aggregate(fixed_chain(None), site=("z", "top")),
    aggregate(fixed_chain(ROWS), site="top"),
)


def joint_of(guide: Any) -> Any:
    return pv.aggregate(guide, X, site=("top", "z"))


case(
    "parts of two guides",
    lambda: pv.AggregatedPosterior.merge([joint_of(chain), joint_of(lambda x: chain(x))]),
    "Encode all data by one guide",
    lambda: pv.AggregatedPosterior.merge([joint_of(chain), joint_of(chain)]),
)
case(
    "a point",
    aggregate(in_plate(("z", lambda x: dist.Delta(x[:, :2], event_dim=1)))),
    "Draw it from a distribution with pyro.sample, such as a Normal",
    aggregate(in_plate(("z", normal))),
)


def label_first(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.OneHotCategorical(logits=x[:, :3]))
        pyro.sample("z", dist.Normal(x[:, :2] + y[..., :2], 1.0).to_event(1))


def label_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3)))
        observe(pyro.sample("z", standard()) + y[..., :2], x)


for site in ("y", ("y", "z")):
    case(
        "a label as the code",
        aggregate(label_first, site=site),
        r"Name continuous ones of \['z'\] with site=; 'y' is then summed over, or drawn",
        aggregate(label_first, site="z"),
        evidence(label_model, label_first, site="z"),
        diagnose(label_model, label_first, site="z"),
    )
case(
    "a label alone",
    aggregate(in_plate(("y", lambda x: dist.Categorical(logits=x))), site="y"),
    "Draw a continuous one with pyro.sample, such as a Normal, and name it with site=",
    aggregate(in_plate(("y", lambda x: dist.Categorical(logits=x)), ("z", normal)), site="z"),
)
simplex = in_plate(("a", normal), ("b", lambda x: dist.Dirichlet(x.exp())))
case(
    "units of a simplex beside others",
    aggregate(simplex, site=("a", "b")),
    "Take the sites one by one",
    aggregate(simplex, site="a"),
    aggregate(simplex, site="b"),
)
torch.manual_seed(1)
PLANAR = T.planar(LATENT).double()
IAF, COUPLING = T.affine_autoregressive(2).double(), T.spline_coupling(2).double()


def through(step: Any) -> Callable[[Tensor], None]:
    return in_plate(
        ("z", lambda x: dist.TransformedDistribution(dist.Normal(x[:, :2], 1.0), [step]))
    )


case(
    "a transform without an inverse",
    aggregate(through(PLANAR)),
    "Take a transform with an inverse, such as pyro.distributions.transforms.affine_autoregressive"
    " or spline_coupling",
    aggregate(through(IAF)),
    aggregate(through(COUPLING)),
)

# -- arguments, priors -----------------------------------------------------------------------------


def shifted_guide(x: Tensor, shift: Tensor) -> None:
    guide(x - shift)


def shifted_model(x: Tensor, shift: Tensor) -> None:
    model(x - shift)


SHIFT = torch.ones(ROWS, 1, dtype=X.dtype)
case(
    "fewer arguments in the held-out data",
    diagnose(shifted_model, shifted_guide, data=(X, SHIFT)),
    r"got 1 for each row. Give a tuple of as many arrays",
    diagnose(shifted_model, shifted_guide, data=(X, SHIFT), held_out=(X[:12], SHIFT[:12])),
)
case(
    "data of another form",
    lambda: pv.with_arguments(model, guide, {"x": X}).rows([X]),
    "Give all data sets one form",
    lambda: pv.with_arguments(model, guide, {"x": X}).rows({"x": X[:3]}),
)
case(
    "arguments without data",
    lambda: pv.with_arguments(model, guide, {"x": None}),
    "Give the data as the pair takes it",
    lambda: pv.with_arguments(model, guide, {"x": X}),
)


def under(prior: Any, of: Any = model, **names: Any) -> Callable[[], Any]:
    return lambda: pv.log_evidence(UnderPrior(of, prior, **names), guide, X, draws=3)


case(
    "another prior for several sites",
    lambda: UnderPrior(chain_model, standard(4), site=("top", "z")),  # type: ignore[arg-type]
    "Give the density of several as prior= to log_evidence, with site= as it is here",
    evidence(chain_model, chain, site=("top", "z"), prior=standard(4)),
)
case(
    "another prior for a site of another name",
    under(standard(), site="code"),
    "Give the name of its latent site with site=",
    under(standard(), site="z"),
)
case(
    "another prior without event dimensions",
    under(standard().base_dist),
    r"declare its units with .to_event\(1\)",
    under(standard().base_dist.to_event(1)),
)


def scalar_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


case(
    "another prior with units in the batch",
    lambda: pv.log_evidence(
        UnderPrior(scalar_model, dist.Normal(torch.zeros(3), 1.0)), of_units(1), X, draws=3
    ),
    "Give one density for all rows, of batch shape ()",
    lambda: pv.log_evidence(
        UnderPrior(scalar_model, dist.Normal(0.0, 1.0)),
        in_plate(("z", lambda x: dist.Normal(x[:, 0], 1.0))),
        X,
        draws=3,
    ),
)


# -- the tests -------------------------------------------------------------------------------------


case(
    "a site twice", aggregate(guide, site=("z", "z")), "Name each once", aggregate(guide, site="z")
)
case("no name", aggregate(guide, site=3), "Give one such as site='z'", aggregate(guide, site="z"))
case(
    "a plate that is none",
    evidence(model, data_plate="nope"),
    r"got \['data'\]. Name one of those with data_plate=",
    evidence(model, data_plate="data"),
    evidence(model),
)
case(
    "held-out rows of another dtype",
    diagnose(shifted_model, shifted_guide, data=(X, SHIFT), held_out=(X[:12].float(), SHIFT[:12])),
    "Reshape or convert them",
    diagnose(shifted_model, shifted_guide, data=(X, SHIFT), held_out=(X[:12], SHIFT[:12])),
)
case(
    "an encoder that diverged",
    aggregate(in_plate(("z", lambda x: dist.Normal(x[:, :2] / 0 * 0, 1.0).to_event(1)))),
    "finite parameters",
    aggregate(guide),
)

# Errors of masks, whose remedies test_masks.py and test_masked_sequences.py follow.
OF_MASKS = (
    "a model that draws",
    "a mask leaves",
    "masks that leave out",
    "all of the model's latent sites",
    "model and guide that depend on",
)

_network = torch.nn.Linear(X.shape[-1], LATENT)
_single = X.float()
of_network = in_plate(("z", lambda x: dist.Normal(_network(x), 1.0).to_event(1)))


def of_network_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(_network.bias), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ _network.weight, 1.0).to_event(1), obs=x)


def train(rows: Tensor) -> Callable[[], Any]:
    return lambda: pv.fit(of_network_model, of_network, rows, epochs=1, progress=False)


for _name, _with in {
    "rows of another dtype than the guide's network, encoded": lambda rows: aggregate(
        of_network, data=rows
    ),
    "rows of another dtype, weighed": lambda rows: evidence(
        of_network_model, of_network, data=rows
    ),
    "rows of another dtype, trained on": train,
}.items():
    case(_name, _with(X), "Convert them: x.to", _with(_single))


@pytest.fixture(autouse=True)
def rough_weights() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(k̂|support|hours|hardly moved)", UserWarning)
        yield


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_a_remedy_works_when_it_is_followed(one: Case) -> None:
    with pytest.raises(pv.InputError, match=one.says.replace("()", r"\(\)")) as refused:
        one.refused()
    assert "; got " in str(refused.value)
    for follow in one.followed:
        pyro.clear_param_store()
        assert follow() is not None


def places() -> dict[tuple[str, int], str]:
    """Where the files make an error, with the first line of the statement."""
    found = {}
    for name in FILES:
        path = Path(pv.__file__).parent / name
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if named and node.func.id in ("InputError", "OtherRows"):
                found[str(path), node.lineno] = source.splitlines()[node.lineno]
    return found


def test_no_error_of_these_files_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    met = set()

    def note(self: pv.InputError, *words: Any) -> None:
        frame = sys._getframe(1)
        met.add((frame.f_code.co_filename, frame.f_lineno))
        ValueError.__init__(self, *words)

    monkeypatch.setattr(pv.InputError, "__init__", note)
    for one in CASES:
        pyro.clear_param_store()
        with pytest.raises(pv.InputError):
            one.refused()
    of_masks = lambda line: any(words in line for words in OF_MASKS)  # noqa: E731
    left = {p: line for p, line in places().items() if p not in met and not of_masks(line)}
    assert not left, "\n".join(f"{Path(f).name}:{n}: {line}" for (f, n), line in left.items())
