"""Figures of ``03_theory``."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...io.palette import GREEN, GREY, LIGHT_GREY, VERMILION
from ...studies.theory import BOUNDS, Norms, spectral_norm, weight_shift
from ...studies.theory import error_terms as terms_of
from ..plots import style
from .common import DIRECT, DISTRIBUTED, NumbersByModel, band, bars, integers, panels, table

#: The names of the bounds in figures.
_BOUND_NAMES = {"residual": "residual", "shared": "shared", "tight": "tight", "paper": "paper (Theorem 4.1)"}


def toy_example(angle: float) -> tuple[NDArray, NDArray, NDArray]:
    """Two edits in two dimensions, K, R* and R^L, each ``(2, 2)``: R* is R^L turned by ``angle`` degrees."""
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    keys, last = np.array([[1.0, 0.2], [0.1, 0.8]]), np.array([[1.0, -0.5], [0.2, 0.7]])
    return keys, rotation @ last, last


def toy(keys: NDArray, direct: NDArray, last: NDArray, share: float, weight: float) -> Figure:
    """Two edits in two dimensions: the residuals as arrows, the error's two parts, the bounds, and the gain's curve.

    Args:
        keys: K, ``(2, 2)``, a key a column; C is the identity.
        direct: R*, ``(2, 2)``, a residual a column.
        last: R^L, ``(2, 2)``.
        share: η, above 0 and at most 1.
        weight: λ.
    """
    stretched = keys / np.sqrt(weight)  # K̂ = M^(−1/2) K with M = λI
    gain = torch.from_numpy(np.linalg.solve(weight * np.eye(2) + keys @ keys.T, keys).T.copy())
    given = torch.from_numpy(direct), torch.from_numpy(last), 1 / share, gain
    error, parts = spectral_norm(weight_shift(*given)), terms_of(*given)
    with style():
        figure = plt.figure(figsize=(9, 5.8), layout="constrained")
        places: Any = [["arrows", "bounds"], ["arrows", "parts"], ["arrows", "gain"]]
        axes = figure.subplot_mosaic(places, width_ratios=[1.15, 1], height_ratios=[1.3, 0.55, 1.3])
        _toy_arrows(axes["arrows"], direct, last, share)
        sizes = {r"the error, $\Vert E\Vert$": error}
        sizes |= {_BOUND_NAMES[name]: bound for name, bound in Norms.of(*given).bounds().items()}
        names = [f"{name}  {size:.2f}" for name, size in sizes.items()]
        axes["bounds"].barh(names, list(sizes.values()), color=[VERMILION, *[GREY] * (len(sizes) - 1)])
        axes["bounds"].set(title="the error in the weights and its bounds", xlim=(0, 4))
        axes["bounds"].invert_yaxis()
        left = 0.0
        for name, colour in (("direction", GREEN), ("amount", VERMILION)):
            size = getattr(parts, name)
            axes["parts"].barh([0], [size], left=left, color=colour, label=name, height=0.5)
            left += size
        axes["parts"].set(xlim=(0, 1.05 * left), ylim=(-0.4, 0.4), yticks=[])
        axes["parts"].set_title(r"$\Vert E\Vert_F^2$: direction (green), amount (red)")
        _gain_curve(axes["gain"])
        sigma = np.linalg.svd(stretched, compute_uv=False)
        axes["gain"].plot(sigma, sigma / (1 + sigma**2), "o", color="black")
        axes["gain"].set_title(rf"$\Vert Q\Vert$ = {spectral_norm(gain):.2f}, at most {0.5 / np.sqrt(weight):.2f}")
        return figure


def _toy_arrows(axis: Axes, direct: NDArray, last: NDArray, share: float) -> None:
    arrows = (
        (np.zeros((2, 2)), last, LIGHT_GREY, "$R^L$, optimised at the last layer"),
        (np.zeros((2, 2)), share * last, "black", rf"its share, ${share:.2f}\,R^L$"),
        (np.zeros((2, 2)), direct, GREEN, "$R^*$, optimised at this layer"),
        (share * last, direct - share * last, VERMILION, r"what is wrong, $R^*-\eta R^L$"),
    )
    for (x, y), (dx, dy), colour, label in arrows:
        axis.quiver(
            x, y, dx, dy, color=colour, angles="xy", scale_units="xy", scale=1, width=0.012, label=label, zorder=3
        )
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", title="residuals of two edits")
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _gain_curve(axis: Axes) -> None:
    sigma = np.geomspace(0.01, 100, 200)
    axis.plot(sigma, sigma / (1 + sigma**2), color=GREY, zorder=1)
    axis.axhline(0.5, color=GREY, linestyle=":", zorder=1)
    axis.set(xscale="log", ylim=(0, 0.56), xlabel=r"$\sigma$, a singular value of $M^{-1/2}K$")
    axis.set_ylabel(r"$\sigma/(1+\sigma^2)$")


def gain_curve(numbers: NumbersByModel) -> Figure:
    """Where real batches lie under the curve that caps ‖Q‖: all singular values of M^(−1/2) K, a row per batch size."""
    with style():
        figure, axes = panels(numbers, 1, 3.2, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            _gain_curve(axis)
            for row, (edits, group) in enumerate(table(found, "spectra").groupby("edits"), 1):
                place = -0.07 * row
                axis.plot(group.sigma, [place] * len(group), "|", color="black", markersize=9, alpha=0.4)
                axis.text(0.012, place, f"{edits} edit{'s' if edits > 1 else ''}", va="center", fontsize=8)
            axis.set_ylim(-0.07 * (row + 1), 0.56)
            axis.set_yticks([0, 0.2, 0.4])
        return figure


def error_and_bounds(numbers: NumbersByModel) -> Figure:
    """Each bound over the measured error, by distance: at 1 the bound is attained; below 1 it would not hold."""
    markers = dict(zip(BOUNDS, "o^sD", strict=True))
    colours = dict(zip(BOUNDS, ("black", GREEN, DIRECT, DISTRIBUTED), strict=True))
    with style():
        figure, axes = panels(numbers, 1, 3.4, sharey=True)
        for axis, found in zip(axes[0], numbers.values(), strict=True):
            ratios = table(found, "tightness")
            for bound, shift in zip(BOUNDS, (-0.18, -0.06, 0.06, 0.18), strict=True):
                rows = ratios[ratios.bound == bound].sort_values("distance")
                axis.errorbar(
                    rows.distance + shift,
                    rows["median"],
                    [rows["median"] - rows.least, rows.most - rows["median"]],
                    color=colours[bound],
                    marker=markers[bound],
                    capsize=2,
                    elinewidth=1,
                    label=_BOUND_NAMES[bound],
                )
            axis.axhline(1, color="grey", linestyle=":")
            axis.set(yscale="log", xlabel="distribution distance L − l")
            axis.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
            axis.set_yticks([], minor=True)
            integers(axis, ratios.distance)
        axes[0, 0].set_ylabel("bound / measured error\n(median, range)")
        axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def error_terms(numbers: NumbersByModel) -> Figure:
    """‖E‖ over the direct update, and shares of its square: the theorem's two terms and how much of them cancels, then
    direction against amount."""
    parts = (
        {
            "deviation": (r"$\Vert DQ\Vert_F^2$", DIRECT),
            "division": (r"$\Vert(1-1/c)\,R^LQ\Vert_F^2$", DISTRIBUTED),
            "cross": ("cross term", GREY),
        },
        {"direction": ("direction", GREEN), "amount": ("amount", VERMILION)},
    )
    with style():
        figure, axes = panels(numbers, 3, 2.6, sharey="row")
        for column, found in enumerate(numbers.values()):
            band(axes[0, column], table(found, "relative"), "distance", None, color="black", marker="o")
            axes[0, column].set(ylim=(0, 1.05))
            integers(axes[0, column], table(found, "relative").distance)
            terms = table(found, "terms").sort_values("distance")
            for axis, group in zip(axes[1:, column], parts, strict=True):
                for number, (part, (label, colour)) in enumerate(group.items()):
                    rows, at = terms[terms.term == part], 0.27 * (number - (len(group) - 1) / 2)
                    bars(axis, rows.distance + at, rows, width=0.25, color=colour, label=label)
                axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
                integers(axis, terms.distance)
            axes[-1, column].set(xlabel="distribution distance L − l")
        axes[0, 0].set_ylabel(r"$\Vert E\Vert/\Vert R^{l*}Q\Vert$")
        for axis in axes[1:, -1]:
            axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        for axis in axes[1:, 0]:
            axis.set_ylabel(r"share of $\Vert E\Vert_F^2$")
        return figure
