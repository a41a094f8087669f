"""Take distributions of any family apart into parameter tensors, and rebuild them from these.

A batch of distributions can be cut, joined, moved to another device or written to a file,
whatever its family. What can't be rebuilt faithfully is refused by name. Start with ``rows.py``;
``constructors.py`` rebuilds a family by calling its constructor.
"""

from pyrovae.mixture.families.nested import MixtureByRow, Pushed
from pyrovae.mixture.families.rows import (
    CORRELATED_NORMALS,
    Edit,
    Editable,
    concatenate,
    convert,
    diagonal_normal,
    factorised,
    family,
    floating_parameter,
    from_state,
    full_normal,
    has_marginals,
    innermost,
    join,
    joinable,
    marginal,
    replace_tensors,
    rows_first,
    stack,
    student_t,
    take,
    tensors,
    to_state,
    unroll,
    where,
)
from pyrovae.mixture.families.shared_transforms import has_inverse, share, snapshot
from pyrovae.mixture.families.undeclared import PositiveDensity, declared, has_support

__all__ = [
    "CORRELATED_NORMALS",
    "Edit",
    "Editable",
    "MixtureByRow",
    "PositiveDensity",
    "Pushed",
    "concatenate",
    "convert",
    "declared",
    "diagonal_normal",
    "factorised",
    "family",
    "floating_parameter",
    "from_state",
    "full_normal",
    "has_inverse",
    "has_marginals",
    "has_support",
    "innermost",
    "join",
    "joinable",
    "marginal",
    "replace_tensors",
    "rows_first",
    "share",
    "snapshot",
    "stack",
    "student_t",
    "take",
    "tensors",
    "to_state",
    "unroll",
    "where",
]
