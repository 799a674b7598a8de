"""Write the results of the committed grids into README.md, docs/ and notebooks/, between their marks, and draw the
pictures of all models."""

from bluelib.io.paths import project_path
from bluelib.io.writing import atomic_file
from bluelib.reports.figures.theory import toy, toy_example
from bluelib.reports.plots import keep
from bluelib.reports.report import draw_overlay, filled, shown

if __name__ == "__main__":
    for page, parts in shown().items():
        text = filled(page, parts)
        with atomic_file(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    draw_overlay(project_path("figures"))
    keep(toy(*toy_example(65), 0.2, 1.0), project_path("figures") / "toy")
