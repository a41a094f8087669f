"""The exemplar prior: a mixture of the encoded training data, without a row's own component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.mixture import Mixture
from pyrovae.mixture.kernel import constants, keys, queries
from pyrovae.models.fixed_density import same_numbers
from pyrovae.models.priors import check_inputs

ROWS = 4096  # exemplars that go through the encoder at once


class ExemplarPrior(nn.Module):
    r"""p(z) = 1/N Σ_n N(z; μ(x_n), σ² I): a component for each exemplar, one σ learned for all.

    The means come from the encoder that the guide uses. ``forward`` returns this density over
    all N; in evaluation mode its parameters are constants, encoded once and cached until a
    parameter changes. In training a :class:`~pyrovae.models.vae.VAE` calls :meth:`leaving_out`, so
    that no datum is explained by itself; for that the pair needs the rows' numbers as a second
    argument::

        prior = pv.ExemplarPrior(encoder, train, neighbours=10)
        vae = pv.VAE(encoder, decoder, prior)
        numbers = torch.arange(len(train))
        pv.fit(vae.model, vae.guide, (train, numbers), validation=(val, torch.arange(len(val))))
        pv.diagnose(vae.model, vae.guide, train, held_out=test)

    Numbers count the exemplars, whatever a transform does to the rows; −1 stands for a row that is
    not one of them. In evaluation mode they have no effect and may be left out: measures on
    training data then have the rows' own exemplars in the prior, as the model has.

    Training encodes exemplars anew in each step, with gradient:

    ================== =========================== =================================================
    option             exemplars in a step         the objective, against leave-one-out over all N
    ================== =========================== =================================================
    none               all N                       the same
    ``subsample=M``    M drawn without replacement a lower bound in expectation over the draws
    ``neighbours=k``   at most k for each row      a lower bound for each row
    ================== =========================== =================================================

    Neighbours are looked up by a code's distance to a cache of means: those of the exemplars in use
    are written to it in each step, and all of it is encoded again after every N rows. Each row has
    the neighbours of all rows of the batch as components; all other exemplars count as zero. An old
    cache makes the bound looser, never wrong.

    Args:
        encoder: the pair's own, x → q(z | x).
        exemplars: x_n as the encoder takes them, shape ``(N, *event_shape)``. They are not part of
            ``state_dict``: to load one, build the prior from the same data again.
        neighbours: k, 1 to N − 1.
        subsample: M, 2 to N.

    Raises:
        InputError: for fewer than two exemplars, ones that the encoder does not take, or k or M
            out of range.

    Norouzi, Fleet & Norouzi 2020, "Exemplar VAE".

    >>> import pyrovae as pv, torch
    >>> prior = pv.ExemplarPrior(pv.mlp_encoder((4,), 2), torch.rand(50, 4))
    >>> prior().log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    means: Tensor
    seen: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        exemplars: Tensor,
        *,
        neighbours: int | None = None,
        subsample: int | None = None,
    ) -> None:
        super().__init__()
        if len(exemplars) < 2:
            raise InputError(
                f"expected at least 2 exemplars, one of which is left out; got {len(exemplars)}. "
                "Give more rows."
            )
        _check_options(len(exemplars), neighbours, subsample)
        mean = check_inputs(encoder, exemplars).mean
        self.encoder = encoder
        self.exemplars = exemplars.detach()
        # If not, the encoder converts them itself.
        self._same_dtype_as_codes = exemplars.dtype == mean.dtype
        self.neighbours, self.subsample = neighbours, subsample
        self.log_scale = nn.Parameter(mean.new_zeros(()))
        self.register_buffer("means", mean.new_zeros(len(exemplars), mean.shape[-1]))
        self.register_buffer("seen", torch.tensor(len(exemplars)))  # N: the cache is to be filled
        self._cached: tuple[list[Tensor], Mixture] | None = None

    def forward(self) -> dist.Distribution:
        index = torch.arange(len(self.exemplars))
        if self.training:
            return self._mixture(self._encode(index))
        tensors = [*self.encoder.parameters(), *self.encoder.buffers(), self.log_scale]
        if self._cached is None or not same_numbers(self._cached[0], tensors):
            with torch.inference_mode(False), torch.no_grad():
                copies = [tensor.clone() for tensor in tensors]
                self._cached = copies, self._mixture(self._encode(index))
        return self._cached[1]

    def leaving_out(self, index: Tensor | None) -> LeaveOneOut:
        """p(z) in training: for each row without that row's own exemplar.

        Args:
            index: the number of each row among the exemplars, shape ``(B,)``; −1 for a row that is
                not one of them.

        Raises:
            InputError: if there are no numbers, or some that no exemplar has.
        """
        if index is None:
            raise InputError(
                "expected the numbers of the rows too, by which an exemplar prior leaves out each "
                "row's own exemplar in training; got rows alone. Train on (x, "
                "torch.arange(len(x))), or call .eval() on the pair first if this is no training."
            )
        return LeaveOneOut(self, index)

    def log_prob_without(self, z: Tensor, index: Tensor) -> Tensor:
        """log density at each code without one exemplar, or its bound; see the class.

        Args:
            z: codes, shape ``(B, D)``.
            index: exemplars to leave out, shape ``(B,)``; −1 for none.

        Returns:
            shape ``(B,)``, differentiable in z, the encoder and σ.
        """
        number = index.unsqueeze(1)
        chosen = self._choose(z, number)
        means = self._encode(chosen)
        if self.neighbours is not None:
            self.means[chosen] = means.detach()
        left_out = chosen == number
        if self.subsample is None:
            size = len(self.exemplars) - (index >= 0).double()
        else:
            size = len(chosen) - left_out.sum(1).double()
        centre = means.detach().mean(0).double()
        scale = self.log_scale.double().exp().expand(means.shape)
        constant = constants(scale, torch.zeros_like(scale[:, 0]))
        key = keys(means.double() - centre, scale, constant)
        scores = (queries(z.double() - centre) @ key.mT).masked_fill(left_out, -torch.inf)
        return (scores.logsumexp(1) - size.log()).to(z.dtype)

    def sample_without(self, index: Tensor) -> Tensor:
        """One draw for each number from the mixture of all other exemplars, shape ``(B, D)``."""
        left_out = (index >= 0).long()  # how many exemplars: one or none
        uniform = torch.rand(index.shape, dtype=torch.float64, device=index.device)
        number = (uniform * (len(self.exemplars) - left_out)).long()
        means = self._encode(number + left_out * (number >= index).long())
        return torch.normal(means, self.log_scale.exp().expand_as(means))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out the cache and encode the exemplars again."""
        return {**self.__dict__, "_cached": None}

    def _choose(self, z: Tensor, number: Tensor) -> Tensor:
        """The numbers of this step's exemplars, shape ``(M,)``."""
        size = len(self.exemplars)
        if self.subsample is not None:
            return torch.randperm(size)[: self.subsample].to(z.device)
        numbers = torch.arange(size, device=z.device)
        if self.neighbours is None:
            return numbers
        with torch.no_grad():
            if int(self.seen) >= size:
                self.means.copy_(self._encode(numbers))
                self.seen.zero_()
            self.seen += len(z)
            distance = torch.cdist(z.to(self.means), self.means)
            distance.masked_fill_(numbers == number, torch.inf)
            return distance.topk(self.neighbours, largest=False).indices.unique()

    def _encode(self, index: Tensor) -> Tensor:
        """μ(x_n) of some exemplars, shape ``(M, D)``."""
        dtype = self.log_scale.dtype if self._same_dtype_as_codes else self.exemplars.dtype
        device = self.log_scale.device
        parts = index.to(self.exemplars.device).split(ROWS)
        rows = (self.exemplars[part].to(device, dtype) for part in parts)
        return torch.cat([self.encoder(x).mean for x in rows])

    def _mixture(self, means: Tensor) -> Mixture:
        components = dist.Normal(means, self.log_scale.exp().expand_as(means)).to_event(1)
        return Mixture(dist.Categorical(logits=means.new_zeros(len(means))), components)


