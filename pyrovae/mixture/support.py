"""Where a mixture has density, if its components are not all defined on the same set."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints


class OfAnyComponent(constraints.Constraint):
    """The union of the components' supports: a point counts if one of them can draw it.

    Args:
        base: support of the components, whose bounds have the batch dimension of the components
            in front of the event's.
    """

    def __init__(self, base: constraints.Constraint) -> None:
        self.base_constraint = base
        self.is_discrete = base.is_discrete
        self.event_dim = base.event_dim

    def check(self, value: Tensor) -> Tensor:
        """Whether each point is in the support, shape ``value``'s without the event."""
        inside: Tensor = self.base_constraint.check(value.unsqueeze(-1 - self.event_dim))
        return inside.any(-1)

    def __repr__(self) -> str:
        return f"OfAnyComponent({self.base_constraint})"
