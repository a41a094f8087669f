"""The latent distribution of a variational autoencoder as a thing one can hold and measure."""

from pyrovae.evidence.log_evidence import log_evidence
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.models.encoding import aggregate, encode
from pyrovae.models.networks import mlp_decoder, mlp_encoder
from pyrovae.models.priors import GaussianMixture, StandardNormal
from pyrovae.models.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AggregatedPosterior",
    "GaussianMixture",
    "StandardNormal",
    "aggregate",
    "encode",
    "log_evidence",
    "mlp_decoder",
    "mlp_encoder",
]
