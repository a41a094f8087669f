"""The variational autoencoder as a Pyro pair."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from pyrovae.data import Data, all_rows
from pyrovae.errors import InputError
from pyrovae.models.checks import (
    Prior,
    as_prior,
    check_codes,
    check_prior_shape,
    check_rows,
    data_plate,
    decoded_codes,
    decoding,
    encoding_of,
    register,
)
from pyrovae.models.exemplar_prior import ExemplarPrior, prior_of
from pyrovae.models.likelihoods import check_values, likelihood_of, takes_totals
from pyrovae.models.mixed import check_mask, masked
from pyrovae.pairs import encode, measuring
from pyrovae.randomness import seeded


class VAE(nn.Module):
    """A variational autoencoder: a Pyro model and its amortized guide.

    The model draws z ~ p(z) and x ~ p(x | z) for each row in the plate ``"data"``; the guide draws
    z ~ q(z | x). All three are modules whose forward returns a distribution, so any network fits
    (Kingma & Welling 2014).

    Args:
        encoder: maps rows ``(B, ...)`` to q(z | x), batch shape ``(B,)``, event shape ``(D,)``.
        decoder: maps codes ``(B, D)`` to p(x | z), batch shape ``(B,)``, event shape that of a row.
            A decoder for counts also gets the total of each row: everything is then conditional on
            that.
        prior: takes no argument and returns p(z), batch shape ``()``, event shape ``(D,)``; or p(z)
            itself, or the result of :func:`pyrovae.fit_ex_post_prior`.
        name: the name of the parameters in Pyro's parameter store.

    Raises:
        InputError: for a prior that is none of these; when it runs, if the modules return
            distributions of other shapes, or a row has a value that the likelihood excludes.

    >>> import pyrovae as pv, torch
    >>> vae = pv.VAE(pv.mlp_encoder((8, 8), 2), pv.mlp_decoder(2, (8, 8)), pv.StandardNormal(2))
    >>> vae.guide(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, prior: Prior, *, name: str = "vae"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = as_prior(prior)
        self.name = name

    def model(
        self,
        x: Tensor,
        index: Tensor | None = None,
        *,
        obs_mask: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """p(z) p(x | z) for each row of ``x``.

        Args:
            x: rows, shape ``(B, ...)``.
            index: numbers of the rows, shape ``(B,)``, which an
                :class:`~pyrovae.models.exemplar_prior.ExemplarPrior` needs in training; or
                ``obs_mask``, so that ``(x, obs_mask)`` is a data set with missing cells.
            obs_mask: which entries of the rows are there, true or false, shape ``(B, ...)``: p(x)
                is then that of these alone, whatever number stands for the others. The encoder is
                called with it, see :class:`~pyrovae.models.mixed.MaskedEncoder`.
            size: number of rows of the whole data set when ``x`` is a minibatch of it; the rows'
                log densities are then scaled by size/B, and the ELBO is unbiased for the whole set.

        Returns:
            ``x``.
        """
        register(self.name, self)
        index, seen = self._seen(x, index, obs_mask)
        with data_plate(x, size):
            prior = prior_of(self.prior, index)
            check_prior_shape(prior, x)
            z = pyro.sample("z", prior)
            check_codes(z, prior, encoder="encoder", prior="prior")
            with decoding(prior, lambda: self.encoder(x, *seen), encoder="encoder", prior="prior"):
                likelihood = likelihood_of(self.decoder, z, x=x)
            check_rows("decoder", likelihood, x, tuple(x.shape[1:]))
            check_values(likelihood, x)
            return pyro.sample("x", masked(likelihood, *seen) if seen else likelihood, obs=x)

    def guide(
        self,
        x: Tensor,
        index: Tensor | None = None,
        *,
        obs_mask: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """q(z | x) for each row of ``x``; arguments as :meth:`model`.

        Returns:
            one code for each row, shape ``(B, D)``.
        """
        register(self.name, self)
        _, seen = self._seen(x, index, obs_mask)
        with data_plate(x, size):
            return pyro.sample("z", encoding_of("encoder", self.encoder, x, *seen))

    def _seen(
        self, x: Tensor, index: Tensor | None, obs_mask: Tensor | None
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """The numbers of the rows and the mask of their entries, where there is either."""
        if index is not None and index.dtype == torch.bool:
            index, obs_mask = None, index
        if obs_mask is None:
            return index, ()
        check_mask(self.encoder, x, obs_mask)
        if takes_totals(self.decoder) or isinstance(self.prior, ExemplarPrior):
            what = "an exemplar prior" if isinstance(self.prior, ExemplarPrior) else "counts"
            raise InputError(
                f"expected whole rows with {what}; got obs_mask=. Leave out rows with missing "
                "entries, or take another likelihood or prior."
            )
        return index, (obs_mask,)

    def encode(self, x: Data, *, batch_size: int = 4096) -> Distribution:
        """q(z | x) for each row, batch shape ``(N,)``, as :func:`pyrovae.encode` has it."""
        return encode(self.guide, x, batch_size=batch_size)

    @torch.no_grad()
    def decode(self, z: Tensor, *, total: Tensor | None = None) -> Distribution:
        """p(x | z) for codes, without gradient; for one, call ``vae.decoder``.

        Args:
            z: codes, shape ``(S, D)``.
            total: the total of each row, shape ``(S,)``, for a decoder of counts.

        Returns:
            batch shape ``(S,)``, event shape that of a row.

        Raises:
            InputError: for codes of another width, or without totals for a decoder of counts, or
                with them for another.
        """
        if takes_totals(self.decoder) != (total is not None):
            expected, got = ("total=", "none") if total is None else ("no total=", "one")
            raise InputError(
                f"expected {expected} for this decoder; got {got}. A decoder of counts is "
                "conditional on the total of each row, shape (S,); others have none."
            )
        options = {} if total is None else {"total": total}
        dtype = next((p.dtype for p in self.decoder.parameters()), None)
        with (
            measuring(self.decoder, self.prior),
            decoded_codes(z, lambda: self.prior().event_shape, dtype),
        ):
            likelihood: Distribution = self.decoder(z, **options)
        return likelihood

    @torch.no_grad()
    def sample(self, n: int, *, total: Tensor | None = None, seed: int = 0) -> Tensor:
        """Rows drawn from the model, z ~ p(z) and then x ~ p(x | z).

        Args:
            n: number of rows.
            total: the total of each row, shape ``(n,)``, for a decoder of counts.
            seed: names the draws.

        Returns:
            shape ``(n, ...)``.
        """
        with seeded(seed, "rows of a VAE"):
            with measuring(self.prior):
                z = self.prior().sample(torch.Size([n]))
            rows: Tensor = self.decode(z, total=total).sample()
        return rows

    @torch.no_grad()
    def reconstruct(self, x: Data, *, batch_size: int = 4096) -> Tensor:
        """The mean of p(x | z) at the mean of q(z | x), for each row, shape ``(N, ...)``.

        Args:
            x: rows, as :func:`pyrovae.encode` takes them.
            batch_size: rows that go through the networks at once.
        """
        z = self.encode(x, batch_size=batch_size).mean
        return self._means(z, self._totals(x), batch_size)

    @torch.no_grad()
    def interpolate(self, start: Data, end: Data, steps: int = 9) -> Tensor:
        """Rows on the way from one to another: the mean of p(x | z) along a line between codes.

        The line runs from the mean of q(z | x) of the one to that of the other. Of counts, the
        total of a row goes in equal steps, too.

        Args:
            start, end: rows, shape ``(B, ...)`` each; for one pair ``x[:1], x[1:2]``.
            steps: points on each line, both ends included.

        Returns:
            shape ``(B, steps, ...)``.

        Raises:
            InputError: for fewer than 2 steps, different numbers of rows, or a likelihood without a
                mean.
        """
        if steps < 2:
            raise InputError(f"expected at least 2 steps, the ends; got {steps}. Give 9, say.")
        ends = [self.encode(x).mean for x in (start, end)]
        if len(ends[0]) != len(ends[1]):
            raise InputError(
                f"expected as many rows at the end as at the start; got {len(ends[1])} and "
                f"{len(ends[0])}. Give pairs of rows: x[:4], x[4:8]."
            )
        z = _line(ends[0], ends[1], steps)
        first, last = self._totals(start), self._totals(end)
        total = None if first is None or last is None else _line(first, last, steps).flatten()
        return self._means(z.flatten(0, 1), total).unflatten(0, z.shape[:2])

    @torch.no_grad()
    def traverse(
        self, z: Tensor, unit: int, values: Tensor, *, total: Tensor | None = None
    ) -> Tensor:
        """What one latent unit does: the mean of p(x | z) while it takes values and others stay.

        Args:
            z: codes to start from, shape ``(B, D)``: zeros, or ``vae.encode(x).mean``.
            unit: which of the D units, from 0.
            values: of that unit, shape ``(S,)``; under a standard normal prior from −3 to 3, say.
            total: the total of each row, shape ``(B,)``, for a decoder of counts.

        Returns:
            shape ``(B, S, ...)``.

        Raises:
            InputError: if there is no such unit, or for a likelihood without a mean.
        """
        if z.dim() != 2 or not -z.shape[1] <= unit < z.shape[1]:
            raise InputError(
                f"expected codes of shape (B, D) and one of their D units; got shape "
                f"{tuple(z.shape)} and unit {unit}. Units are counted from 0."
            )
        moved = z.unsqueeze(1).repeat(1, len(values), 1)
        moved[..., unit] = torch.as_tensor(values).to(z)
        totals = None if total is None else total.repeat_interleave(len(values))
        return self._means(moved.flatten(0, 1), totals).unflatten(0, moved.shape[:2])

    def _totals(self, x: Data) -> Tensor | None:
        """The total of each row, if the decoder is one of counts."""
        return all_rows(x)[0].flatten(1).sum(1) if takes_totals(self.decoder) else None

    def _means(self, z: Tensor, total: Tensor | None, batch_size: int = 4096) -> Tensor:
        """E[x | z] of codes, shape ``(S, ...)``."""
        parts = torch.arange(len(z)).split(batch_size)
        means = torch.cat(
            [self.decode(z[p], total=None if total is None else total[p]).mean for p in parts]
        )
        if bool(means.isnan().any()):
            raise InputError(
                "expected a likelihood that has a mean; got a categorical one, or one without. "
                "Decode the codes, and take what fits: vae.decode(vae.encode(x).mean)."
            )
        return means

    def with_prior(self, prior: Prior) -> VAE:
        """The same encoder and decoder, shared, under another prior.

        Args:
            prior: as for the class.
        """
        return VAE(self.encoder, self.decoder, prior, name=self.name)


def _line(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points in equal steps, shape ``(B, steps, ...)``."""
    share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    share = share.view(1, -1, *[1] * (start.dim() - 1))
    return torch.lerp(start.unsqueeze(1), end.unsqueeze(1), share)
