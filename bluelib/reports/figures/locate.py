"""Figures of ``02_locate``, and of ``blue locate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ...studies.locate import ROLES
from ..plots import style
from .common import DIRECT, DISTRIBUTED, MOST, NumbersByModel, band, integers, panels, table, title


def causal_traces(numbers: NumbersByModel) -> Figure:
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
                    xticklabels="auto" if len(grid.columns) <= MOST else 5,
                    cbar=last,
                    cbar_kws={"label": "indirect effect"} if last else None,
                )
                axis.set(xlabel="layer", ylabel={"mlp": "MLP"}.get(kind, kind) if column == 0 else "")
                axis.tick_params(axis="y", rotation=0)
                if column:
                    axis.set_yticklabels([])
        return figure


def severed_paths(numbers: NumbersByModel) -> Figure:
    """Effect of the hidden state at the subject's last token, and what severing later parts takes of it: differences
    of the same facts."""
    taken = {"MLPs": ("through later MLPs", DISTRIBUTED, "s"), "attention": ("through later attention", DIRECT, "^")}
    with style():
        figure, axes = panels(numbers, 1, 3.2, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            effects = table(found, "effects")
            effects = effects[(effects.role == "last subject") & (effects.kind == "hidden")]
            axis.plot(effects.layer, effects["mean"], color="grey", linestyle="--", label="whole effect")
            severed = table(found, "severed")
            for path, (label, colour, marker) in taken.items():
                band(axis, severed[severed.path == path], "layer", label, color=colour, marker=marker)
            axis.axhline(0, color="grey", linewidth=0.8)
            if critical := found["layers"]["configured"]:
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


def critical_layers(found: Mapping[str, Any]) -> Figure:
    """What an edit of each layer alone contributes and, in a panel below, the indirect effect at the subject's last
    token, if it was traced. Each panel shows the window of layers that its numbers choose.

    Args:
        found: the result of :meth:`.Located.as_dict` for one model.
    """
    contributions, tracing = table(found, "contributions"), table(found, "tracing")
    rows = 2 if len(tracing) else 1
    with style():
        figure, axes = plt.subplots(
            rows, 1, figsize=(6.4, 2.6 * rows), layout="constrained", squeeze=False, sharex=True
        )
        axes[0, 0].set_title(title(Path(found["model"]).name, found))
        for column, label, colour, marker in (
            ("paraphrase", "after paraphrases", DIRECT, "o"),
            ("rewrite", "after the rewrite prompt", "black", "s"),
        ):
            axes[0, 0].plot(contributions.layer, contributions[column], label=label, color=colour, marker=marker)
        axes[0, 0].set(ylabel="contribution of\nan edit of one layer")
        if rows == 2:
            for kind, label, colour, marker in (
                ("hidden", "hidden state", "black", "o"),
                ("mlp", "MLPs around the layer", DISTRIBUTED, "^"),
            ):
                band(axes[1, 0], tracing[tracing.kind == kind], "layer", label, color=colour, marker=marker)
            axes[1, 0].set(ylabel="indirect effect at the\nsubject's last token")
        for axis, name in zip(axes[:, 0], ("contributions", "tracing"), strict=False):
            window = found["windows"][name]
            axis.axvspan(
                window[0] - 0.4,
                window[-1] + 0.4,
                color="grey",
                alpha=0.15,
                linewidth=0,
                label="critical layers" if name == "contributions" else "layers by tracing",
            )
            axis.legend(fontsize=8)
        axes[-1, 0].set(xlabel="layer")
        integers(axes[-1, 0], range(0, found["n_layers"], 1 + found["n_layers"] // 16))
        return figure
