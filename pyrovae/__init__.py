"""The latent distribution of a variational autoencoder as a thing one can hold and measure."""

from pyrovae.diagnostics import Diagnosis, Effort, beside_nuts, calibrate, diagnose, inference_gaps
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate
from pyrovae.evidence import Annealing, Evidence, log_evidence, sandwich
from pyrovae.ex_post import ExPostPrior, Flow, Inflated, InflatedByUnit, Reduced, fit_ex_post_prior
from pyrovae.mixture import (
    AggregatedPosterior,
    Mixture,
    divergence,
    entropy,
    entropy_bounds,
    reduce,
    variational_divergence,
)
from pyrovae.models import (
    VAE,
    Branches,
    ExemplarPrior,
    FlowPrior,
    GaussianMixture,
    HierarchicalVAE,
    StandardNormal,
    VampPrior,
    binarise,
    bits_per_dimension,
    conv_decoder,
    conv_encoder,
    mlp_decoder,
    mlp_encoder,
)
from pyrovae.pairs import aggregate, encode, with_arguments
from pyrovae.saving import load, save
from pyrovae.training import Fit, adam, elbo, fit

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AggregatedPosterior",
    "Annealing",
    "Branches",
    "Diagnosis",
    "Effort",
    "Estimate",
    "Evidence",
    "ExPostPrior",
    "ExemplarPrior",
    "Fit",
    "Flow",
    "FlowPrior",
    "GaussianMixture",
    "HierarchicalVAE",
    "Inflated",
    "InflatedByUnit",
    "InputError",
    "Mixture",
    "Reduced",
    "StandardNormal",
    "VampPrior",
    "adam",
    "aggregate",
    "beside_nuts",
    "binarise",
    "bits_per_dimension",
    "calibrate",
    "conv_decoder",
    "conv_encoder",
    "diagnose",
    "divergence",
    "elbo",
    "encode",
    "entropy",
    "entropy_bounds",
    "fit",
    "fit_ex_post_prior",
    "inference_gaps",
    "load",
    "log_evidence",
    "mlp_decoder",
    "mlp_encoder",
    "reduce",
    "sandwich",
    "save",
    "variational_divergence",
    "with_arguments",
]
