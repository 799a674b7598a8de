"""Put the committed grid's main tables and verdicts into README.md and docs/results.md, between their marks."""

from bluelib.io.paths import project_path
from bluelib.io.writing import atomic_file
from bluelib.reports.report import fill, shown
from bluelib.runs.grid import Grid

if __name__ == "__main__":
    for page, parts in shown(Grid.load(project_path("results", "pocket", "grid.json"))).items():
        text = fill(page.read_text(encoding="utf-8"), parts)
        with atomic_file(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
