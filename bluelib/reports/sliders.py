"""A figure with sliders: when one of them moves, the figure is drawn again."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file; closes the figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    return content.getvalue()


class Sliders(widgets.VBox):
    """Sliders above the figure that they move.

    The figure is an image, not captured output: the messages of captured output can leave a notebook that runs
    without a browser waiting for ever.

    Args:
        draw: makes the figure from the sliders' values, passed by name.
        sliders: each slider, under the name of its argument of ``draw``.
    """

    def __init__(self, draw: Callable[..., Figure], **sliders: Any):
        self.draw, self.sliders = draw, sliders
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        for slider in sliders.values():
            slider.observe(self._show, names="value")
        self._show()
        super().__init__([*sliders.values(), self.picture])

    def __repr__(self) -> str:
        """The text that is shown where a notebook has no running kernel."""
        return "Sliders: open this notebook in JupyterLab to move them."

    def _show(self, change: object = None) -> None:
        self.picture.value = png(self.draw(**{name: slider.value for name, slider in self.sliders.items()}))
