"""Residuals: how much of what is missing at a layer each critical layer has to supply.

R = z − h, where z is the target (the hidden state at which the model gives the new object) and h is the hidden state
measured now, after the layers before have been updated. Shapes ``(d_model, u)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Residual:
    """A rule for residuals.

    Attributes:
        name: its name in configurations and tables.
        direct: whether targets are optimised at each updated layer itself, and not once at the last one.
        divisor: what the residual of a layer is divided by, given how many layers are still to be updated, this one
            included: L − l + 1 where the layers are consecutive.
    """

    name: str
    direct: bool
    divisor: Callable[[int], float]


def _one(remaining: int) -> float:
    return 1.0


#: MEMIT (Meng et al. 2023, Eq. 20): the residual at the last layer L, shared evenly by the layers still to come.
DISTRIBUTED = Residual("distributed", direct=False, divisor=float)
#: PMET (Li et al. 2024): the same, divided by the square root.
DISTRIBUTED_SQRT = Residual("distributed_sqrt", direct=False, divisor=math.sqrt)
#: BLUE (Li et al. 2025): optimised at the layer itself, not divided.
DIRECT = Residual("direct", direct=True, divisor=_one)
