"""Residuals: how much of the difference to a target each critical layer has to supply.

R = z − h, where z is a target (the hidden state at which the model gives the new object) and h is the hidden state
measured now, after the earlier layers have been updated. A rule says where z comes from, and which share η of R a layer
gets. Shapes ``(d_model, u)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from ..io.checks import check_real


@dataclass(frozen=True)
class Residual:
    """A rule for residuals.

    Attributes:
        name: its name in tables.
        direct: whether targets are optimised at each updated layer itself, instead of once at another layer.
        power: the residual of a layer is divided by nᵖᵒʷᵉʳ, where n layers are still to be updated, this one
            included: n = L − l + 1 where the layers are consecutive.
        replayed: whether targets are optimised once, at the first updated layer, and the later layers' targets come
            from a forward pass with the first one in place.
    """

    name: str
    direct: bool
    power: float
    replayed: ClassVar[bool] = False

    def divisor(self, remaining: int) -> float:
        """1 / η of a layer when ``remaining`` layers are still to be updated, itself included."""
        return remaining**self.power

    def check(self, layers: int) -> None:
        """Make sure that the rule fits this number of layers.

        Raises:
            ValueError: if it does not.
        """

    def site(self, layer: int, layers: Sequence[int]) -> int:
        """The layer, of the updated ``layers``, at which the targets of a layer's residual are optimised."""
        return layer if self.direct else layers[0] if self.replayed else layers[-1]


@dataclass(frozen=True)
class Replayed(Residual):
    """FE (arXiv:2605.00358): z_f = h_f + δ is optimised at the first layer f; the hidden states that the later layers
    have with z_f in place are their targets. Nothing is divided."""

    replayed: ClassVar[bool] = True


@dataclass(frozen=True)
class Weighted(Residual):
    """CAKE (ACL 2026): of what is missing at the last layer, layer l gets the share η_l = w_l / Σ_{k ≥ l} w_k.

    Attributes:
        weights: w, one per updated layer, from the first to the last; equal ones give MEMIT's shares.
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for weight in self.weights:
            check_real("a layer's weight", weight)

    @classmethod
    def of(cls, scores: Sequence[float], temperature: float) -> Weighted:
        """Weights from one score per layer: softmax(s / τ).

        Raises:
            ValueError: if the temperature is not positive, or a score is not finite.
        """
        check_real("temperature", temperature)
        if not isinstance(scores, (list, tuple)):
            raise ValueError(f"layer_scores must be a list of numbers, one per layer, not {scores!r}")
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
                raise ValueError(f"a layer's score must be a finite number, not {score!r}")
        weights = torch.tensor([float(s) for s in scores], dtype=torch.float64).div(temperature).softmax(0)
        if not (weights > 0).all():
            raise ValueError(
                f"the layers' scores {list(scores)} are too far apart for a temperature of {temperature}; raise it"
            )
        return cls("weighted", direct=False, power=0.0, weights=tuple(weights.tolist()))

    def divisor(self, remaining: int) -> float:
        own, *later = self.weights[-remaining:]
        return 1.0 + sum(weight / own for weight in later)  # a sum of ones if all weights are equal

    def check(self, layers: int) -> None:
        if len(self.weights) != layers:
            raise ValueError(
                f"{self.name} residuals need a weight (layer_scores) for each of {layers} layers, from the first "
                f"to the last, not {len(self.weights)}"
            )


#: MEMIT (Meng et al. 2023, Eq. 20): the residual at the last layer L, shared evenly by the layers still to come.
DISTRIBUTED = Residual("distributed", direct=False, power=1.0)
#: PMET (Li et al. 2024): the same, divided by the square root.
DISTRIBUTED_SQRT = Residual("distributed_sqrt", direct=False, power=0.5)
#: BLUE (Li et al. 2025): optimised at the layer itself, not divided.
DIRECT = Residual("direct", direct=True, power=0.0)
#: FE (arXiv:2605.00358): optimised at the first layer, replayed through the later ones, not divided.
REPLAYED = Replayed("replayed", direct=False, power=0.0)
