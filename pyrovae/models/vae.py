"""The variational autoencoder as a Pyro pair: every sample statement of the library is here."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class VAE(nn.Module):
    """A variational autoencoder: a Pyro model and its amortized guide.

    The model draws z ~ p(z) and x ~ p(x | z) for each row in the plate ``"data"``; the guide draws
    z ~ q(z | x). All three are modules whose forward returns a distribution, so any network fits
    (Kingma & Welling 2014).

    Args:
        encoder: maps rows ``(B, ...)`` to q(z | x), batch shape ``(B,)``, event shape ``(D,)``.
        decoder: maps codes ``(B, D)`` to p(x | z), batch shape ``(B,)``, event shape that of a row.
        prior: maps nothing to p(z), batch shape ``()``, event shape ``(D,)``.
        name: under which the parameters stand in Pyro's parameter store.

    >>> import pyrovae as pv
    >>> vae = pv.VAE(pv.mlp_encoder((8, 8), 2), pv.mlp_decoder(2, (8, 8)), pv.StandardNormal(2))
    >>> vae.guide(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module, *, name: str = "vae"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.name = name

    def model(self, x: Tensor, *, size: int | None = None) -> Tensor:
        """p(z) p(x | z) for each row of ``x``.

        Args:
            x: rows, shape ``(B, ...)``.
            size: number of rows of the whole data set when ``x`` is a minibatch of it; the rows'
                log densities are then scaled by size/B, and the ELBO is unbiased for the whole.

        Returns:
            ``x``.
        """
        self._register()
        with self._data_plate(x, size):
            prior: dist.Distribution = self.prior()
            z = pyro.sample("z", prior)
            if z.shape[-1:] != prior.event_shape:
                raise ValueError(
                    f"expected codes of the prior's event shape {tuple(prior.event_shape)}; got "
                    f"{z.shape[-1]} latent units. Give encoder and prior the same number."
                )
            likelihood: dist.Distribution = self.decoder(z)
            _check("decoder", likelihood, x, tuple(x.shape[1:]))
            return pyro.sample("x", likelihood, obs=x)

    def guide(self, x: Tensor, *, size: int | None = None) -> Tensor:
        """q(z | x) for each row of ``x``; arguments as :meth:`model`.

        Returns:
            one code a row, shape ``(B, D)``.
        """
        self._register()
        with self._data_plate(x, size):
            posterior: dist.Distribution = self.encoder(x)
            _check("encoder", posterior, x, tuple(posterior.event_shape[-1:]) or ("D",))
            return pyro.sample("z", posterior)

    def with_prior(self, prior: nn.Module | dist.Distribution) -> VAE:
        """The same encoder and decoder, shared, under another prior.

        Args:
            prior: a module whose forward returns p(z), or p(z) itself.
        """
        module = prior if isinstance(prior, nn.Module) else _Fixed(prior)
        return VAE(self.encoder, self.decoder, module, name=self.name)

    def _data_plate(self, x: Tensor, size: int | None) -> pyro.plate:
        if size is None or size == len(x):
            return pyro.plate("data", len(x))
        if size < len(x):
            raise ValueError(
                f"expected size ≥ {len(x)}, the number of rows of x; got {size}. It is the number "
                "of rows of the whole data set."
            )
        return pyro.plate("data", size, subsample=torch.arange(len(x), device=x.device))

    def _register(self) -> None:
        # The module owns its parameters and the store is told of them. pyro.module alone would give
        # a second VAE of the same name the parameters of the first.
        store = pyro.get_param_store()
        for name, parameter in self.named_parameters():
            key = f"{self.name}$$${name}"
            if key in store and store[key] is not parameter:
                del store[key]
        pyro.module(self.name, self)


class _Fixed(nn.Module):
    """A distribution as a module: what p(z) is when nothing in it is to be learned."""

    def __init__(self, distribution: dist.Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self) -> dist.Distribution:
        return self.distribution


def _check(
    who: str, distribution: dist.Distribution, x: Tensor, event_shape: tuple[int | str, ...]
) -> None:
    batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if event != event_shape or batch[-1:] != (len(x),):
        raise ValueError(
            f"expected the {who} to return a distribution with batch shape ({len(x)},) and event "
            f"shape {event_shape}; got {batch} and {event}. Declare the dimensions of one row as "
            "event dimensions with .to_event(...), and check the sizes of the networks."
        )
