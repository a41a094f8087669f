"""What a VAE of the command line is built from, so that it can be built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.data import Data, Dataset, categories_of, is_image, units
from pyrovae.errors import InputError
from pyrovae.models import (
    VAE,
    BesideLinear,
    Bounds,
    ExemplarPrior,
    FlowPrior,
    GaussianMixture,
    LogCounts,
    MaskedEncoder,
    MixedDecoder,
    Standardize,
    StandardNormal,
    TableInputs,
    VampPrior,
    conv_decoder,
    conv_encoder,
    mlp,
    mlp_decoder,
    mlp_encoder,
    outputs_of,
)
from pyrovae.randomness import seeded

PRIORS = ("standard", "mixture", "vamp", "flow", "exemplar")
COMPONENTS = {"mixture": 20, "vamp": 100}  # by default
NEIGHBOURS = 10  # nearest exemplars that each row uses in training
COUNTS, MIXED = "negative_binomial", "mixed"
#: Kinds of networks, and what their hidden layers have by default: units, or channels.
NETWORKS = {"mlp": (256, 256), "conv": (32, 64)}
#: Whether the entries of a row share the deviation of their normal noise, or each has its own, at
#: least 0.03 deviations of the data.
NOISES: dict[str, dict[str, Any]] = {"shared": {}, "each": {"per_unit": True, "floor": 0.03}}


#: The kinds of values that the fields of a recipe have in a file; whole numbers are sizes or seeds.
KINDS: dict[str, Any] = {
    "likelihood": str, "event_shape": list, "latent": int, "hidden": list, "prior": str,
    "components": int, "categories": int, "grey": bool, "double": bool, "seed": int,
    "column_categories": list, "missing": bool, "network": str, "noise": str,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What kind of VAE it is, in names and sizes.

    Args:
        likelihood: a name in ``pyrovae.data.datasets.LIKELIHOODS``.
        event_shape: shape of one row.
        latent: number of latent units D.
        hidden: units of the hidden layers, or channels of convolutions, from the data inwards.
        prior: a name in ``PRIORS``.
        components: number of Gaussians of a mixture, or of pseudo-inputs of a VampPrior; by default
            20, or 100 but at most a tenth of the training data.
        categories: of a categorical likelihood.
        grey: whether values between 0 and 1 are probabilities, and are drawn as 0 or 1.
        double: whether rows stay in float64 where float32 does not hold them.
        seed: names the pseudo-inputs to start from, and the draws of grey values.
        column_categories: of a mixed likelihood, of each column the number of categories; 1 for
            truth values, 0 for real numbers.
        missing: whether cells may be missing: rows are then numbers and a mask.
        network: a name in ``NETWORKS``.
        noise: of a normal likelihood: a name in ``NOISES``.
    """

    likelihood: str
    event_shape: tuple[int, ...]
    latent: int
    hidden: tuple[int, ...]
    prior: str
    components: int | None = None
    categories: int | None = None
    grey: bool = False
    double: bool = False
    seed: int = 0
    column_categories: tuple[int, ...] = ()
    missing: bool = False
    network: str = "mlp"
    noise: str = "shared"

    @classmethod
    def from_table(cls, about: Mapping[str, Any]) -> Recipe:
        """The recipe whose fields stand in a table of a file.

        Raises:
            InputError: if there are others, or a value is of another kind.
        """
        given = {name: value for name, value in about.items() if name != "kind"}
        for name, value in given.items():
            kinds = KINDS.get(name, ())
            several = isinstance(value, list) and all(map(_is_size, value))
            fits = several if kinds is list else isinstance(value, kinds)
            if not fits or (kinds is int and not _is_size(value)):
                raise InputError(
                    f"expected the description of a VAE; got {name} = {value!r}. Take the folder "
                    "as it was written."
                )
        missing = sorted({"likelihood", "event_shape", "latent", "hidden", "prior"} - given.keys())
        if missing:
            raise InputError(
                f"expected the description of a VAE; got none of its {missing[0]}. Take the folder "
                "as it was written."
            )
        lists = ("event_shape", "hidden", "column_categories")
        sizes = {name: tuple(given[name]) for name in lists if name in given}
        values: dict[str, Any] = given | sizes
        return cls(**values)

    @property
    def image(self) -> bool:
        """Whether a row is an image, so that all its entries have one unit."""
        return is_image(self.event_shape)

    def as_measured(self, part: Dataset, number: int) -> Data:
        """The rows of a part of the data as the VAE takes them, grey values drawn once.

        Where cells may be missing, that is numbers and a mask.

        Args:
            part: rows as they are in a file.
            number: 0, 1 and 2 for training, validation and held-out rows, 3 for others.
        """
        values = part.values if self.double else part.single().values
        if self.missing:
            return values, _mask_of(part)
        if not self.grey:
            return values
        with seeded(self.seed, "grey pixels", number):
            return torch.bernoulli(values)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _mask_of(part: Dataset) -> Tensor:
    whole = torch.ones(part.values.shape, dtype=torch.bool)
    return whole if part.obs_mask is None else part.obs_mask


