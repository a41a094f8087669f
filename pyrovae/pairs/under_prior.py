"""A model under another prior: another distribution at the latent site, all else shared."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger

from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.pairs.masks import masked_like
from pyrovae.pairs.restore import PyroFunction


class UnderPrior:
    """A Pyro model that draws its code from a distribution of your choice.

    Parameters, likelihood, plates and masks are those of the model, whatever it consists of. The
    new model can be used wherever the old one can: in ``log_evidence`` with the same guide, in
    ``Pair``, under Pyro's handlers, to sample.

    Args:
        model: any Pyro model.
        prior: p(z) for one row, batch shape ``()``, event shape that of the site.
        site: name of the latent site.

    Raises:
        InputError: for several sites; when the model runs, if it has no such site or the event
            shapes differ.

    >>> import pyro, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> shifted = UnderPrior(model, dist.Normal(torch.full((2,), 9.0), 0.1).to_event(1))
    >>> trace = pyro.poutine.trace(shifted).get_trace(torch.zeros(5, 2))
    >>> bool((trace.nodes["z"]["value"] > 7).all())
    True
    """

    def __init__(self, model: PyroFunction, prior: dist.Distribution, *, site: str = "z") -> None:
        if not isinstance(site, str):
            raise InputError(
                f"expected one latent site, whose distribution is replaced; got {site!r}. Give the "
                "density of several as prior= to log_evidence, with site= as it is here."
            )
        self.fn = model
        self.prior = prior
        self.site = site

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replacing = _Replacing(self.site, self.prior)
        with replacing:
            result = self.fn(*args, **kwargs)
        if not replacing.met:
            raise InputError(
                f"expected a site {self.site!r} in the model, to stand under another prior; got "
                "none. Give the name of its latent site with site=."
            )
        return result


class _Replacing(Messenger):
    """Replaces the distribution at a site by another, with the same batch shape and masks."""

    def __init__(self, site: str, prior: dist.Distribution) -> None:
        super().__init__()
        self.site = site
        self.prior = prior
        self.met = False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site:
            return
        self.met = True
        old, new = msg["fn"], self.prior
        if old.event_shape != new.event_shape:
            raise InputError(
                f"expected a prior of the event shape at site {self.site!r}, "
                f"{tuple(old.event_shape)}; got {tuple(new.event_shape)}. Both have to be over one "
                "vector for each row: declare its units with .to_event(1)."
            )
        if tuple(new.batch_shape) not in ((), (1,), tuple(old.batch_shape)):
            raise InputError(
                f"expected a prior for one row, batch shape (), at site {self.site!r}; got "
                f"{tuple(new.batch_shape)}. Give one density for all rows, of batch shape ()."
            )
        masked = masked_like(new.expand(old.batch_shape), old)
        if masked is None:
            raise InputError(
                f"expected a prior of independent units at site {self.site!r}, where a mask leaves "
                f"out some; got {families.family(new)}. Give the density as prior= to "
                "log_evidence, with the model as it is."
            )
        msg["fn"] = masked
