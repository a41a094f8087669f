"""The pairs, networks, likelihoods and priors that this library offers to build a VAE from.

Encoder, decoder and prior are modules whose forward returns a distribution, and a recipe such as
``mlp_encoder`` makes one. Nothing outside this room depends on how they are made: every measure
takes any pair. Start with ``vae.py``.
"""

from pyrovae.models.checks import Prior
from pyrovae.models.discretized_logistic import DiscretizedLogistic, bits_per_dimension
from pyrovae.models.exemplar_prior import ExemplarPrior
from pyrovae.models.hierarchical import Branches, HierarchicalVAE
from pyrovae.models.likelihoods import (
    BernoulliDecoder,
    CategoricalDecoder,
    LogisticDecoder,
    NegativeBinomialDecoder,
    NormalDecoder,
    binarise,
    takes_totals,
)
from pyrovae.models.mixed import (
    BesideLinear,
    MaskedEncoder,
    MixedColumns,
    MixedDecoder,
    TableInputs,
    masked,
    outputs_of,
)
from pyrovae.models.networks import (
    FromCodes,
    GatedLinear,
    LogCounts,
    Standardize,
    conv_decoder,
    conv_encoder,
    gated_mlp,
    mlp,
    mlp_decoder,
    mlp_encoder,
)
from pyrovae.models.priors import Bounds, FlowPrior, GaussianMixture, StandardNormal, VampPrior
from pyrovae.models.vae import VAE

__all__ = [
    "VAE",
    "BernoulliDecoder",
    "BesideLinear",
    "Bounds",
    "Branches",
    "CategoricalDecoder",
    "DiscretizedLogistic",
    "ExemplarPrior",
    "FlowPrior",
    "FromCodes",
    "GatedLinear",
    "GaussianMixture",
    "HierarchicalVAE",
    "LogCounts",
    "LogisticDecoder",
    "MaskedEncoder",
    "MixedColumns",
    "MixedDecoder",
    "NegativeBinomialDecoder",
    "NormalDecoder",
    "Prior",
    "StandardNormal",
    "Standardize",
    "TableInputs",
    "VampPrior",
    "binarise",
    "bits_per_dimension",
    "conv_decoder",
    "conv_encoder",
    "gated_mlp",
    "masked",
    "mlp",
    "mlp_decoder",
    "mlp_encoder",
    "outputs_of",
    "takes_totals",
]
