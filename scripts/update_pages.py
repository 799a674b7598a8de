"""Put the committed grids' main tables and verdicts into README.md and docs/results.md, between their marks."""

from bluelib.io.writing import atomic_file
from bluelib.reports.report import fill, shown

if __name__ == "__main__":
    for page, parts in shown().items():
        text = fill(page.read_text(encoding="utf-8"), parts)
        with atomic_file(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
