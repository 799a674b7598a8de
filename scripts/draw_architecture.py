"""Draw docs/architecture.svg from the imports of the package: a box for each wing, an arrow to what it imports on the
floor below. (A wing may import every wing on a floor below its own.)"""

from __future__ import annotations

import ast
from pathlib import Path

import matplotlib.pyplot as plt

PACKAGE = Path(__file__).resolve().parent.parent / "bluelib"
ABOUT = {
    "cli": "the command line",
    "reports": "tables, plots, figures, claims, site, demo",
    "runs": "a cell, notebooks, a grid, the workflow",
    "studies": "one module a study, and their table",
    "editing": "targets, residuals, solvers,\nconstraints, editors, a sequence of edits",
    "metrics": "what an edit did,\nwith its interval",
    "data": "records, benchmarks, corpora, provenance",
    "pocket": "the pocket world and its models",
    "models": "a model, its parts, what it answers",
    "io": "files, locks, hashes, checks, time",
}


def wings() -> dict[str, set[str]]:
    """By wing, the wings that it imports, also inside functions."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        *folders, _ = file.relative_to(PACKAGE).parts
        if not folders:
            continue
        to = found.setdefault(folders[0], set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level > len(folders):
                names = [node.module] if node.module else [name.name for name in node.names]
                to.update(name.split(".")[0] for name in names if (PACKAGE / name.split(".")[0]).is_dir())
    return found


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """By wing, one more than the highest of those that it imports.

    Raises:
        ValueError: for wings that import each other in a circle.
    """
    left, found = dict(imports), dict[str, int]()
    while left:
        free = [wing for wing, to in left.items() if to <= found.keys()]
        if not free:
            raise ValueError(f"{', '.join(sorted(left))} import each other in a circle")
        for wing in free:
            found[wing] = 1 + max((found[other] for other in left.pop(wing)), default=0)
    return found


def draw(path: Path) -> None:
    """Draw the picture into an SVG file."""
    imports = wings()
    floor = floors(imports)
    levels = {n: sorted(wing for wing in floor if floor[wing] == n) for n in set(floor.values())}
    places = {
        wing: (3.4 * (i - (len(level) - 1) / 2), n) for n, level in levels.items() for i, wing in enumerate(level)
    }
    with plt.rc_context({"svg.hashsalt": "bluelib", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure, axis = plt.subplots(figsize=(7, 7.6), layout="constrained")
        for wing, to in sorted(imports.items()):
            for other in sorted(to):
                if floor[wing] - floor[other] == 1:
                    arrow = {"arrowstyle": "-|>", "color": "#0072B2", "linewidth": 1.4, "shrinkA": 24, "shrinkB": 28}
                    axis.annotate("", places[other], places[wing], arrowprops=arrow)
        for wing, (x, y) in places.items():
            text = f"$\\bf{{{wing}}}$\n{ABOUT[wing]}"
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "#0072B2"}
            axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)
        axis.set(xlim=(-3.9, 3.9), ylim=(0.5, max(levels) + 0.5))
        axis.set_axis_off()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw(PACKAGE.parent / "docs" / "architecture.svg")