class LeaveOneOut(TorchDistribution):
    """An exemplar prior for some of its own exemplars: for each, the mixture of all others.

    ``sample`` draws from it; ``log_prob`` is its log density, or a bound on it, depending on the
    prior's options.

    Args:
        prior: the exemplar prior.
        index: exemplars to leave out, shape ``(B,)``; −1 for none.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self, prior: ExemplarPrior, index: Tensor, validate_args: bool | None = None
    ) -> None:
        self.prior, self.index = prior, index
        super().__init__(index.shape, prior.means.shape[1:], validate_args)
        size = len(prior.exemplars)
        if self._validate_args and (
            index.is_floating_point() or not bool(((index >= -1) & (index < size)).all())
        ):
            raise InputError(
                f"expected numbers of exemplars, whole numbers from 0 to {size - 1}, or -1 for a "
                f"row that is not one; got {index.dtype} from {float(index.min()):g} to "
                f"{float(index.max()):g}. Number the rows of the exemplars: torch.arange({size})."
            )
        if self._validate_args:
            numbers, counts = index[index >= 0].unique(return_counts=True)
            if bool((counts > 1).any()):
                number, rows = int(numbers[counts.argmax()]), int(counts.max())
                raise InputError(
                    "expected numbers of exemplars, each at most once in a batch; got "
                    f"{number} for {rows} rows, as class labels are. Train on "
                    f"(x, torch.arange({size})), drawn without replacement."
                )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LeaveOneOut:
        """The same distribution for more codes of each row, independent of each other."""
        return LeaveOneOut(self.prior, self.index.expand(batch_shape), False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape ``sample_shape + batch_shape + (D,)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return self.prior.sample_without(self.index.expand(shape[:-1]).flatten()).view(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log density, differentiable in the value and the prior's parameters."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.index.shape)
        codes = value.expand(*shape, value.shape[-1]).flatten(0, -2)
        return self.prior.log_prob_without(codes, self.index.expand(shape).flatten()).view(shape)


def prior_of(prior: nn.Module, index: Tensor | None) -> dist.Distribution:
    """p(z); for an exemplar prior in training, p(z) without the rows' own exemplars.

    Args:
        prior: a module whose forward returns p(z).
        index: numbers of the rows, shape ``(B,)``, if there are any.
    """
    if isinstance(prior, ExemplarPrior) and prior.training:
        return prior.leaving_out(index)
    return prior()


def _check_options(size: int, neighbours: int | None, subsample: int | None) -> None:
    if neighbours is not None and subsample is not None:
        raise InputError(
            f"expected neighbours= or subsample=, not both; got {neighbours} and {subsample}. "
            "Give one of them."
        )
    if neighbours is not None and not 1 <= neighbours < size:
        raise InputError(
            f"expected 1 to {size - 1} neighbours among {size} exemplars; got {neighbours}."
        )
    if subsample is not None and not 2 <= subsample <= size:
        raise InputError(f"expected a subsample of 2 to {size} of the exemplars; got {subsample}.")
