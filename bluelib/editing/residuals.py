"""Residuals: how much of what is missing at a layer each critical layer has to supply.

R = z − h, where z is the target (the hidden state at which the model gives the new object) and h is the hidden state
measured now, after the layers before have been updated. Shapes ``(d_model, u)``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Residual:
    """A rule for residuals.

    Attributes:
        name: its name in tables.
        direct: whether targets are optimised at each updated layer itself, and not once at the last one.
        power: the residual of a layer is divided by nᵖᵒʷᵉʳ, where n layers are still to be updated, this one
            included: n = L − l + 1 where the layers are consecutive.
    """

    name: str
    direct: bool
    power: float

    def divisor(self, remaining: int) -> float:
        return remaining**self.power


#: MEMIT (Meng et al. 2023, Eq. 20): the residual at the last layer L, shared evenly by the layers still to come.
DISTRIBUTED = Residual("distributed", direct=False, power=1.0)
#: PMET (Li et al. 2024): the same, divided by the square root.
DISTRIBUTED_SQRT = Residual("distributed_sqrt", direct=False, power=0.5)
#: BLUE (Li et al. 2025): optimised at the layer itself, not divided.
DIRECT = Residual("direct", direct=True, power=0.0)
