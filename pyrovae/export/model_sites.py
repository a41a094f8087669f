"""The sites of a Pyro model, sorted by what they are, and runs of it at given values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.infer import config_enumerate, infer_discrete
from pyro.poutine.trace_struct import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.pairs import PyroFunction

Call = Callable[[PyroFunction], Any]
Values = Mapping[str, Tensor]
Node = dict[str, Any]

KINDS = ("latent", "summed", "observed", "deterministic", "factors")


@dataclass(frozen=True)
class Model:
    """A model, what it is called with, and what its sites are.

    Args:
        function, call: the model, and how it is called.
        nodes: its sites in one run with the data and a draw of the latent sites.
        latent: sites that there are draws of.
        summed: discrete sites that there are none of, which are enumerated.
        observed, deterministic, factors: the others.
        marginal: the observed site whose likelihood is summed over the discrete ones; ``None``
            without such sites, or where that is no product over rows.
        untold: observed sites whose likelihood is no product over rows.
        depth: number of batch dimensions in use, to the left of which others can be enumerated.
    """

    function: PyroFunction
    call: Call
    nodes: Mapping[str, Node]
    latent: tuple[str, ...]
    summed: tuple[str, ...]
    observed: tuple[str, ...]
    deterministic: tuple[str, ...]
    factors: tuple[str, ...]
    marginal: str | None
    untold: tuple[str, ...]
    depth: int

    @classmethod
    def read(cls, function: PyroFunction, call: Call, values: Values) -> Model:
        """Run the model once and sort its sites.

        Raises:
            InputError: for a subsampled plate, or a latent site without draws, or enumerated in
                sequence.
        """
        nodes = sample_sites(run(call, poutine.condition(function, values)))
        _check_plates(nodes)
        kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name, node in nodes.items():
            kinds[_kind(name, node, values)].append(name)
        depth = max((len(node["fn"].batch_shape) for node in nodes.values()), default=0)
        sites = {kind: tuple(names) for kind, names in kinds.items()}
        model = cls(function, call, nodes, **sites, marginal=None, untold=(), depth=depth)
        if not model.summed:
            return model
        return model._with_enumeration(values)

    def _with_enumeration(self, values: Values) -> Model:
        """The same, with what the sum over discrete sites makes of the likelihood."""
        nodes = sample_sites(self.enumerated(values))
        dims = [nodes[name]["infer"].get("_enumerate_dim") for name in self.summed]
        touched = tuple(
            name
            for name in (*self.latent, *self.observed, *self.factors)
            if nodes[name]["log_prob"].dim() > self.depth
        )
        rows = {frozenset(frame.name for frame in _plates(nodes[name])) for name in self.summed}
        rows |= {frozenset(frame.name for frame in _plates(nodes[name])) for name in touched}
        by_row = len(rows) == 1 and len({*dims}) == len(dims) and len(touched) == 1
        if by_row and touched[0] in self.observed:
            return replace(self, marginal=touched[0])
        return replace(self, untold=tuple(name for name in touched if name in self.observed))

    def given(self, values: Values) -> Trace:
        """A run at given values of the latent sites."""
        return run(self.call, poutine.condition(self.function, values))

    def enumerated(self, values: Values) -> Trace:
        """The same, with each value of the discrete sites along a dimension of its own."""
        function = config_enumerate(poutine.condition(self.function, values))
        return run(self.call, poutine.enum(function, first_available_dim=-1 - self.depth))

    def summed_likelihood(self, values: Values) -> Tensor:
        """log p(y_n | latents) of the marginal site, with the discrete sites summed over."""
        nodes = self.enumerated(values).nodes
        log_probs = [log_density(nodes[name]) for name in (*self.summed, str(self.marginal))]
        joint = torch.stack(torch.broadcast_tensors(*log_probs)).sum(0)
        total = joint.logsumexp(tuple(range(joint.dim() - self.depth)))
        node = self.nodes[str(self.marginal)]
        return _without_ones(total.reshape(_shapes(node)[0]), node)

    def discrete(self, values: Values) -> Values:
        """Draws of the discrete sites from their distribution given all others and the data."""
        function = config_enumerate(poutine.condition(self.function, values))
        drawing = infer_discrete(function, first_available_dim=-1 - self.depth)
        nodes = self.call(poutine.trace(drawing).get_trace).nodes
        return {name: nodes[name]["value"] for name in self.summed}

    def anew(self, values: Values) -> Trace:
        """A run in which the observed sites are drawn."""
        function = poutine.condition(_Unobserved()(self.function), values)
        trace: Trace = self.call(poutine.trace(function).get_trace)
        return trace


class _Unobserved(UnconditionMessenger):
    """Draw what was observed, but leave the values of deterministic sites and factors alone."""

    def _pyro_sample(self, msg: Any) -> None:
        if _is_deterministic(msg) or isinstance(msg["fn"], dist.Unit):
            return
        if msg["is_observed"] and (shape := _shapes(msg)[0]) != msg["fn"].batch_shape:
            msg["fn"] = msg["fn"].expand(shape)  # as many as there are data
        super()._pyro_sample(msg)


def _is_deterministic(node: Node) -> bool:
    """Whether a site only names a value: of ``pyro.deterministic``, or reparametrised."""
    fn, named = node["fn"], bool(node["infer"].get("_deterministic"))
    is_unweighted = isinstance(fn, dist.MaskedDistribution) and fn._mask is False
    return named or (is_unweighted and isinstance(fn.base_dist, dist.Delta))


def _kind(name: str, node: Node, values: Values) -> str:
    if name in values:
        return "latent"
    if _is_deterministic(node):
        return "deterministic"
    if isinstance(node["fn"], dist.Unit):
        return "factors"
    if node["is_observed"]:
        return "observed"
    if node["infer"].get("enumerate") == "sequential":
        raise InputError(
            f"expected discrete sites that are enumerated in parallel; got {name!r}, in sequence. "
            "Enumerate it in parallel, or give draws of it."
        )
    if node["fn"].has_enumerate_support:
        return "summed"
    raise InputError(
        f"expected draws of every latent site; got none of {name!r}. Give the guide or the MCMC "
        "that was run with this model."
    )


def _check_plates(nodes: Mapping[str, Node]) -> None:
    for frame in (frame for node in nodes.values() for frame in node["cond_indep_stack"]):
        if frame.full_size is not None and frame.size != frame.full_size:
            raise InputError(
                f"expected plates that hold all data; got {frame.size} of {frame.full_size} rows "
                f"in {frame.name!r}. Call the model with all data, without subsampling."
            )


def _plates(node: Node) -> list[Any]:
    """The vectorised plates around a site, outermost dimension first."""
    return sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)


# -- runs ---------------------------------------------------------------------------------------


def calling(data: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> Call:
    """How a function is called with the data."""
    if isinstance(data, Mapping):
        return lambda function: function(**data)
    arguments = data if isinstance(data, tuple) else (data,)
    return lambda function: function(*arguments)


def run(call: Call, function: PyroFunction) -> Trace:
    """One run, with the log density of each site."""
    trace: Trace = call(poutine.trace(function).get_trace)
    trace.compute_log_prob()
    return trace


def sample_sites(trace: Trace) -> dict[str, Node]:
    """The sample sites of a run, without those of plates."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node)
    }


