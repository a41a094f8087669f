"""The latent distribution of a variational autoencoder as a thing one can hold and measure.

The way of the data, and what does each step::

    data                a tensor, a NumPy array, a DataFrame, an AnnData, a Dataset or a DataLoader
      pair              VAE(encoder, decoder, prior), HierarchicalVAE, or any Pyro model and guide;
                        mlp_encoder, conv_decoder, VampPrior, ExemplarPrior, ... to build one
      fit               stochastic variational inference; adam, elbo, binarise
      encode            q(z | x_n) for each row, as one batched distribution
      aggregate         q_agg(z) = 1/N sum q(z | x_n): an AggregatedPosterior, which is a Mixture;
                        entropy, divergence, reduce
      fit_ex_post_prior a density fitted to q_agg, to use in the prior's place
      log_evidence      log p(x) of each row: an Evidence; sandwich bounds it from both sides
      diagnose          a Diagnosis: .advice, .concerns, .summary(), .to_arviz()
      sample_quality    decoded samples of each density beside held-out data
      calibrate, inference_gaps, beside_nuts    the guide put to the test
      plots             pictures of a diagnosis
      to_arviz          what Pyro inferred for any model, by SVI or MCMC, for ArviZ
      save, load        any of these results in a file

Every number is an Estimate, with its standard error and whether it is a bound; mean_estimate makes
one of values of your own. Input that can't be used is an InputError that says what to do.

>>> import pyrovae as pv, torch
>>> vae = pv.VAE(pv.mlp_encoder((8,), 2), pv.mlp_decoder(2, (8,)), pv.StandardNormal(2))
>>> rows = torch.rand(64, 8).round()
>>> pv.fit(vae.model, vae.guide, rows, epochs=1, progress=False).best_epoch
1
>>> pv.aggregate(vae.guide, rows)
AggregatedPosterior(components=64, event_shape=(2,), family=Normal)
"""

from pyrovae import plots
from pyrovae.diagnostics import (
    Diagnosis,
    Effort,
    beside_nuts,
    calibrate,
    diagnose,
    inference_gaps,
    sample_quality,
)
from pyrovae.errors import InputError
from pyrovae.estimates import Estimate, mean_estimate
from pyrovae.evidence import Annealing, Evidence, log_evidence, sandwich
from pyrovae.ex_post import ExPostPrior, Flow, Inflated, InflatedByUnit, Reduced, fit_ex_post_prior
from pyrovae.export import to_arviz
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
    "mean_estimate",
    "mlp_decoder",
    "mlp_encoder",
    "plots",
    "reduce",
    "sample_quality",
    "sandwich",
    "save",
    "to_arviz",
    "variational_divergence",
    "with_arguments",
]
