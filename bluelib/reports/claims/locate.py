"""Claims of ``02_locate``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from . import Claim, Numbers, above, apart
from .wording import band, listed

SUBJECT = "last subject"


def _largest(rows: pd.DataFrame) -> Any:
    return rows.loc[rows["mean"].idxmax()]


class View:
    """The largest effects, those of the traced layers, and how much severed paths take of a critical layer's effect.

    Attributes:
        layers: how many the model has.
        best: the largest effect of MLPs.
        here, rival: the largest effect at the subject's last token, of MLPs and of attention.
        traced, configured: the layers to edit, by tracing and in the configuration; ``start`` is the first configured.
        hidden: effects of the hidden state at the subject's last token, by layer; ``whole`` is the mean at ``start``,
            and ``half`` the half of its interval.
        known: how many facts were traced: those that the model knows.
        mlps, attention: how much of ``whole`` is lost when the later MLPs, or the later attention, are severed.
    """

    def __init__(self, numbers: Numbers) -> None:
        effects, self.known = pd.DataFrame(numbers["effects"]), numbers["known"]
        mlp, attention = (effects[effects.kind == kind] for kind in ("mlp", "attention"))
        self.layers = int(effects.layer.max()) + 1
        self.best = _largest(mlp)
        self.here, self.rival = (_largest(rows[rows.role == SUBJECT]) for rows in (mlp, attention))
        self.traced, self.configured = numbers["layers"]["tracing"], numbers["layers"]["configured"]
        self.start = self.configured[0]
        self.hidden = effects[(effects.kind == "hidden") & (effects.role == SUBJECT)].set_index("layer")
        self.whole = self.hidden["mean"][self.start]
        self.half = {end: self.hidden[end][self.start] / 2 for end in ("low", "high")}
        lost = pd.DataFrame(numbers["severed"]).set_index(["path", "layer"])
        self.mlps, self.attention = lost.loc[("MLPs", self.start)], lost.loc[("attention", self.start)]


def _traced(view: View) -> str:
    return f"{view.known} known facts"


CLAIMS = (
    Claim(
        "a fact is recalled by MLPs at the subject's last token, in early to middle layers",
        lambda v: (
            f"largest MLP effect {band(v.best)} at the {v.best.role} token, layer {v.best.layer}; at the last subject "
            f"token MLPs have at most {band(v.here)} (layer {v.here.layer}), attention {band(v.rival)} "
            f"(layer {v.rival.layer})"
        ),
        {
            "the largest mean MLP effect is at the subject's last token and in the first two thirds of the layers": (
                lambda v: v.best.role == SUBJECT and v.best.layer < 2 * v.layers / 3
            ),
            "at that token, the interval of the largest MLP effect is above that of the largest attention effect": (
                lambda v: apart(v.here, v.rival)
            ),
        },
        source="ROME, MEMIT",
        published="GPT2-XL: a peak in the middle layers (a picture)",
        size=_traced,
    ),
    Claim(
        "the state of a critical layer works through the MLPs after it",
        lambda v: (
            f"effect of layer {v.start}'s state {v.whole:.2f}; severing later MLPs takes {band(v.mlps)} of it, "
            f"severing later attention {band(v.attention)}"
        ),
        {
            "at the first configured layer, the interval of what severing later MLPs takes is above 0": (
                lambda v: above(v.mlps)
            ),
            "it is above half of the interval of the state's effect": lambda v: apart(v.mlps, v.half),
        },
        source="ROME, MEMIT",
        published="GPT-J: severing MLPs takes the effect away (a picture)",
        size=_traced,
    ),
    Claim(
        "tracing names the layers to edit",
        lambda v: (
            f"tracing: {v.traced}, where the effect is {listed(v.hidden['mean'][v.traced])}; "
            f"editing (configured): {v.configured}"
        ),
        {
            "tracing and editing name the same layers": lambda v: v.traced == v.configured,
            "most of them are the same": lambda v: 2 * len({*v.traced} & {*v.configured}) > len(v.configured),
        },
        source="ROME, MEMIT",
        published="GPT2-XL 13–17, GPT-J 3–8, Llama3 4–8",
        size=_traced,
        # If the layers that tracing names have next to no effect, tracing has not really named any.
        applies=lambda v: v.hidden.low[v.traced].min() > 0,
    ),
)
