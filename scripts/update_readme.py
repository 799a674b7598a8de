"""Put the committed grid's main tables and verdicts into README.md, between their marks."""

from pathlib import Path

from bluelib.files import atomic_file
from bluelib.grid import Grid
from bluelib.reports.report import fill, readme_parts

README = Path(__file__).parent.parent / "README.md"

if __name__ == "__main__":
    parts = readme_parts(Grid.load(README.parent / "results" / "pocket" / "grid.json"))
    text = fill(README.read_text(encoding="utf-8"), parts)
    with atomic_file(README) as temporary:
        temporary.write_text(text, encoding="utf-8")
