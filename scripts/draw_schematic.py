"""Draw docs/schematic.png and .svg: where MEMIT, BLUE and FE find their targets, and what each layer is given."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from bluelib.io.palette import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE
from bluelib.reports.plots import save, style

LAYERS = ("$f$", "$f{+}1$", r"$\cdots$", "$L{-}1$", "$L$")
HEIGHT = 0.62


def _stream(axis: Axes, title: str, below: str, updated: tuple[int, ...], colour: str) -> None:
    """The residual stream with its critical layers; those that are updated in colour."""
    axis.set(xlim=(-2.6, 2.9), ylim=(-1.75, 5.6), aspect="equal")
    axis.axis("off")
    axis.add_patch(FancyArrowPatch((0, -0.9), (0, 5.3), arrowstyle="-|>", mutation_scale=14, color=GREY, linewidth=2))
    for place, name in enumerate(LAYERS):
        edge, face = (colour, "white") if place in updated else (LIGHT_GREY, "#F4F4F4")
        axis.add_patch(
            FancyBboxPatch(
                (-0.62, place - HEIGHT / 2),
                1.24,
                HEIGHT,
                boxstyle="round,pad=0.02",
                edgecolor=edge,
                facecolor=face,
                linewidth=2,
                zorder=3,
            )
        )
        text = "black" if place in updated else GREY
        axis.text(0, place, name, ha="center", va="center", color=text, fontsize=11, zorder=4)
    axis.set_title(title, fontsize=14, color=colour, fontweight="bold")
    axis.text(0.1, -1.0, below, ha="center", va="top", fontsize=9.5)


def _target(axis: Axes, place: int, colour: str, name: str) -> tuple[float, float]:
    """A star where a target is optimised; returns its point."""
    point = (1.75, place)
    axis.plot(*point, "*", color=colour, markersize=17, zorder=5)
    axis.text(point[0] + 0.3, place, name, va="center", fontsize=11)
    return point


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **how: object) -> None:
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, linewidth=1.6, zorder=4, **how)
    )


def schematic() -> Figure:
    """Three streams side by side."""
    with style():
        figure, (memit, blue, fe) = plt.subplots(1, 3, figsize=(10.5, 4.9), layout="constrained")
        _stream(
            memit,
            "MEMIT",
            "one target, at the last layer;\nwhat is missing there is divided\namong all critical layers",
            (0, 1, 2, 3, 4),
            ORANGE,
        )
        star = _target(memit, 4, ORANGE, r"$\delta^{L}$")
        for place, share in enumerate((" / 5", " / 4", " / 3", " / 2", "")):
            bend = {"connectionstyle": f"arc3,rad={-0.10 * (4 - place)}"}
            _arrow(memit, (star[0] - 0.1, star[1] - 0.12 * (place < 4)), (0.68, place), ORANGE, **bend)
            memit.text(-0.75, place, rf"$(z-h^L)${share}", ha="right", va="center", fontsize=10)
        _stream(
            blue,
            "BLUE",
            "a target at each boundary layer,\nthe second after the first update;\nnothing is divided",
            (0, 4),
            BLUE,
        )
        for place, name in ((0, "$f$"), (4, "$L$")):
            star = _target(blue, place, BLUE, rf"$\delta^{{{name.strip('$')}}}$")
            _arrow(blue, (star[0] - 0.15, place), (0.68, place), BLUE)
            blue.text(-0.75, place, rf"$R^{{{name.strip('$')}*}}$", ha="right", va="center", fontsize=11)
        _stream(
            fe,
            "FE",
            "one target, at the first layer;\na forward pass replays it, and gives\nevery later layer its own",
            (0, 1, 2, 3, 4),
            GREEN,
        )
        star = _target(fe, 0, GREEN, r"$\delta^{f}$")
        _arrow(fe, (star[0] - 0.15, 0), (0.68, 0), GREEN)
        for place in range(1, 5):
            _arrow(fe, (1.75, place - 1 + 0.25), (1.75, place - 0.12), GREEN, linestyle=(0, (2, 1.5)))
            fe.plot(1.75, place, "o", color=GREEN, markersize=6, zorder=5)
            _arrow(fe, (1.6, place), (0.68, place), GREEN)
            index = LAYERS[place].strip("$") if place != 2 else "l"
            fe.text(1.98, place, rf"$z_{{{index}}}$", va="center", fontsize=11)
        for place in range(5):
            index = LAYERS[place].strip("$") if place != 2 else "l"
            fe.text(-0.75, place, rf"$z_{{{index}}}-h_{{{index}}}$", ha="right", va="center", fontsize=10)
        return figure


if __name__ == "__main__":
    for suffix in (".png", ".svg"):
        path = save(schematic(), Path(__file__).parents[1] / "docs" / "schematic", suffix)
        print(path)
