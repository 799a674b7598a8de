"""A figure with sliders: they move, and it is drawn again."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's content; the figure is closed."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    return content.getvalue()


class Sliders(widgets.VBox):
    """Sliders above the figure that they move.

    The figure is an image and no captured output, whose messages can leave a notebook that runs without a browser
    waiting for ever.

    Args:
        draw: makes the figure from the sliders' values, by name.
        sliders: by the name of the argument of ``draw``.
    """

    def __init__(self, draw: Callable[..., Figure], **sliders: Any):
        self.draw, self.sliders = draw, sliders
        self.picture = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        for slider in sliders.values():
            slider.observe(self._show, names="value")
        self._show()
        super().__init__([*sliders.values(), self.picture])

    def __repr__(self) -> str:
        """What is shown where there is no kernel behind a notebook."""
        return "Sliders: open this notebook in JupyterLab to move them."

    def _show(self, change: object = None) -> None:
        self.picture.value = png(self.draw(**{name: slider.value for name, slider in self.sliders.items()}))
