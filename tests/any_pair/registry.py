"""One small pair for each way in which people write them; a function more is a pair more.

Most are the linear-Gaussian VAE of ``pyrovae.testing`` in other words, so that every one of them
has to give its numbers. A pair is added by one decorated function that returns ``(model, guide)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyrovae.testing import LinearGaussian, linear_gaussian_vae

ROWS, DATA, LATENT = 40, 6, 2
EXACT = linear_gaussian_vae(DATA, LATENT)


@dataclass(frozen=True)
class Case:
    """A pair and what is known of it.

    Args:
        make: returns ``(model, guide)``.
        batch: arguments of the pair from rows of x; by default x alone.
        exact: it is the linear-Gaussian VAE with its exact guide.
        amortized: the guide encodes rows that it was not trained on.
        names: ``site=``, ``data_plate=``, and ``observed=`` as they have to be given.
        fit: arguments of ``pv.fit``, where it needs any.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]
    batch: Callable[[Tensor], tuple[Tensor, ...]] = field(default=lambda x: (x,))
    exact: bool = True
    amortized: bool = True
    names: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)

    @property
    def encoder_names(self) -> dict[str, Any]:
        return {name: value for name, value in self.names.items() if name != "observed"}


CASES: list[Case] = []


def pair(**facts: Any) -> Callable[[Callable[[], tuple[Any, Any]]], None]:
    """Enter a pair into the registry."""

    def enter(make: Callable[[], tuple[Any, Any]]) -> None:
        CASES.append(Case(make.__name__, make, **facts))

    return enter


def likelihood(z: Tensor, shift: Any = 0.0) -> dist.Distribution:
    noise = pyro.param("noise", torch.tensor(EXACT.noise), constraint=constraints.positive)
    return dist.Normal(z @ EXACT.weight.T + EXACT.bias + shift, noise)


def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    q = EXACT.posterior(x)
    return q.mean, q.stddev


def standard(*shape: int) -> dist.Normal:
    return dist.Normal(torch.zeros(shape), 1.0)


def plain_guide(x: Tensor, *ignored: Any) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(*posterior(x)).to_event(1))


# -- where the parameters live ---------------------------------------------------------------------


@pair()
def functions_with_pyro_param() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", EXACT.weight.clone())
        noise = pyro.param("noise", torch.tensor(EXACT.noise), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + EXACT.bias, noise).to_event(1), obs=x)

    return model, plain_guide


class Encoder(nn.Module):
    """A network that computes the exact posterior, and would not in training mode."""

    def __init__(self, exact: LinearGaussian = EXACT) -> None:
        super().__init__()
        q = exact.posterior(torch.cat([torch.zeros(1, DATA), torch.eye(DATA)]))
        self.linear = nn.Linear(DATA, LATENT)
        self.linear.weight = nn.Parameter((q.mean[1:] - q.mean[:1]).T.contiguous())
        self.linear.bias = nn.Parameter(q.mean[0].clone())
        self.log_scale = nn.Parameter(q.stddev[0].log())
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.dropout(self.linear(x))
        return loc, self.log_scale.exp().expand_as(loc)


class Decoder(nn.Module):
    def __init__(self, exact: LinearGaussian = EXACT) -> None:
        super().__init__()
        self.linear = nn.Linear(LATENT, DATA)
        self.linear.weight = nn.Parameter(exact.weight.clone())
        self.linear.bias = nn.Parameter(exact.bias.clone())

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z)


@pair()
def pyro_module_in_both_functions() -> tuple[Any, Any]:
    encoder, decoder = Encoder(), Decoder()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", standard(x.shape[0], LATENT).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), EXACT.noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


class Methods(PyroModule):
    """Model and guide as methods, parameters as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PyroModule[Encoder](), Decoder()
        self.noise = PyroParam(torch.tensor(EXACT.noise), constraint=constraints.positive)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


@pair()
def pyro_module_with_methods() -> tuple[Any, Any]:
    module = Methods()
    return module.model, module.guide


class Forward(PyroModule):
    """The model as a module that is called, the guide as another that shares its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), EXACT.noise).to_event(1), obs=x)


