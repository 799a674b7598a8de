"""Figures of ``01_locate``."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ...studies.locate import ROLES
from ..plots import style
from .common import DIRECT, DISTRIBUTED, Numbers, band, integers, panels, table


def causal_traces(numbers: Numbers) -> Figure:
    """Mean indirect effects, token role × layer, of hidden states, MLP and attention outputs."""
    kinds = ("hidden", "mlp", "attention")
    with style():
        figure, axes = panels(numbers, len(kinds), 2.3)
        every = pd.concat([table(found, "effects") for found in numbers.values()])
        for column, found in enumerate(numbers.values()):
            effects = table(found, "effects")
            for row, kind in enumerate(kinds):
                grid = effects[effects.kind == kind].pivot(index="role", columns="layer", values="mean")
                grid = grid.reindex([role for role in ROLES if role in grid.index])
                axis, last = axes[row, column], column == len(numbers) - 1
                scale = every[every.kind == kind]["mean"]  # the same for all models
                sns.heatmap(
                    grid,
                    ax=axis,
                    cmap="cividis",
                    vmin=min(0, scale.min()),
                    vmax=scale.max(),
                    cbar=last,
                    cbar_kws={"label": "indirect effect"} if last else None,
                )
                axis.set(xlabel="layer", ylabel={"mlp": "MLP"}.get(kind, kind) if column == 0 else "")
                axis.tick_params(axis="y", rotation=0)
                if column:
                    axis.set_yticklabels([])
        return figure


def severed_paths(numbers: Numbers) -> Figure:
    """Effect of the hidden state at the subject's last token, and what is left of it when later parts are severed."""
    styles = {
        "hidden": ("all paths", "black", "o"),
        "hidden, MLPs severed": ("later MLPs severed", DISTRIBUTED, "s"),
        "hidden, attention severed": ("later attention severed", DIRECT, "^"),
    }
    with style():
        figure, axes = panels(numbers, 1, 3.2, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            effects = table(found, "effects")
            effects = effects[effects.role == "last subject"]
            for kind, (label, colour, marker) in styles.items():
                band(axis, effects[effects.kind == kind], "layer", label, color=colour, marker=marker)
            critical = found["layers"]["configured"]
            axis.axvspan(
                critical[0] - 0.4,
                critical[-1] + 0.4,
                color="grey",
                alpha=0.15,
                linewidth=0,
                label="critical layers (configured)",
            )
            axis.set(xlabel="layer whose hidden state is restored")
            integers(axis, effects.layer)
        axes[0, 0].set_ylabel("indirect effect")
        axes[0, -1].legend(fontsize=8)
        return figure
