"""Draw docs/architecture.svg from the imports of the package: a box for each subpackage, and arrows to those that it
imports from the level below. (A subpackage may import all subpackages on levels below its own.)"""

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


def subpackages() -> dict[str, set[str]]:
    """By subpackage, the subpackages that it imports, also inside functions."""
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


def levels(imports: dict[str, set[str]]) -> dict[str, int]:
    """The level of each subpackage: one more than the highest level that it imports.

    Raises:
        ValueError: if subpackages import each other in a circle.
    """
    left, found = dict(imports), dict[str, int]()
    while left:
        free = [name for name, to in left.items() if to <= found.keys()]
        if not free:
            raise ValueError(f"{', '.join(sorted(left))} import each other in a circle")
        for name in free:
            found[name] = 1 + max((found[other] for other in left.pop(name)), default=0)
    return found


def draw(path: Path) -> None:
    """Draw the picture into an SVG file."""
    imports = subpackages()
    level = levels(imports)
    rows = {n: sorted(name for name in level if level[name] == n) for n in set(level.values())}
    places = {name: (3.4 * (i - (len(row) - 1) / 2), n) for n, row in rows.items() for i, name in enumerate(row)}
    with plt.rc_context({"svg.hashsalt": "bluelib", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure, axis = plt.subplots(figsize=(7, 7.6), layout="constrained")
        for name, to in sorted(imports.items()):
            for other in sorted(to):
                if level[name] - level[other] == 1:
                    arrow = {"arrowstyle": "-|>", "color": "#0072B2", "linewidth": 1.4, "shrinkA": 24, "shrinkB": 28}
                    axis.annotate("", places[other], places[name], arrowprops=arrow)
        for name, (x, y) in places.items():
            text = f"$\\bf{{{name}}}$\n{ABOUT[name]}"
            box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "#0072B2"}
            axis.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)
        axis.set(xlim=(-3.9, 3.9), ylim=(0.5, max(rows) + 0.5))
        axis.set_axis_off()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    draw(PACKAGE.parent / "docs" / "architecture.svg")
