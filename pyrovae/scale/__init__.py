"""Aggregated posteriors larger than memory: encodings in files, densities a part at a time.

``encode_to`` writes the guide's means and scales into a folder, and goes on where it was stopped;
``open_aggregated`` makes that folder an aggregated posterior whose methods go through its shards,
in one process or in several. Start with ``posterior.py``; ``encoding.py`` writes the ``folder.py``
that it reads, and ``ranks.py`` knows of other processes.
"""

from pyrovae.scale.encoding import encode_to, open_aggregated
from pyrovae.scale.posterior import ShardedPosterior
from pyrovae.scale.rounding import same_normals

__all__ = ["ShardedPosterior", "encode_to", "open_aggregated", "same_normals"]