# -- shapes -------------------------------------------------------------------------------------


def value_of(node: Node) -> Tensor:
    """The value of a site, without dimensions of length 1 that no plate uses."""
    batch, event = _shapes(node)
    return _without_ones(node["value"].detach().expand(batch + event), node)


def log_prob_of(node: Node) -> Tensor:
    """Its log density, with the same dimensions as far as they are not of the event."""
    return _without_ones(log_density(node), node)


def log_density(node: Node) -> Tensor:
    """Its log density, 0 where it is masked, and without the scale that it has in training."""
    density: Tensor = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
    return density


def joint_log_density(nodes: Mapping[str, Node]) -> Tensor:
    """log density of some sites of a run together."""
    return sum((log_density(node).sum() for node in nodes.values()), torch.zeros(()))


def is_masked(node: Node) -> bool:
    """Whether a mask leaves out some of a site."""
    masks = (node["mask"], getattr(node["fn"], "_mask", None))
    return any(mask is not None and not bool(torch.as_tensor(mask).all()) for mask in masks)


def _without_ones(tensor: Tensor, node: Node) -> Tensor:
    return tensor[tuple(slice(None) if keep else 0 for keep in _kept(node))]


def _kept(node: Node) -> list[bool]:
    """Which batch dimensions of a site are more than room for other plates."""
    (batch, _), dims = _shapes(node), {frame.dim for frame in _plates(node)}
    return [size != 1 or axis - len(batch) in dims for axis, size in enumerate(batch)]


def _shapes(node: Node) -> tuple[torch.Size, torch.Size]:
    """Batch shape and event shape of a site.

    Pyro takes a deterministic value to be one event, although it is laid out along the plates.
    """
    value, fn = node["value"], node["fn"]
    if node["infer"].get("_deterministic") and fn.event_dim == value.dim():
        return value.shape, torch.Size()
    of_value = value.shape[: value.dim() - fn.event_dim]  # more where one density is for all data
    return broadcast_shape(fn.batch_shape, of_value), fn.event_shape


def dimensions(name: str, node: Node) -> tuple[str, ...]:
    """Names of the dimensions of a site: of plates, or the site's own with a number."""
    plates, (batch, event) = {frame.dim: frame.name for frame in _plates(node)}, _shapes(node)
    axes = [axis - len(batch) for axis, keep in enumerate(_kept(node)) if keep]
    others = (f"{name}_dim_{number}" for number in itertools.count())
    of_batch = [plates[axis] if axis in plates else next(others) for axis in axes]
    return (*of_batch, *(next(others) for _ in event))
