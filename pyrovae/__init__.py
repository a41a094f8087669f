"""The latent distribution of a variational autoencoder as a thing one can hold and measure.

The way of the data, and what does each step::

    data                a tensor, a NumPy array, a DataFrame, an AnnData, a Dataset or a DataLoader;
                        read_table, with_obs_mask for texts, dates and missing cells
      pair              VAE(encoder, decoder, prior), HierarchicalVAE, or any Pyro model and guide;
                        mlp_encoder, conv_decoder, VampPrior, ExemplarPrior, ... to build one
      fit               stochastic variational inference; adam, elbo, binarise
      encode            q(z | x_n) for each row, as one batched distribution
      aggregate         q_agg(z) = 1/N sum q(z | x_n): an AggregatedPosterior, which is a Mixture;
                        entropy, divergence, reduce
      encode_to         the same for more rows than memory takes, into a folder; open_aggregated
                        makes that a ShardedPosterior, which is evaluated a shard at a time
      fit_ex_post_prior a density fitted to q_agg, to use in the prior's place
      log_evidence      log p(x) of each row: an Evidence; sandwich bounds it from both sides
      diagnose          a Diagnosis: .advice, .concerns, .summary(), .to_arviz()
      compare_groups    where the codes of groups lie apart, with errors over donors or days
      novelty           which new rows are unlike the data, with calibrated p-values; auroc
      memorisation      what each training row gained by being trained on; memorisation_screen
      baselines         log p(x) under simple densities: does the model fit?
      sample_quality    decoded samples of each density beside held-out data; sample_copies
      calibrate, calibrate_locally, inference_gaps, beside_nuts    the guide put to the test
      plots             pictures of a diagnosis
      to_arviz          what Pyro inferred for any model, by SVI or MCMC, for ArviZ
      save, load        any of these results in a file
      load_run          a folder that ``pyrovae analyze`` has written: a Run
      explore           a Run as one page in which a browser decodes any point

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

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

if TYPE_CHECKING:
    from pyrovae import plots
    from pyrovae.calibration import calibrate, calibrate_locally
    from pyrovae.data import read_table, with_obs_mask
    from pyrovae.diagnostics import (
        Diagnosis,
        Effort,
        baselines,
        beside_nuts,
        diagnose,
        inference_gaps,
        sample_copies,
    )
    from pyrovae.diagnostics.sample_quality import sample_quality
    from pyrovae.errors import InputError
    from pyrovae.estimates import Estimate, mean_estimate
    from pyrovae.evidence import Annealing, Evidence, log_evidence, sandwich
    from pyrovae.ex_post import (
        ExPostPrior,
        Flow,
        Inflated,
        InflatedByUnit,
        Reduced,
        fit_ex_post_prior,
    )
    from pyrovae.explorer import explore
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
        MaskedEncoder,
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
    from pyrovae.populations import (
        auroc,
        compare_groups,
        memorisation,
        memorisation_screen,
        novelty,
    )
    from pyrovae.runs import Run, load_run
    from pyrovae.saving import load, save
    from pyrovae.scale import ShardedPosterior, encode_to, open_aggregated
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
    "MaskedEncoder",
    "Mixture",
    "Reduced",
    "Run",
    "ShardedPosterior",
    "StandardNormal",
    "VampPrior",
    "adam",
    "aggregate",
    "auroc",
    "baselines",
    "beside_nuts",
    "binarise",
    "bits_per_dimension",
    "calibrate",
    "calibrate_locally",
    "compare_groups",
    "conv_decoder",
    "conv_encoder",
    "diagnose",
    "divergence",
    "elbo",
    "encode",
    "encode_to",
    "entropy",
    "entropy_bounds",
    "explore",
    "fit",
    "fit_ex_post_prior",
    "inference_gaps",
    "load",
    "load_run",
    "log_evidence",
    "mean_estimate",
    "memorisation",
    "memorisation_screen",
    "mlp_decoder",
    "mlp_encoder",
    "novelty",
    "open_aggregated",
    "plots",
    "read_table",
    "reduce",
    "sample_copies",
    "sample_quality",
    "sandwich",
    "save",
    "to_arviz",
    "variational_divergence",
    "with_arguments",
    "with_obs_mask",
]

#: Where those names are looked for, in this order. A room is imported when one of them is first
#: used: the command line shows its help without torch.
ROOMS = (
    "errors", "estimates", "mixture", "pairs", "saving", "scale", "models", "training", "evidence",
    "ex_post", "export", "calibration", "diagnostics", "plots", "report", "populations", "runs",
    "explorer",
    "data",
)  # fmt: skip


def _room(name: str) -> Any:
    """A room, imported without the warning that Pyro's progress bars give in a notebook."""
    with catch_warnings():
        filterwarnings("ignore", "IProgress not found")  # of ipywidgets, which nothing here needs
        return import_module(f"{__name__}.{name}")


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return _room(name)
    if name in __all__:
        for room in ROOMS:
            door = _room(room)
            if name in vars(door):
                globals()[name] = found = getattr(door, name)
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *ROOMS, *__all__})
