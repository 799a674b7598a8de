"""A figure with sliders, without a browser."""

from __future__ import annotations

import ipywidgets as widgets
import matplotlib.pyplot as plt

from bluelib.reports.figures.theory import toy, toy_example
from bluelib.reports.sliders import Sliders


def test_a_slider_draws_the_figure_again():
    asked, opened = [], plt.get_fignums()

    def draw(angle, share):
        asked.append((angle, share))
        return toy(*toy_example(angle), share, 1.0)

    shown = Sliders(draw, angle=widgets.IntSlider(65, 0, 180), share=widgets.FloatSlider(0.2, min=0.1, max=1))
    first = bytes(shown.picture.value)
    assert first.startswith(b"\x89PNG") and asked == [(65, 0.2)]
    shown.sliders["angle"].value = 0
    assert asked[-1] == (0, 0.2) and bytes(shown.picture.value) != first
    shown.sliders["angle"].value = 65
    assert bytes(shown.picture.value) == first
    assert plt.get_fignums() == opened, "no figure is left open"
    assert "JupyterLab" in repr(shown)
