"""Commands about data: which datasets there are, and the download of benchmarks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from .common import Answer, Option, command, written


@command(
    Option("--write", type=Path, metavar="DIR", help="generate their files anew into DIR"),
    Option("--check", metavar="MODEL", help="note which of the facts MODEL knows, before they are written"),
    example="blue datasets",
)
def datasets(arguments: Namespace) -> Answer:
    """List the datasets that ship with the project, and those to download."""
    from ..data.datasets import DATASETS
    from ..data.download import FILES, cached, size_of

    made: list[Path] = []
    if arguments.check:
        from ..data.facts import write_checked
        from ..models.load import load_model

        made.append(write_checked(load_model(arguments.check)))
    if arguments.write:
        from ..data.facts import write_facts
        from ..pocket.datasets import write_datasets

        made += [*write_datasets(arguments.write), *write_facts(arguments.write)]
    if made:
        return written(made)
    lines = [f"{name:20} {dataset.about}" for name, dataset in DATASETS.items()]
    for name, file in FILES.items():
        where = f"in {cached(name)}" if cached(name).exists() else f"to download, {size_of(file)}"
        lines.append(f"{name:20} {file.about}; {where}")
    lines.append("or the path of a JSON file in the form of CounterFact, zsRE or flat CounterFact")
    files = {name: str(cached(name)) if cached(name).exists() else None for name in FILES}
    return Answer({"shipped": list(DATASETS), "downloaded": files}, "\n".join(lines))


@command(
    Option("name", nargs="+", help="what to fetch; see: blue datasets"),
    Option("--url", help="the folder of a mirror, if not the pages of ROME and MEMIT, nor $BLUELIB_DATA_URL"),
    Option("--sha256", metavar="HEX", help="accept a file with this hash, if not the one that is known"),
    example="blue download multi-counterfact zsre",
)
def download(arguments: Namespace) -> Answer:
    """Fetch benchmarks into the cache; goes on where it was interrupted, checks what comes, and checks again what is
    there."""
    from ..data.download import FILES, download, expected_hash

    if arguments.sha256 and len(arguments.name) > 1:
        raise ValueError(f"--sha256 is the hash of one file, not of {', '.join(arguments.name)}")
    files, lines = [], []
    for name in arguments.name:
        path = download(name, url=arguments.url, sha256=arguments.sha256)
        found = expected_hash(name)
        known = found == FILES[name].sha256
        files.append({"name": name, "path": str(path), "sha256": found, "known": known})
        lines.append(f"{path}: SHA-256 {found}, {'as known' if known else 'as given, not as known'}")
    return Answer({"files": files}, "\n".join(lines))
