"""The objectives that training maximises: estimates of the evidence lower bound as functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import pyro.infer
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.errors import InputError
from pyrovae.pairs import PyroFunction

Objective = Callable[..., Tensor]
Site = Mapping[str, Any]


def elbo(
    model: PyroFunction,
    guide: PyroFunction,
    *data: Tensor,
    kl_weight: float = 1.0,
    particles: int = 1,
) -> Tensor:
    """A reparametrised estimate of the evidence lower bound of the rows in the pair's plate.

    ELBO(w) = E_q[log p(x | z)] − w Σ_sites E_q[log q(z | ·) − log p(z | ·)]

    A site's second term is the analytic KL divergence if torch has one for the two families and
    no latent that the model draws before the site comes after it in the guide; otherwise it is
    log q − log p at the draw. All of it is torch operations (no ``.item()``), so it can be traced.

    Args:
        model: a Pyro model, called as ``model(*data)``.
        guide: a Pyro guide with reparametrised latent sites, called in the same way.
        data: rows, shape ``(B, ...)``, and further arguments of the pair.
        kl_weight: w, less than 1 in a warm-up.
        particles: number of draws to average over.

    Returns:
        the estimate in nats, shape ``()``, for as many rows as the plate has: B with
        ``pyro.plate("data", len(x))``, N with ``pyro.plate("data", N, subsample=...)``.

    Raises:
        InputError: if a latent site of the guide is not reparametrised.

    Paper: Kingma & Welling 2014; warm-up: Sønderby et al. 2016.

    >>> import pyrovae as pv, torch
    >>> vae = pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))
    >>> pv.elbo(vae.model, vae.guide, torch.ones(8, 4)).shape
    torch.Size([])
    """
    total = torch.zeros(())
    for _ in range(particles):
        total = _one_draw(model, guide, data, kl_weight) + total
    return total / particles if particles > 1 else total


def as_objective(objective: Objective | pyro.infer.ELBO) -> Objective:
    """A function as it is, or one of Pyro's estimators as such a function.

    Raises:
        InputError: if Pyro's estimator has no differentiable loss.
    """
    if not isinstance(objective, pyro.infer.ELBO):
        return objective
    if not hasattr(objective, "differentiable_loss"):
        raise InputError(
            f"expected an estimator with a differentiable_loss; got {type(objective).__name__}. "
            "Use Trace_ELBO, TraceMeanField_ELBO or TraceEnum_ELBO."
        )
    return partial(_negative_loss, objective)


def _negative_loss(
    estimator: Any,
    model: PyroFunction,
    guide: PyroFunction,
    *data: Tensor,
    kl_weight: float = 1.0,
) -> Tensor:
    if kl_weight != 1.0:
        model, guide = ScaleLatents(kl_weight)(model), ScaleLatents(kl_weight)(guide)
    # Without gradients some of Pyro's estimators can only compute their plain loss.
    loss = estimator.differentiable_loss if torch.is_grad_enabled() else estimator.loss
    return -torch.as_tensor(loss(model, guide, *data))


class ScaleLatents(Messenger):
    """Scale the log density of every latent site by a factor, and leave observed sites alone."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.factor


def paired_traces(
    model: PyroFunction, guide: PyroFunction, data: tuple[Tensor, ...]
) -> tuple[Trace, Trace]:
    """A trace of the guide, and one of the model at the guide's draws, without plate sites."""
    try:
        guide_trace = poutine.trace(guide).get_trace(*data)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*data)
    except InputError as error:  # Pyro appends the shapes in its trace; raise the original
        raise (error.__cause__ if isinstance(error.__cause__, InputError) else error) from None
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def _one_draw(
    model: PyroFunction, guide: PyroFunction, data: tuple[Tensor, ...], kl_weight: float
) -> Tensor:
    model_trace, guide_trace = paired_traces(model, guide, data)
    model_sites, guide_sites = _sample_sites(model_trace), _sample_sites(guide_trace)
    latents = [name for name, site in model_sites.items() if not site["is_observed"]]
    if missing := [name for name in latents if name not in guide_sites]:
        raise InputError(
            f"expected a site in the guide for every latent site of the model; got none for "
            f"{missing}. Add it, or sum it out with objective=pyro.infer.TraceEnum_ELBO()."
        )
    if pyro.infer.util.is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace)
        for site in (*model_sites.values(), *guide_sites.values()):
            check_site_shape(cast(Any, {**site, "log_prob": log_density(site)}), sys.maxsize)
    observed = [log_density(site).sum() for site in model_sites.values() if site["is_observed"]]
    divergence = [
        _divergence(guide_sites[name], model_sites[name], _in_order(name, latents, guide_sites))
        for name in latents
    ]
    auxiliary = [
        log_density(_reparametrised(site)).sum()
        for name, site in guide_sites.items()
        if name not in model_sites
    ]
    return sum(observed, torch.zeros(())) - kl_weight * sum(divergence + auxiliary, torch.zeros(()))


def _sample_sites(trace: Trace) -> dict[str, Site]:
    return {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}


def _in_order(name: str, latents: list[str], guide_sites: dict[str, Site]) -> bool:
    """Whether no latent before ``name`` in the model comes after it in the guide."""
    names = list(guide_sites)
    later = set(names[names.index(name) + 1 :])
    return later.isdisjoint(latents[: latents.index(name)])


def _divergence(guide_site: Site, model_site: Site, in_order: bool) -> Tensor:
    _reparametrised(guide_site)
    q, p = guide_site["fn"], model_site["fn"]
    if in_order and _same_weight(guide_site, model_site) and not isinstance(_base(q), Delta):
        try:
            divergence = kl_divergence(q, p)
        except NotImplementedError:
            pass
        else:
            divergence = divergence.expand(q.batch_shape)
            return _weighted(divergence, guide_site).sum()
    return log_density(guide_site).sum() - log_density(model_site).sum()


def _same_weight(guide_site: Site, model_site: Site) -> bool:
    """Whether two sites have the same scale and mask."""
    q_scale, p_scale = guide_site["scale"], model_site["scale"]
    same_scale = q_scale is p_scale or (
        not isinstance(q_scale, Tensor) and not isinstance(p_scale, Tensor) and q_scale == p_scale
    )
    return bool(same_scale and guide_site["mask"] is model_site["mask"])


def _base(distribution: Any) -> Any:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def log_density(site: Site) -> Tensor:
    """Log density of a sample site, scaled and masked as its plates and handlers say."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return _weighted(log_prob, site)


def _weighted(values: Tensor, site: Site) -> Tensor:
    weighted: Tensor = scale_and_mask(values, site["scale"], site["mask"])
    return weighted


def _reparametrised(site: Site) -> Site:
    if not site["fn"].has_rsample:
        raise InputError(
            f"expected reparametrised latent sites in the guide; got {site['fn']} at site "
            f"{site['name']!r}. Pass objective=pyro.infer.Trace_ELBO() or TraceEnum_ELBO()."
        )
    return site