def table_recipe(recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe of a VAE for a table with a likelihood for each column.

    Raises:
        InputError: for a prior of pseudo-inputs or exemplars that such a table can't have.
    """
    missing, counts = data.obs_mask is not None, categories_of(data)
    texts = any(count > 1 for count in counts)
    if (recipe.prior == "vamp" and (texts or missing)) or (recipe.prior == "exemplar" and missing):
        what = "missing cells" if missing else "texts, between which no pseudo-input lies"
        raise InputError(
            f"expected a prior of standard, mixture or flow for a table with {what}; got "
            f"{recipe.prior!r}. Take --prior mixture."
        )
    return replace(recipe, column_categories=counts, missing=missing)


def build(recipe: Recipe, train: Tensor, obs_mask: Tensor | None = None) -> VAE:
    """A VAE with random weights, in the units of the training data.

    Args:
        recipe: what kind.
        train: rows to take location and scale from, shape ``(N, ...)``.
        obs_mask: which of their cells count.
    """
    location, scale = location_and_scale(recipe, train, obs_mask)
    encoder, decoder = _networks(recipe, location, scale, torch.get_default_dtype())
    return VAE(encoder, decoder, _prior(recipe, encoder, train))


def location_and_scale(
    recipe: Recipe, train: Tensor, obs_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the training rows, by which the encoder standardises.

    Of counts they are those of log(1 + x).
    """
    is_counts = recipe.likelihood == COUNTS
    rows = train.log1p() if is_counts else train
    location, scale = units(rows, image=recipe.image, obs_mask=obs_mask)
    return (location, scale) if recipe.double else (location.float(), scale.float())


def rebuild(recipe: Recipe, state: Mapping[str, Tensor], train: Callable[[], Tensor]) -> VAE:
    """The VAE that a recipe and its parameters describe.

    No size is believed before the parameters have shown it: networks get their memory with them.

    Args:
        recipe: what kind.
        state: its ``state_dict()``.
        train: returns the training rows, which an exemplar prior consists of.

    Raises:
        InputError: if the parameters are not those of such a VAE.
    """
    try:
        place = f"encoder.network.{int(recipe.likelihood == COUNTS)}"
        if recipe.likelihood == MIXED:
            place = "encoder.inputs"
        location, scale = (state[f"{place}.{name}"] for name in ("location", "scale"))
        dtype = next(v.dtype for name, v in state.items() if name.endswith("weight"))
        with seeded(0, "weights that are replaced"), torch.device("meta"):
            encoder, decoder = _networks(recipe, location, scale, dtype)
        for name, part in (("encoder.", encoder), ("decoder.", decoder)):
            own = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
            part.load_state_dict(own, assign=True)
        with seeded(0, "prior that is replaced"):
            prior = _prior_of(recipe, state, encoder, train)
        vae = VAE(encoder, decoder, prior)
        vae.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError, StopIteration, TypeError, IndexError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"expected the parameters of a VAE as its folder describes it; got others: {reason}. "
            "Take the folder as it was written."
        ) from error
    return vae


