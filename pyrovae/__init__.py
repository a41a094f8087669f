"""The latent distribution of a variational autoencoder as a thing one can hold and measure."""

from pyrovae.diagnostics.calibration import calibrate
from pyrovae.diagnostics.diagnosis import Diagnosis, Effort, diagnose
from pyrovae.diagnostics.exact import beside_nuts
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.errors import InputError
from pyrovae.evidence.annealed import Annealing
from pyrovae.evidence.log_evidence import log_evidence
from pyrovae.evidence.sandwich import sandwich
from pyrovae.keep import load, save
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.divergence import (
    divergence,
    entropy,
    entropy_bounds,
    variational_divergence,
)
from pyrovae.mixture.reduction import reduce
from pyrovae.models.arguments import with_arguments
from pyrovae.models.discretized import bits_per_dimension
from pyrovae.models.encoding import aggregate, encode
from pyrovae.models.ex_post import ExPostPrior, fit_ex_post_prior
from pyrovae.models.exemplar_prior import ExemplarPrior
from pyrovae.models.hierarchical import Branches, HierarchicalVAE
from pyrovae.models.likelihoods import binarise
from pyrovae.models.networks import conv_decoder, conv_encoder, mlp_decoder, mlp_encoder
from pyrovae.models.priors import FlowPrior, GaussianMixture, StandardNormal, VampPrior
from pyrovae.models.smoothing import Flow, Inflated, InflatedByUnit, Reduced
from pyrovae.models.vae import VAE
from pyrovae.training.fit import fit
from pyrovae.training.history import Fit

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AggregatedPosterior",
    "Annealing",
    "Branches",
    "Diagnosis",
    "Effort",
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
    "Reduced",
    "StandardNormal",
    "VampPrior",
    "aggregate",
    "beside_nuts",
    "binarise",
    "bits_per_dimension",
    "calibrate",
    "conv_decoder",
    "conv_encoder",
    "diagnose",
    "divergence",
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
