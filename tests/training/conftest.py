"""``import pairs``: the small pairs of this folder; ``import registry``: those of ``any_pair``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "any_pair"))
