"""Any Pyro model and guide, seen as the few functions that the measures need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn

from pyrovae.batches import Batch

PyroFunction = Callable[..., Any]


@dataclass(frozen=True)
class Pair:
    """A Pyro ``model(x)`` and ``guide(x)`` with a latent site in a data plate.

    Every method runs one of the two functions under Pyro's own handlers and reads the sites, so a
    pair needs nothing but its ``pyro.sample`` statements. All log densities are those of the sites
    themselves: subsampling and ``poutine.scale`` do not enter.

    Args:
        model: generative function; called as ``model(x)`` with a batch of rows.
        guide: variational function; called in the same way.
        site: name of the latent site.
        observed: name of the observed site; found by itself if there is just one.
    """

    model: PyroFunction
    guide: PyroFunction
    site: str = "z"
    observed: str | None = None

    def encode(self, x: Tensor) -> dist.Distribution:
        """q(z | x), batch shape ``(B,)``, event shape ``(D,)``, for rows ``x``, shape ``(B, ...)``.

        Raises:
            ValueError: if the guide has no such site, or the site is not one vector per row of x.
        """
        return encoding_site(self.guide, (x,), self.site)["fn"]

    def log_joint(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) row by row, each of shape ``(B,)``.

        Args:
            x: rows, shape ``(B, ...)``.
            z: one code for each row, shape ``(B, D)``.
        """
        trace = self._model_trace(x, z)
        trace.compute_log_prob()
        likelihood = trace.nodes[self._observed_site(trace)]["unscaled_log_prob"]
        prior = trace.nodes[self.site]["unscaled_log_prob"]
        for name, value in (("observed", likelihood), (self.site, prior)):
            if value.shape != (len(x),):
                raise ValueError(
                    f"expected a log density of shape ({len(x)},), one number a row, at the "
                    f"model's {name} site; got {tuple(value.shape)}. Declare the dimensions of one "
                    "row as event dimensions with .to_event(...)."
                )
        return likelihood, prior

    def decode(self, x: Tensor, z: Tensor) -> dist.Distribution:
        """p(x | z), batch shape ``(B,)``: the distribution at the observed site for codes ``z``."""
        trace = self._model_trace(x, z)
        return trace.nodes[self._observed_site(trace)]["fn"]

    def prior(self, x: Tensor) -> dist.Distribution:
        """p(z), batch shape ``(1,)``, which broadcasts against any number of codes.

        Args:
            x: at least two rows, on which the prior is checked not to depend.

        Raises:
            ValueError: if p(z) differs between rows, so that there is no one prior to compare to.
        """
        trace = poutine.trace(poutine.uncondition(self.model)).get_trace(x[:2])
        node = _latent_node(trace, self.site, "model")
        fn, z = node["fn"], node["value"][:1]
        log_density = fn.log_prob(z.expand_as(node["value"]))
        if not torch.allclose(log_density, log_density[:1].expand_as(log_density)):
            raise ValueError(
                f"expected one prior p({self.site}) for all rows; got one that depends on the "
                "data. Compare the aggregated posterior with a prior of your own by passing prior=."
            )
        single = poutine.trace(poutine.uncondition(self.model)).get_trace(x[:1])
        return single.nodes[self.site]["fn"]

    def _model_trace(self, x: Tensor, z: Tensor) -> Trace:
        conditioned = poutine.condition(self.model, data={self.site: z})
        trace = poutine.trace(conditioned).get_trace(x)
        _latent_node(trace, self.site, "model")
        others = [n for n in trace.stochastic_nodes if not _is_plate(trace.nodes[n])]
        if others:
            raise ValueError(
                f"expected {self.site!r} to be the model's only latent site; got also {others}. "
                "Several latent sites cannot be scored on one of them alone."
            )
        return trace

    def _observed_site(self, trace: Trace) -> str:
        names = [n for n in trace.observation_nodes if n != self.site]
        if self.observed is not None:
            if self.observed not in names:
                raise ValueError(
                    f"expected an observed site {self.observed!r} in the model; got {names}. "
                    "Name one of those with observed=."
                )
            return self.observed
        if len(names) != 1:
            raise ValueError(
                f"expected one observed site in the model; got {names}. Give the site obs=, or "
                "name the one that is meant with observed=."
            )
        return names[0]


def encoding_site(guide: PyroFunction, batch: Batch, site: str) -> dict[str, Any]:
    """The node of the guide's latent site for a batch of rows, checked to be one vector a row."""
    node = _latent_node(poutine.trace(guide).get_trace(*batch), site, "guide")
    fn, rows = node["fn"], len(batch[0])
    if fn.batch_shape != (rows,) or len(fn.event_shape) != 1:
        raise ValueError(
            f"expected the guide's site {site!r} to have batch shape ({rows},) and event shape "
            f"(D,); got {tuple(fn.batch_shape)} and {tuple(fn.event_shape)}. Put the site in the "
            "data plate and declare the latent units with .to_event(1)."
        )
    return node


def _latent_node(trace: Trace, site: str, where: str) -> dict[str, Any]:
    if site not in trace.nodes or trace.nodes[site]["type"] != "sample":
        names = [n for n in trace.stochastic_nodes if not _is_plate(trace.nodes[n])]
        raise ValueError(
            f"expected a latent site {site!r} in the {where}; got {names}. Name one of those with "
            "site=."
        )
    return trace.nodes[site]


def _is_plate(node: dict[str, Any]) -> bool:
    return type(node["fn"]).__name__ == "_Subsample"


def modules_of(function: PyroFunction) -> list[nn.Module]:
    """The networks behind a model or guide: what it is, is bound to, or names in its body."""
    if isinstance(function, nn.Module):
        return [function]
    if inspect.ismethod(function):
        owner = function.__self__
        candidates = [owner, *vars(owner).values()]
    elif inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        candidates = [*names.nonlocals.values(), *names.globals.values()]
    else:
        candidates = list(getattr(function, "__dict__", {}).values())
    return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]


@contextmanager
def measuring(*functions: PyroFunction) -> Iterator[None]:
    """Every network behind ``functions`` in evaluation mode; modes and random state put back."""
    modules = {m for f in functions for root in modules_of(f) for m in root.modules()}
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module in training:
            module.training = True
