"""The variational autoencoder with two latent layers as a Pyro pair."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.checks import (
    Prior,
    as_prior,
    check_codes,
    check_prior_shape,
    check_rows,
    data_plate,
    decoding,
    encoding_of,
    register,
)
from pyrovae.models.exemplar_prior import prior_of
from pyrovae.models.likelihoods import check_values, likelihood_of


class HierarchicalVAE(nn.Module):
    """A variational autoencoder with two latent layers: p(z2) p(z1 | z2) p(x | z1, z2).

    The guide is q(z2 | x) q(z1 | x, z2). All five are modules whose forward returns a distribution
    (Tomczak & Welling 2018, HVAE). The prior is that of the top layer: give a
    :class:`~pyrovae.models.priors.VampPrior` the ``encoder`` of q(z2 | x). Measures take the top
    layer by ``site="z2"``, and both layers as one vector by ``site=("z2", "z1")``.

    Args:
        encoder: maps rows ``(B, ...)`` to q(z2 | x), batch shape ``(B,)``, event shape ``(D2,)``.
        decoder: maps ``z1, z2``, shapes ``(B, D1)`` and ``(B, D2)``, to p(x | z1, z2), batch shape
            ``(B,)``, event shape that of a row. One for counts also gets the rows' ``total=``.
        prior: takes no argument and returns p(z2), batch shape ``()``, event shape ``(D2,)``; or
            p(z2) itself, or the result of :func:`pyrovae.fit_ex_post_prior`.
        inner_encoder: maps ``x, z2`` to q(z1 | x, z2), batch shape ``(B,)``, event shape ``(D1,)``.
        conditional: maps ``z2`` to p(z1 | z2), batch shape ``(B,)``, event shape ``(D1,)``.
        name: the name of the parameters in Pyro's parameter store.

    Raises:
        InputError: as :class:`~pyrovae.models.vae.VAE`.

    >>> import pyrovae as pv
    >>> hvae = pv.HierarchicalVAE(
    ...     pv.mlp_encoder((8, 8), 2),
    ...     Branches((nn.Identity(), nn.Identity()), pv.mlp_decoder(3 + 2, (8, 8))),
    ...     pv.StandardNormal(2),
    ...     inner_encoder=Branches((nn.Flatten(), nn.Identity()), pv.mlp_encoder((64 + 2,), 3)),
    ...     conditional=pv.mlp_encoder((2,), 3),
    ... )
    >>> z2, z1 = hvae.guide(torch.zeros(5, 8, 8))
    >>> z2.shape, z1.shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior,
        *,
        inner_encoder: nn.Module,
        conditional: nn.Module,
        name: str = "hierarchical_vae",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = as_prior(prior)
        self.inner_encoder = inner_encoder
        self.conditional = conditional
        self.name = name

    def model(self, x: Tensor, index: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """p(z2) p(z1 | z2) p(x | z1, z2) for each row of ``x``.

        Args:
            x: rows, shape ``(B, ...)``.
            index: numbers of the rows, shape ``(B,)``, which an
                :class:`~pyrovae.models.exemplar_prior.ExemplarPrior` needs in training.
            size: number of rows of the whole data set when ``x`` is a minibatch of it; the rows'
                log densities are then scaled by size/B, and the ELBO is unbiased for the whole set.

        Returns:
            ``x``.
        """
        register(self.name, self)
        with data_plate(x, size):
            prior = prior_of(self.prior, index)
            check_prior_shape(prior, x)
            z2 = pyro.sample("z2", prior)
            check_codes(z2, prior, encoder="encoder", prior="prior")
            with decoding(prior, lambda: self.encoder(x), encoder="encoder", prior="prior"):
                conditional: dist.Distribution = self.conditional(z2)
            check_rows("conditional", conditional, x)
            z1 = pyro.sample("z1", conditional)
            names = {"encoder": "inner encoder", "prior": "conditional"}
            check_codes(z1, conditional, **names)
            with decoding(conditional, lambda: self.inner_encoder(x, z2), **names):
                likelihood = likelihood_of(self.decoder, z1, z2, x=x)
            check_rows("decoder", likelihood, x, tuple(x.shape[1:]))
            check_values(likelihood, x)
            return pyro.sample("x", likelihood, obs=x)

    def guide(
        self, x: Tensor, index: Tensor | None = None, *, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """q(z2 | x) q(z1 | x, z2) for each row of ``x``; arguments as :meth:`model`.

        Returns:
            z2 and z1, one of each for each row, shapes ``(B, D2)`` and ``(B, D1)``.
        """
        register(self.name, self)
        with data_plate(x, size):
            z2 = pyro.sample("z2", encoding_of("encoder", self.encoder, x))
            z1 = pyro.sample("z1", encoding_of("inner encoder", self.inner_encoder, x, z2))
        return z2, z1

    def with_prior(self, prior: Prior) -> HierarchicalVAE:
        """The same networks, shared, under another prior p(z2).

        Args:
            prior: as for the class.
        """
        return HierarchicalVAE(
            self.encoder,
            self.decoder,
            prior,
            inner_encoder=self.inner_encoder,
            conditional=self.conditional,
            name=self.name,
        )


class Branches(nn.Module):
    """A module of several inputs, made of one that takes a vector: each input has its own branch.

    Args:
        branches: one module for each input; their outputs, ``(B, F_i)``, are laid end to end.
        trunk: maps ``(B, F_1 + F_2 + ...)`` to the output, a tensor or a distribution. It gets
            keyword arguments as they are.

    >>> both = Branches((nn.Flatten(), nn.Linear(2, 5)), nn.Linear(4 + 5, 3))
    >>> both(torch.zeros(7, 2, 2), torch.zeros(7, 2)).shape
    torch.Size([7, 3])
    """

    def __init__(self, branches: tuple[nn.Module, ...], trunk: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.trunk = trunk

    def forward(self, *inputs: Tensor, **options: Tensor) -> Tensor | dist.Distribution:
        features = [branch(value) for branch, value in zip(self.branches, inputs, strict=True)]
        output: Tensor | dist.Distribution = self.trunk(torch.cat(features, -1), **options)
        return output