def _networks(
    recipe: Recipe, location: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder; the dtype is that of the weights."""
    shape, latent, hidden = recipe.event_shape, recipe.latent, recipe.hidden
    if recipe.likelihood == MIXED:
        return _table_networks(recipe, location, scale, dtype)
    conv, outwards = recipe.network == "conv", tuple(reversed(hidden))
    if conv:
        encoder = conv_encoder(shape, latent, channels=hidden)
    else:
        encoder = mlp_encoder(shape, latent, hidden=hidden)
    log_layers = [LogCounts()] if recipe.likelihood == COUNTS else []
    with torch.device("cpu"):
        standardize = Standardize(location, scale, dtype=dtype)
    encoder.network = nn.Sequential(*log_layers, standardize, encoder.network)
    options: dict[str, Any] = {"categories": recipe.categories}
    if recipe.likelihood == "normal":
        options |= {"location": location, "scale": scale, **NOISES[recipe.noise]}
    if conv:
        decoder = conv_decoder(latent, shape, recipe.likelihood, channels=outwards, **options)
    else:
        decoder = mlp_decoder(latent, shape, recipe.likelihood, hidden=outwards, **options)
    return encoder, decoder


def _table_networks(
    recipe: Recipe, location: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a table with a likelihood for each column."""
    counts, hidden = recipe.column_categories, recipe.hidden
    with torch.device("cpu"):
        inputs = TableInputs(counts, location, scale, masked=recipe.missing, dtype=dtype)
    encoder = MaskedEncoder(mlp_encoder((inputs.size,), recipe.latent, hidden=hidden), inputs)
    outputs = outputs_of(counts)
    layers = mlp((recipe.latent, *reversed(hidden), outputs))
    network = BesideLinear(layers, recipe.latent, outputs)
    return encoder, MixedDecoder(network, counts, location, scale)


def _prior(recipe: Recipe, encoder: nn.Module, train: Tensor) -> nn.Module:
    """The prior to begin with; a VampPrior stays within the range of the data."""
    if recipe.prior == "standard":
        return StandardNormal(recipe.latent)
    if recipe.prior == "flow":
        return FlowPrior(recipe.latent)
    if recipe.prior == "exemplar":
        return _exemplars(encoder, train)
    components = recipe.components or COMPONENTS[recipe.prior]
    if recipe.prior == "mixture":
        return GaussianMixture(recipe.latent, components)
    if recipe.components is None:
        components = max(1, min(components, len(train) // 10))
    bounds = _range(train, image=recipe.image)
    return VampPrior.from_data(encoder, train, components, bounds=bounds, seed=recipe.seed)


def _prior_of(
    recipe: Recipe, state: Mapping[str, Tensor], encoder: nn.Module, train: Callable[[], Tensor]
) -> nn.Module:
    """A prior with as many components as there are parameters of it."""
    if recipe.prior == "mixture":
        return GaussianMixture(recipe.latent, len(state["prior.loc"]))
    if recipe.prior == "exemplar":
        return _exemplars(encoder, train())
    if recipe.prior != "vamp":
        return _prior(recipe, encoder, torch.empty(0))
    start = state["prior.raw"]
    bounds: Bounds | None = None
    if "prior.low" in state:
        bounds = state["prior.low"], state["prior.high"]
    elif recipe.image:
        bounds = _range(train(), image=True)
    low = 0.0 if bounds is None else bounds[0]
    return VampPrior(encoder, torch.zeros_like(start) + low, bounds=bounds)


def _exemplars(encoder: nn.Module, train: Tensor) -> ExemplarPrior:
    return ExemplarPrior(encoder, train, neighbours=min(NEIGHBOURS, len(train) - 1))


def _range(train: Tensor, *, image: bool) -> Bounds | None:
    """Least and greatest value of each column of a table, or of all pixels of an image."""
    if image:
        low, high = float(train.min()), float(train.max())
        return (low, high) if low < high else None
    least, greatest = train.amin(0), train.amax(0)
    # A column that is constant in training stays constant; if all are, there are no bounds.
    return (least, greatest) if bool((least < greatest).any()) else None


def in_words(prior: nn.Module) -> str:
    """What the prior of a VAE is, for a report."""
    match prior:
        case VampPrior():
            return f"VampPrior of {len(prior.inputs)} pseudo-inputs"
        case GaussianMixture():
            return f"mixture of {len(prior.loc)} Gaussians"
        case FlowPrior():
            return "normalising flow"
        case ExemplarPrior():
            return f"{len(prior.exemplars)} exemplars"
        case _:
            return "standard normal"
