"""A guide put to the test on data that its own model simulates.

``calibrate`` ranks the true codes among the guide's draws, by each unit and by quantities of the
code as a whole, over all data that the model makes; ``calibrate_locally`` tests the guide at single
rows. Start with ``joint.py``.
"""

from pyrovae.calibration.classifier import exchange_test
from pyrovae.calibration.joint import ALARM, Calibration, calibrate, calibrate_pair
from pyrovae.calibration.local import LocalCalibration, calibrate_locally
from pyrovae.calibration.uniformity import CELLS, counts_below, ecdf_band, uniformity_p_value

__all__ = [
    "ALARM",
    "CELLS",
    "Calibration",
    "LocalCalibration",
    "calibrate",
    "calibrate_locally",
    "calibrate_pair",
    "counts_below",
    "ecdf_band",
    "exchange_test",
    "uniformity_p_value",
]
