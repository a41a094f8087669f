"""What Pyro has inferred, by SVI or MCMC, as ArviZ data: any model, no autoencoder needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import MCMC, SVI
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae import arviz_adapter
from pyrovae.arviz_adapter import Array, dimension_names, variable_names
from pyrovae.errors import InputError
from pyrovae.export.model_sites import (
    Call,
    Model,
    Node,
    Values,
    calling,
    dimensions,
    is_masked,
    joint_log_density,
    log_prob_of,
    run,
    sample_sites,
    value_of,
)
from pyrovae.pairs import PyroFunction, measuring
from pyrovae.progress import Bar, progress_bar
from pyrovae.randomness import check_seed, seeded

Columns = dict[str, dict[str, list[Tensor]]]  # group → site → one tensor for each draw

LEAST_DRAWS = 4  # of a chain: Pyro splits it in two halves, whose variances it compares
RESERVED = ("log_weight", "diverging")  # names of variables that are no sites
PRIOR = ("prior", "prior_predictive")


def to_arviz(  # noqa: PLR0913 - a flat front door
    model: PyroFunction,
    data: Tensor | tuple[Any, ...] | Mapping[str, Any] = (),
    *,
    guide: PyroFunction | None = None,
    mcmc: MCMC | None = None,
    draws: int = 1000,
    prior_draws: int = 500,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    sample_dims: tuple[str, ...] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Any:
    """Draws of what Pyro has inferred for any model, in the groups of ArviZ's schema.

    ======================== =====================================================================
    group                    what is in it
    ======================== =====================================================================
    ``posterior``            latent and deterministic sites; of discrete sites that were enumerated,
                             draws given all others
    ``log_likelihood``       log p(y_n | latents) for each datum, summed over sites enumerated there
    ``log_prior``            log p of each latent site given those before it
    ``posterior_predictive`` observed sites, drawn again
    ``sample_stats``         ``diverging`` for each draw of MCMC; ``log_weight``, log p(x, z) −
                             log q(z), for draws from a guide; the values of ``pyro.factor``
    ``prior``                latent and deterministic sites without the data
    ``prior_predictive``     observed sites of these
    ``observed_data``        what was observed
    ======================== =====================================================================

    Plates give the dimensions their names; other dimensions are called ``site_dim_0`` and so on.
    The model runs anew for each draw, three or four times, so that it may do what it likes; a
    thousand draws of a small model take some seconds.

    Args:
        model: any Pyro model, with plates that are not subsampled.
        data: what it is called with: a tensor, a tuple of positional arguments, or a dictionary of
            keyword arguments.
        guide: a trained guide, which is called with the same.
        mcmc: a run of ``pyro.infer.MCMC``, instead of a guide; all of its draws are used.
        draws: from the guide.
        prior_draws: draws without the data; 0 for none.
        coords: dimension → labels along it.
        dims: site → names of all its dimensions, instead of those found.
        sample_dims: names of the dimensions of the draws: by default ``("chain", "draw")``, and
            ``("sample",)`` for a guide under ArviZ 1.x, which can tell the two.
        seed: names all draws.
        progress: whether to show a bar; ``None`` shows it if stderr is a terminal.

    Returns:
        ``arviz.InferenceData`` under ArviZ 0.x, ``xarray.DataTree`` under 1.x.

    Raises:
        InputError: without or with both of guide and mcmc, if an SVI or MCMC stands where the model
            or the guide belongs, for a plate that is subsampled, for
            latent sites of which there are no draws, or for a prior that can't be drawn from.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("school", len(y)):
    ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> guide = AutoNormal(model)
    >>> data = to_arviz(model, torch.zeros(8), guide=guide, draws=10, prior_draws=0)
    >>> sorted(data["log_likelihood"].sizes)[-1], data["log_likelihood"].sizes["school"]
    ('school', 8)
    """
    check_seed(seed)
    _check_functions(model, guide)
    if (guide is None) == (mcmc is None):
        raise InputError(
            f"expected one of guide= and mcmc=; got {'neither' if guide is None else 'both'}. Name "
            "the one that holds the posterior."
        )
    if draws < 1 or prior_draws < 0:
        raise InputError(
            f"expected draws ≥ 1 and prior_draws ≥ 0; got {draws!r} and {prior_draws!r}."
        )
    call = calling(data)
    with measuring(model, *([] if guide is None else [guide])), torch.no_grad():
        posterior = _of_chains(mcmc) if guide is None else _of_guide(call, guide, draws, seed=seed)
        sites = Model.read(model, call, posterior.values[0])
        steps = len(posterior.values) + prior_draws
        with progress_bar("draws for ArviZ", steps, progress=progress) as bar:
            columns = _given_data(sites, posterior, seed=seed, bar=bar)
            columns |= _without_data(sites, prior_draws, seed=seed, bar=bar)
    origin = "mcmc" if guide is None else "guide"
    lead = sample_dims or arviz_adapter.sample_dims(origin)
    names = _Names.of(sites, lead, dims or {}, coords or {})
    groups: dict[str, dict[str, Array]] = {
        group: {
            names.variables.get(name, name): _stack(
                name, tensors, (1, prior_draws) if group in PRIOR else posterior.shape, lead
            )
            for name, tensors in drawn.items()
        }
        for group, drawn in columns.items()
    }
    groups["observed_data"] = {
        names.variables[name]: value_of(sites.nodes[name]).cpu().numpy() for name in sites.observed
    }
    return arviz_adapter.to_arviz(
        groups,
        dims=names.dims,
        coords=names.coords,
        attrs={"inference_library": "pyro", "draws_from": origin, "seed": int(seed)},
        notes=_notes(sites),
        sample_dims=lead,
    )


def _check_functions(model: object, guide: object) -> None:
    """Raise if what has inferred stands in the place of what it was made of."""
    for name, function in (("model", model), ("guide", guide)):
        if isinstance(function, MCMC | SVI):
            raise InputError(
                f"expected a Pyro {name}; got {type(function).__name__}. Give the model first, "
                "then its data, and the posterior by name: to_arviz(model, data, guide=svi.guide) "
                "or to_arviz(model, data, mcmc=mcmc)."
            )


# -- where the draws come from -------------------------------------------------------------------


@dataclass(frozen=True)
class _Posterior:
    """Draws of latent sites.

    Args:
        values: site → value, for one draw after another, chain by chain.
        shape: numbers of chains and of draws in each.
        log_guide: log q of each draw; ``None`` where there is no such density.
        diverging: whether each of them diverged.
    """

    values: Sequence[Values]
    shape: tuple[int, int]
    log_guide: Sequence[Tensor] | None = None
    diverging: Sequence[Tensor] | None = None


def _of_guide(call: Call, guide: PyroFunction, draws: int, *, seed: int) -> _Posterior:
    values: list[Values] = []
    log_guide = []
    with seeded(seed, "draws of a guide for ArviZ"):
        for _ in range(draws):
            nodes = _drawn(run(call, guide))
            values.append({name: node["value"] for name, node in nodes.items()})
            log_guide.append(joint_log_density(nodes))
        again = {name: node["value"] for name, node in _drawn(run(call, guide)).items()}
    points = _has_points(nodes, values[-1], again)
    return _Posterior(values, (1, draws), None if points else log_guide)


def _drawn(trace: Trace) -> dict[str, Node]:
    """The sites that a guide draws; one made of the model itself has the observed ones, too."""
    return {name: node for name, node in sample_sites(trace).items() if not node["is_observed"]}


def _has_points(nodes: Mapping[str, Node], one: Values, other: Values) -> bool:
    """Whether a guide has a site with a value but no density, as in a MAP estimate.

    Args:
        nodes: the sites of the guide.
        one, other: their values in two runs.
    """
    certain = [name for name, node in nodes.items() if isinstance(node["fn"], dist.Delta)]
    if any(node["infer"].get("is_auxiliary") for node in nodes.values()):
        # An autoguide: its Deltas are functions of what it draws there, unless they never change.
        return any(torch.equal(one[name], other[name]) for name in certain)
    return bool(certain)


def _of_chains(mcmc: Any) -> _Posterior:
    if not isinstance(mcmc, MCMC):
        raise InputError(
            f"expected a pyro.infer.MCMC that keeps its draws; got {type(mcmc).__name__}."
        )
    try:
        samples = mcmc.get_samples(group_by_chain=True)
        chains, draws = next(iter(samples.values())).shape[:2]
    except (AttributeError, TypeError) as error:
        raise InputError(
            "expected an MCMC that has run; got one without draws. Call mcmc.run(...) first."
        ) from error
    if draws < LEAST_DRAWS:
        raise InputError(
            f"expected an MCMC with at least {LEAST_DRAWS} draws in each chain, which its "
            f"diagnostics need; got {draws}. Run it with a larger num_samples."
        )
    diverged = mcmc.diagnostics().get("divergences", {})
    values = [
        {name: array[chain, draw] for name, array in samples.items()}
        for chain in range(chains)
        for draw in range(draws)
    ]
    diverging = torch.zeros(chains, draws, dtype=torch.bool)
    for chain in range(chains):
        diverging[chain, diverged.get(f"chain {chain}", [])] = True
    stat = [*diverging.reshape(-1)] if diverged else None
    return _Posterior(values, (chains, draws), diverging=stat)


# -- draws ---------------------------------------------------------------------------------------


def _given_data(model: Model, posterior: _Posterior, *, seed: int, bar: Bar) -> Columns:
    """Everything about each draw from the posterior."""
    columns: Columns = defaultdict(lambda: defaultdict(list))
    if posterior.diverging is not None:
        columns["sample_stats"]["diverging"] = [*posterior.diverging]
    pointwise = [name for name in model.observed if name not in model.untold]
    with seeded(seed, "predictions for ArviZ"):
        for number, draw in enumerate(posterior.values):
            values = draw
            if model.summed:
                values = {**draw, **model.discrete(draw)}
            trace = model.given(values)
            for name in (*model.latent, *model.summed, *model.deterministic):
                columns["posterior"][name].append(value_of(trace.nodes[name]))
            for name in model.latent:
                columns["log_prior"][name].append(log_prob_of(trace.nodes[name]))
            for name in pointwise:
                log_prob = log_prob_of(trace.nodes[name])
                if name == model.marginal:
                    log_prob = model.summed_likelihood(draw)
                columns["log_likelihood"][name].append(log_prob)
            for name in model.factors:
                columns["sample_stats"][name].append(log_prob_of(trace.nodes[name]))
            if posterior.log_guide is not None and not model.summed:
                weight = joint_log_density(sample_sites(trace)) - posterior.log_guide[number]
                columns["sample_stats"]["log_weight"].append(weight)
            predicted = model.anew(values)
            for name in model.observed:
                columns["posterior_predictive"][name].append(value_of(predicted.nodes[name]))
            bar.tick()
    return columns


def _without_data(model: Model, draws: int, *, seed: int, bar: Bar) -> Columns:
    """Draws of all sites from the model alone."""
    columns: Columns = defaultdict(lambda: defaultdict(list))
    with seeded(seed, "draws from the prior for ArviZ"):
        for _ in range(draws):
            try:
                nodes = model.anew({}).nodes
            except NotImplementedError as error:
                raise InputError(
                    "expected a prior that can be drawn from; got a distribution without "
                    "draws. Leave the groups of the prior out: prior_draws=0."
                ) from error
            for name in (*model.latent, *model.summed, *model.deterministic):
                columns["prior"][name].append(value_of(nodes[name]))
            for name in model.observed:
                columns["prior_predictive"][name].append(value_of(nodes[name]))
            bar.tick()
    return columns


# -- names and arrays ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """Names that ArviZ and its files allow.

    Args:
        variables: site → name of its variable.
        dims: variable → names of its dimensions after those of the draws.
        coords: dimension → labels.
    """

    variables: Mapping[str, str]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, Sequence[Any]]

    @classmethod
    def of(
        cls,
        model: Model,
        lead: tuple[str, ...],
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Sequence[Any]],
    ) -> _Names:
        """Of all sites of a model, with what the user wants to have otherwise.

        Raises:
            InputError: for ``sample_dims`` of another number, ``dims`` of no site or of another
                number than it has, ``coords`` of no dimension or of another length.
        """
        if len(lead) not in (1, 2):
            raise InputError(
                'expected sample_dims ("chain", "draw") or ("sample",), or others of one or two '
                f"names; got {lead!r}."
            )
        sites = dict(zip(model.nodes, variable_names(model.nodes, reserved=RESERVED), strict=True))
        if unknown := [name for name in dims if name not in sites]:
            raise InputError(f"expected dims of sites out of {sorted(sites)}; got {unknown[0]!r}.")
        by_site = {name: _dims(name, node, dims.get(name)) for name, node in model.nodes.items()}
        names = list(dict.fromkeys(dim for of_site in by_site.values() for dim in of_site))
        taken = {*sites.values(), *lead, *RESERVED}
        renamed = dict(zip(names, dimension_names(names, taken), strict=True))
        sizes: dict[str, int] = {}
        for name, node in model.nodes.items():
            for dim, size in zip(by_site[name], value_of(node).shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise InputError(
                        f"expected one length of dimension {dim!r}; got {sizes[dim]} and {size}, "
                        f"at {name!r}. Give one of them another name: dims={{{name!r}: [...]}}."
                    )
        for dim, labels in coords.items():
            if len(labels) != sizes.get(dim):
                raise InputError(
                    f"expected coords of dimensions and their lengths, {sizes}; got {len(labels)} "
                    f"labels for {dim!r}."
                )
        return cls(
            sites,
            {sites[name]: tuple(renamed[dim] for dim in by_site[name]) for name in sites},
            {renamed[dim]: list(labels) for dim, labels in coords.items()},
        )


def _dims(name: str, node: Node, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the dimensions of a site, as found or as the user wants them."""
    dims = dimensions(name, node)
    if wanted is None:
        return dims
    if isinstance(wanted, str) or len(wanted) != len(dims):
        raise InputError(
            f"expected names of all dimensions of {name!r}, in the place of {dims}; got {wanted!r}."
        )
    return tuple(wanted)


def _stack(
    name: str, tensors: Sequence[Tensor], shape: tuple[int, int], lead: tuple[str, ...]
) -> Array:
    """One array of all draws, beginning with the dimensions of the draws."""
    if len({tensor.shape for tensor in tensors}) != 1:
        raise InputError(
            f"expected sites of one shape in every run; got several at {name!r}. Make it the same."
        )
    array: Array = torch.stack(list(tensors)).cpu().numpy()
    return array.reshape(*shape, *array.shape[1:]) if len(lead) == 2 else array


def _notes(model: Model) -> dict[str, str]:
    notes = {}
    if masked := [name for name in model.observed if is_masked(model.nodes[name])]:
        notes["log_likelihood"] = (
            f"log p(y_n | latents) of {', '.join(masked)} is 0 for what a mask leaves out, as if "
            "such data were certain. Leave them out before models are compared."
        )
    if model.untold:
        notes["posterior"] = (
            f"log p(y_n | latents) of {', '.join(model.untold)} is left out. The discrete sites "
            f"{', '.join(model.summed)} are summed over, and they don't belong to one row of one "
            "observed site each, so that the likelihood is no product over rows."
        )
    return notes
