"""What each measure means, in a sentence, with its paper."""

from __future__ import annotations

import re
from typing import NamedTuple

from pyrovae.diagnostics import LABELS


class Term(NamedTuple):
    """A measure in words: its name, its meaning and its paper."""

    name: str
    meaning: str
    paper: str

    @property
    def anchor(self) -> str:
        """What a link within the page names it by."""
        return "term-" + re.sub(r"[^a-z]+", "-", self.name.lower()).strip("-")


MEASURES = {
    "elbo": Term(
        LABELS["elbo"],
        "E[log p(x|z)] − KL(q(z|x)‖p(z)), a lower bound on log p(x): what training maximises.",
        "Kingma & Welling 2014, Auto-encoding variational Bayes, arXiv:1312.6114",
    ),
    "distortion": Term(
        LABELS["distortion"],
        "−E[log p(x|z)]: what is lost when a data point is decoded from its own code.",
        "Alemi et al. 2018, Fixing a broken ELBO, arXiv:1711.00464",
    ),
    "rate": Term(
        LABELS["rate"],
        "Mean KL(q(z|x)‖p(z)): what the codes cost under the prior. ELBO = −distortion − rate.",
        "Alemi et al. 2018, arXiv:1711.00464",
    ),
    "index_code_mi": Term(
        LABELS["index_code_mi"],
        "I(n; z), how much a code tells about which of the N data points it belongs to; at most "
        "log N, where the components of q_agg no longer overlap.",
        "Hoffman & Johnson 2016, ELBO surgery, NIPS workshop on approximate inference",
    ),
    "marginal_kl": Term(
        LABELS["marginal_kl"],
        "KL(q_agg‖p), how far all codes together lie from the prior. rate = index-code MI + "
        "marginal KL, exactly.",
        "Hoffman & Johnson 2016",
    ),
    "total_correlation": Term(
        LABELS["total_correlation"],
        "KL(q_agg‖Π q_agg,d), how far the units are from independent in q_agg.",
        "Chen et al. 2018, Isolating sources of disentanglement, arXiv:1802.04942",
    ),
    "dimension_wise_kl": Term(
        LABELS["dimension_wise_kl"],
        "Σ KL(q_agg,d‖p_d), how far the units, taken one at a time, lie from the prior. With total "
        "correlation it adds up to the marginal KL where the prior factorises.",
        "Chen et al. 2018, arXiv:1802.04942",
    ),
    "active_units": Term(
        LABELS["active_units"],
        "Latent units whose posterior mean has a variance above 0.01 over the data; the others "
        "have collapsed to the prior.",
        "Burda et al. 2016, Importance weighted autoencoders, arXiv:1509.00519",
    ),
}

FURTHER = (
    Term(
        "Gaussian, probabilistic PCA, mixture",
        "Densities with no network, fitted to the training rows in seconds. A model that explains "
        "new rows no better than these has not found more in the data than they have.",
        "Tipping & Bishop 1999, Probabilistic principal component analysis, JRSS B 61(3)",
    ),
    Term(
        "rate of a unit",
        "Mean KL(q(z_d|x)‖p(z_d)) of one unit: what its part of the code costs. Below 0.01 nats it "
        "carries nothing, whatever the variance of its means.",
        "Lucas et al. 2019, Don't blame the ELBO!, arXiv:1911.02469",
    ),
    Term(
        "population information I(x; z)",
        "How much a code tells about its data point among all future data, not only the N at hand. "
        "Bounded from below by contrasting held-out points (InfoNCE, at most log N), from above by "
        "the held-out rate under the ex-post prior.",
        "Poole et al. 2019, On variational bounds of mutual information, arXiv:1905.06922",
    ),
    Term(
        "effective components",
        "The exponential of the entropy of a code's responsibilities: how many components of q_agg "
        "share it, from 1 to N.",
        "Hill 1973, Diversity and evenness, Ecology 54(2)",
    ),
    Term(
        "holes",
        "Places where the prior has mass but q_agg is lower than at all but 1 % of held-out codes. "
        "If both densities agree, 1 % of prior draws fall there.",
        "Rosca et al. 2018, Distribution matching in variational inference, arXiv:1802.06847",
    ),
    Term(
        "two-sample test",
        "A cross-validated classifier tries to tell codes from prior draws. Accuracy and AUC of "
        "0.5 mean that it can't, of 1 that the two never mix.",
        "Lopez-Paz & Oquab 2017, Revisiting classifier two-sample tests, arXiv:1610.06545",
    ),
    Term(
        "Fréchet distance",
        "Between normals with the means and covariances of samples and data, squared. Means and "
        "covariances of finite samples make it too high on average.",
        "Heusel et al. 2017, GANs trained by a two time-scale update rule, arXiv:1706.08500",
    ),
    Term(
        "precision, recall",
        "Shares of samples that lie within the balls up to the k-th nearest neighbour of a data "
        "point, and of data within those of a sample.",
        "Kynkäänniemi et al. 2019, Improved precision and recall metric, arXiv:1904.06991",
    ),
    Term(
        "density, coverage of samples",
        "How many such balls of data points a sample lies in, over k: 1 where samples are like the "
        "data. The share of data points whose ball holds a sample.",
        "Naeem et al. 2020, Reliable fidelity and diversity metrics, arXiv:2002.09797",
    ),
    Term(
        "share nearer to training rows",
        "Share of samples that are nearer to a training than to a held-out row, of as many of "
        "both: 0.5 if nothing is copied.",
        "Meehan et al. 2020, A non-parametric test to detect data-copying, arXiv:2004.05675",
    ),
    Term(
        "aggregated posterior q_agg",
        "1/N Σ q(z|x_n), the distribution of the codes of the whole data set.",
        "Makhzani et al. 2016, Adversarial autoencoders, arXiv:1511.05644; Tomczak & Welling 2018, "
        "VAE with a VampPrior, arXiv:1705.07120",
    ),
    Term(
        "ex-post prior",
        "A density fitted to q_agg after training and put in the place of p(z).",
        "Ghosh et al. 2020, From variational to deterministic autoencoders, arXiv:1903.12436",
    ),
    Term(
        "log p(x), lower bound",
        "The log of the mean of p(x|z) p(z) / q(z|x) over draws from the guide; its expectation "
        "rises to log p(x) with the number of draws.",
        "Burda et al. 2016, arXiv:1509.00519",
    ),
    Term(
        "log p(x), Pareto-smoothed",
        "The same, with the largest weights replaced by quantiles of a Pareto distribution fitted "
        "to them: less noisy where 0.5 < k̂ < 0.7, but no longer a bound.",
        "Vehtari et al. 2024, Pareto smoothed importance sampling, JMLR 25(72)",
    ),
    Term(
        "Pareto k̂",
        "The shape of the tail of a data point's importance weights. Above min(1 − 1/log10 S, 0.7) "
        "for S draws, or if it is unknown, the estimate and its standard error can't be trusted.",
        "Vehtari et al. 2024, Pareto smoothed importance sampling, JMLR 25(72); Yao et al. 2018, "
        "Yes, but did it work?, arXiv:1802.02538",
    ),
    Term(
        "amortization gap, approximation gap",
        "log p(x) − ELBO in two parts: what the encoder loses against the best member of its "
        "family for that data point, and what that member loses against the posterior.",
        "Cremer et al. 2018, Inference suboptimality in variational autoencoders, arXiv:1801.03558",
    ),
    Term(
        "simulation-based calibration",
        "If the guide is the posterior, a code drawn from the prior ranks uniformly among draws of "
        "the guide for the data decoded from that code: by each unit, and by functions of code and "
        "data such as log p(x|z), log q(z|x) (coverage) and a distance (TARP).",
        "Talts et al. 2018, arXiv:1804.06788; Modrák et al. 2023, arXiv:2211.02383; Lemos et al. "
        "2023, arXiv:2302.03026; Säilynoja et al. 2022, arXiv:2103.10522",
    ),
)

_LINKS = {term.name: term for term in (*MEASURES.values(), *FURTHER)}
#: Names in the tables of what the glossary has under another one.
_LINKS |= {
    "k̂ rejects": _LINKS["Pareto k̂"],
    "mean log p(x)": _LINKS["log p(x), lower bound"],
    "Pareto-smoothed": _LINKS["log p(x), Pareto-smoothed"],
    "raw q_agg": _LINKS["aggregated posterior q_agg"],
    "amortization gap": _LINKS["amortization gap, approximation gap"],
    "approximation gap": _LINKS["amortization gap, approximation gap"],
    "density": _LINKS["density, coverage of samples"],
    "coverage": _LINKS["density, coverage of samples"],
    "precision": _LINKS["precision, recall"],
    "recall": _LINKS["precision, recall"],
}


def linked(name: str) -> str:
    """The anchor of a name in the glossary; empty if it has none."""
    return _LINKS[name].anchor if name in _LINKS else ""
