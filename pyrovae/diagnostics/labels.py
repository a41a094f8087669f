"""What the measures are called: a key in plain letters for programs, a label for people."""

from __future__ import annotations

LABELS = {
    "elbo": "ELBO",
    "distortion": "distortion",
    "rate": "rate",
    "index_code_mi": "index-code MI",
    "marginal_kl": "marginal KL",
    "total_correlation": "total correlation",
    "dimension_wise_kl": "dimension-wise KL",
    "active_units": "active units",
    "log_density.prior": "log p(z) of codes",
    "log_density.q_agg": "log q_agg(z) of codes",
    "log_density.ex_post": "log ex-post prior of codes",
    "log_density.q_agg_minus_prior": "log q_agg − log p of codes",
    "effective_components": "effective components at codes",
    "information.lower": "I(x; z), bound from below",
    "information.upper": "I(x; z), bound from above",
    "holes.prior_outside": "share of prior draws outside q_agg",
    "holes.aggregated_outside": "share of held-out codes outside the prior",
    "two_sample.accuracy": "classifier's accuracy, codes against prior draws",
    "two_sample.auc": "classifier's AUC, codes against prior draws",
    "log_p_x.prior": "log p(x), prior p(z)",
    "log_p_x.q_agg": "log p(x), raw q_agg",
    "log_p_x.ex_post": "log p(x), ex-post prior",
    "log_p_x.q_agg_minus_prior": "log p(x), raw q_agg − prior",
    "log_p_x.ex_post_minus_prior": "log p(x), ex-post prior − prior",
    "bits_per_dimension.prior": "bits per dimension, prior p(z)",
    "bits_per_dimension.q_agg": "bits per dimension, raw q_agg",
    "bits_per_dimension.ex_post": "bits per dimension, ex-post prior",
    "gaps.inference": "log p(x) − ELBO",
    "gaps.amortization": "amortization gap",
    "gaps.approximation": "approximation gap",
    "gaps.beyond_gaussian": "gap beyond any Gaussian",
    "nuts.kl": "KL(q(z|x)‖p(z|x)) beside NUTS",
    "calibration.calibrated_units": "calibrated units",
}

#: What simple densities are called; a name of a single measure, as `Baselines` has more to say.
SIMPLE = {
    "gaussian": "Gaussian",
    "ppca": "probabilistic PCA",
    "mixture": "mixture fitted to the data",
    "independent": "independent entries",
}
LABELS |= {f"baselines.{name}": f"log p(x), {label}" for name, label in SIMPLE.items()}
LABELS |= {
    f"baselines.prior_minus_{name}": f"log p(x), prior p(z) − {label}"
    for name, label in SIMPLE.items()
}
SAMPLES = {
    "prior": "samples of the prior",
    "q_agg": "samples of raw q_agg",
    "ex_post": "samples of the ex-post prior",
    "held_out": "held-out rows",
    "reconstructions": "reconstructions",
}
QUALITY = {
    "frechet": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "nearer_to_training": "share nearer to training rows",
}
LABELS |= {
    f"sample_quality.{measure}.{samples}": f"{label}, {name}"
    for measure, label in QUALITY.items()
    for samples, name in SAMPLES.items()
}
LABELS |= {
    "copies.prior": "share of prior draws carried by one training row",
    "copies.q_agg": "share of draws from raw q_agg carried by one training row",
    "copies.ex_post": "share of draws from the ex-post prior carried by one training row",
    "copies.held_out": "share of held-out codes carried by one training row",
}