@pair()
def guide_that_reuses_the_model_s_modules() -> tuple[Any, Any]:
    model = Forward()

    def guide(x: Tensor) -> None:
        linear = model.decoder.linear  # the exact posterior's mean from the model's own weights
        _, scale = posterior(x)
        loc = scale**2 * ((x - linear.bias) @ linear.weight) / EXACT.noise**2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


@pair()
def networks_behind_a_list_that_no_name_shows() -> tuple[Any, Any]:
    holder = {"networks": [Encoder(), Decoder()]}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", dist.Normal(holder["networks"][1](z), EXACT.noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*holder["networks"][0](x)).to_event(1))

    return model, guide


# -- latent sites ----------------------------------------------------------------------------------


@pair(names={"site": "code"})
def latent_of_another_name() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", standard(LATENT).to_event(1))
            pyro.sample("image", likelihood(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("code", dist.Normal(*posterior(x)).to_event(1))

    return model, guide


@pair(names={"site": ("z1", "z2")})
def two_latent_sites_as_one() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard(1).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood(torch.stack([z1, z2[..., 0]], -1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Normal(loc[:, 0], scale[:, 0]))
            pyro.sample("z2", dist.Normal(loc[:, 1:], scale[:, 1:]).to_event(1))

    return model, guide


@pair(names={"site": "top"})
def top_latent_of_two_layers() -> tuple[Any, Any]:
    """A layer between code and data, whose noise is taken from that of the data."""
    width = 0.2
    rest = EXACT.noise**2 * torch.eye(DATA, dtype=torch.float64)
    rest = rest - width**2 * EXACT.weight @ EXACT.weight.T
    whitened = torch.linalg.solve(rest, EXACT.weight)
    variance = 1 / (1 / width**2 + (whitened * EXACT.weight).sum(0))

    def model(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(LATENT))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", standard(LATENT).to_event(1))
            inner = pyro.sample("inner", dist.Normal(top + shift, width).to_event(1))
            mean = inner @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.MultivariateNormal(mean, rest), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(*posterior(x)).to_event(1))
            loc = variance * (top / width**2 + (x - EXACT.bias) @ whitened)
            pyro.sample("inner", dist.Normal(loc, variance.sqrt()).to_event(1))

    return model, guide


@pair()
def event_of_two_dimensions() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(1, LATENT).to_event(2))
            pyro.sample("x", likelihood(z.flatten(-2)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = (parameter.unsqueeze(-2) for parameter in posterior(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(2))

    return model, guide


# -- plates ----------------------------------------------------------------------------------------


@pair()
def to_event_forgotten() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        rows = pyro.plate("data", len(x), dim=-2)
        with rows, pyro.plate("units", LATENT, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with rows, pyro.plate("columns", DATA, dim=-1):
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", LATENT, dim=-1):
            pyro.sample("z", dist.Normal(*posterior(x)))

    return model, guide


@pair(names={"data_plate": "people"}, batch=lambda x: (x, torch.arange(len(x))))
def data_plate_not_outermost() -> tuple[Any, Any]:
    """Units lead and rows trail; the second argument is along for the ride."""

    def model(x: Tensor, index: Tensor) -> None:
        with pyro.plate("people", len(index), dim=-1):
            with pyro.plate("units", LATENT, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", DATA, dim=-2):
                by_row = likelihood(z.T)
                pyro.sample("x", dist.Normal(by_row.loc.T, by_row.scale.T), obs=x.T)

    def guide(x: Tensor, index: Tensor) -> None:
        loc, scale = posterior(x)
        with pyro.plate("units", LATENT, dim=-2), pyro.plate("people", len(index), dim=-1):
            pyro.sample("z", dist.Normal(loc.T, scale.T))

    return model, guide


@contextmanager
def chosen(plate: Any) -> Iterator[Tensor]:
    with plate as index:
        yield index


@pair(fit={"batch_size": ROWS})
def plate_that_subsamples_by_itself() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with chosen(pyro.plate("data", len(x), subsample_size=min(7, len(x)))) as index:
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        with chosen(pyro.plate("data", len(x), subsample_size=min(7, len(x)))) as index:
            loc, scale = posterior(x[index])
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


@pair()
def plate_of_the_full_size_around_a_minibatch() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", size=1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(*posterior(x)).to_event(1))

    return model, guide


# -- what else the functions take ------------------------------------------------------------------


def with_shift(x: Tensor) -> tuple[Tensor, Tensor]:
    shift = torch.arange(len(x), dtype=x.dtype)
    return x + shift.unsqueeze(-1), shift


@pair(batch=with_shift)
def covariates_as_arguments() -> tuple[Any, Any]:
    def model(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", likelihood(z, shift.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*posterior(x - shift.unsqueeze(-1))).to_event(1))

    return model, guide


@pair()
def obs_none_and_keywords_bound_beforehand() -> tuple[Any, Any]:
    def model(x: Tensor | None = None, *, rows: int = 1, shift: float) -> Tensor:
        with pyro.plate("data", rows if x is None else len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            return pyro.sample("x", likelihood(z, shift).to_event(1), obs=x)

    return partial(model, shift=0.0), plain_guide


@pair(batch=lambda x: (x, torch.arange(len(x)) % 3 > 0), exact=False)
def rows_left_out_by_a_mask() -> tuple[Any, Any]:
    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            with poutine.mask(mask=seen):
                pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x: Tensor, seen: Tensor) -> None:
        loc, scale = posterior(x)
        seen = seen.unsqueeze(-1)
        with pyro.plate("data", len(x)):
            q = dist.Normal(torch.where(seen, loc, 0.0), torch.where(seen, scale, 1.0))
            pyro.sample("z", q.to_event(1))

    return model, guide


def with_gaps(x: Tensor) -> tuple[Tensor, Tensor]:
    seen = (torch.arange(len(x)).unsqueeze(-1) + torch.arange(DATA)) % 3 > 0
    return torch.where(seen, x, 0.0), seen


@pair(batch=with_gaps, exact=False, names={"observed": "x"})
def missing_entries_by_obs_mask() -> tuple[Any, Any]:
    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("units", LATENT, dim=-1):
                z = pyro.sample("z", standard(LATENT))
            with pyro.plate("columns", DATA, dim=-1):
                pyro.sample("x", likelihood(z), obs=x, obs_mask=seen)

    def guide(x: Tensor, seen: Tensor) -> None:
        loc, scale = posterior(torch.where(seen, x, EXACT.bias))
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("units", LATENT, dim=-1):
                z = pyro.sample("z", dist.Normal(loc, 2 * scale))
            with pyro.plate("columns", DATA, dim=-1), poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", likelihood(z))

    return model, guide


@pair()
def scaled_sites() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    return model, poutine.scale(plain_guide, scale=0.1)


# -- discrete sites, and guides that are not amortized ---------------------------------------------


@pair(fit={"objective": pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)}, exact=False)
def discrete_site_of_the_model_summed_out() -> tuple[Any, Any]:
    """Each row has a cluster that shifts x by nothing or by one."""

    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.7, 0.3])))
            pyro.sample("x", likelihood(z, y.unsqueeze(-1).to(x)).to_event(1), obs=x)

    return model, plain_guide


@pair(amortized=False, exact=False, fit={"batch_size": ROWS})
def autoguide_with_parameters_for_each_row() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    guide = AutoNormal(model)
    guide(EXACT.sample(ROWS))  # lays out its parameters
    return model, guide


@pair(exact=False)
def guide_that_does_not_look_at_the_data() -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(LATENT).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(LATENT))
        scale = pyro.param("scale", torch.ones(LATENT), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide
