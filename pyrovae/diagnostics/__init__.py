"""Numbers with standard errors about one trained pair.

``diagnose`` measures all of them in one call: where to sample from, how far q_agg is from the
prior, what collapsed or memorised. Each measure has a file of its own and takes codes and
densities, not models. Start with ``diagnosis.py``.
"""

from pyrovae.diagnostics.active_units import ACTIVE, Collapse
from pyrovae.diagnostics.advice import TOLERATED, change_from, choose
from pyrovae.diagnostics.code_densities import Memorisation
from pyrovae.diagnostics.concerns import grouped, listed
from pyrovae.diagnostics.copies import HELD_OUT, Attributions, Copies, sample_copies
from pyrovae.diagnostics.decoded_samples import Pictures
from pyrovae.diagnostics.diagnosis import TERMS, Diagnosis, diagnose
from pyrovae.diagnostics.draws import Codes, moments
from pyrovae.diagnostics.effort import Effort, left_out_of
from pyrovae.diagnostics.elbo_terms import Surgery
from pyrovae.diagnostics.gaps import Gaps, inference_gaps
from pyrovae.diagnostics.given import check_pair
from pyrovae.diagnostics.guide_check import GuideCheck
from pyrovae.diagnostics.holes import Holes
from pyrovae.diagnostics.information import Information
from pyrovae.diagnostics.labels import LABELS, QUALITY
from pyrovae.diagnostics.nuts import NutsComparison, beside_nuts
from pyrovae.diagnostics.sample_quality import Quality, SampleQuality, sample_quality
from pyrovae.diagnostics.simple_densities import Baselines, baselines
from pyrovae.diagnostics.two_sample import TwoSample
from pyrovae.diagnostics.unit_densities import unit_log_densities

__all__ = [
    "ACTIVE",
    "HELD_OUT",
    "LABELS",
    "QUALITY",
    "TERMS",
    "TOLERATED",
    "Attributions",
    "Baselines",
    "Codes",
    "Collapse",
    "Copies",
    "Diagnosis",
    "Effort",
    "Gaps",
    "GuideCheck",
    "Holes",
    "Information",
    "Memorisation",
    "NutsComparison",
    "Pictures",
    "Quality",
    "SampleQuality",
    "Surgery",
    "TwoSample",
    "baselines",
    "beside_nuts",
    "change_from",
    "check_pair",
    "choose",
    "diagnose",
    "grouped",
    "inference_gaps",
    "left_out_of",
    "listed",
    "moments",
    "sample_copies",
    "sample_quality",
    "unit_log_densities",
]
