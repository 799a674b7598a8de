"""Benchmarks as lists of records, by name or from a file: :func:`load_dataset`."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..io.assets import ASSETS, check_shipped
from ..io.checks import check_seed, check_whole
from ..io.formats import decode_json
from .benchmarks import parse_counterfact, parse_counterfact_flat, parse_zsre, reference_texts
from .download import cached, downloaded, read_entries
from .records import Record, RecordError, field

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A dataset that ships with the project: its file and how a record of it is read; of the pocket world or not."""

    path: Path
    parse: Callable[[Mapping[str, Any], int], Record]
    about: str
    pocket: bool = True


DATASETS = {
    "pocket-counterfact": Dataset(
        ASSETS / "datasets" / "pocket-counterfact.json",
        parse_counterfact,
        "counterfactual edits of the pocket world, in CounterFact's schema",
    ),
    "pocket-zsre": Dataset(
        ASSETS / "datasets" / "pocket-zsre.json",
        partial(parse_zsre, target="alt"),
        "questions about the pocket world, in zsRE's schema; edits install the alternative answer",
    ),
    "facts": Dataset(
        ASSETS / "datasets" / "facts.json",
        parse_counterfact,
        "counterfactual edits of facts about the real world, in CounterFact's schema",
        pocket=False,
    ),
}


#: Datasets that `blue download` fetches, each with the parser of its file.
BENCHMARKS = {"counterfact": parse_counterfact, "multi-counterfact": parse_counterfact, "zsre": parse_zsre}


SPLITS = ("tune", "report")


def of_pocket_world(name: str | Path) -> bool:
    """Whether a dataset is about the pocket world, whose other facts are known."""
    return str(name) in DATASETS and DATASETS[str(name)].pocket


def choosing_split(name: str) -> str:
    """The split that choices are made on: ``tune``, whose edits are disjoint from those reported, where the dataset has
    one."""
    return "tune" if name in DATASETS else "report"


def load_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    parse: Callable[[Mapping[str, Any], int], Record] | None = None,
) -> list[Record]:
    """Load a benchmark.

    Args:
        name: a shipped dataset (:data:`DATASETS`); a benchmark that `blue download` has fetched (:data:`BENCHMARKS`);
            or the path of a JSON file in the form of CounterFact (``counterfact.json``, ``multi_counterfact.json``),
            of zsRE (``zsre_mend_eval.json``), or in the flat form of knowledge-editing toolkits. The reference texts
            of ``counterfact`` and ``multi-counterfact`` come from ``attribute-snippets``, if that was fetched too;
            the records have none otherwise, and their consistency is not measured. Of a record of CounterFact only its
            ``case_id`` and its edit are needed: what prompts that are missing would measure is left out. The edits of
            ``zsre`` install the right answer, as in MEMIT's code.
        split: ``tune`` or ``report``. A file whose records have no ``split`` field is all ``report``.
        limit: how many records, the first of the split; None for all. The paper edits the first 2,000 in the file's
            order; its public code takes them from ``multi-counterfact`` and ``zsre``.
        seed: 0 keeps the benchmark's own order, as the paper does; any other shuffles the split with that seed
            before ``limit`` applies.
        parse: reads a record, in place of the parser that the dataset's form asks for.

    Raises:
        ValueError: for an unknown name or split, a limit below 1 or above what there is, a seed that is not allowed, a
            file that is no JSON in UTF-8 or in none of the forms, or an empty result; for a shipped dataset that is not
            what was shipped.
        FileNotFoundError: if the path does not exist, or the benchmark was not downloaded.
        RecordError: for a record that lacks a field, has the id of another one, or whose prompt, subject or target
            cannot be used.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if limit is not None:
        check_whole("limit", limit, 1)
    check_seed(seed)
    shipped, benchmark = DATASETS.get(str(name)), BENCHMARKS.get(str(name))
    path = shipped.path if shipped else downloaded(str(name)) if benchmark else Path(name)
    if not path.suffix:
        raise ValueError(
            f"no dataset is called {str(name)!r}; known: {', '.join([*DATASETS, *BENCHMARKS])}, or the "
            "path of a JSON file"
        )
    if shipped:
        check_shipped(path)
    entries = _read(path)
    parse = parse or (shipped.parse if shipped else benchmark or _parser_for(entries[0], path))
    chosen = []
    seen: dict[str, int] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise RecordError(f"record at position {position}: must be an object, not {type(entry).__name__}")
        own = entry.get("split", "report")
        if own not in SPLITS:
            raise RecordError(
                f"record at position {position}: field 'split' must be one of {', '.join(SPLITS)}, not {own!r}"
            )
        if split is None or own == split:
            record = parse(entry, position)
            if not isinstance(record, Record):
                raise RecordError(f"record at position {position}: parse gave a {type(record).__name__}, not a Record")
            first = seen.setdefault(str(record.case_id), position)
            if first != position:
                raise RecordError(
                    f"record {record.case_id}: field 'case_id' at position {position} must be another "
                    f"than at position {first}"
                )
            chosen.append((entry, record))
    if not chosen:
        raise ValueError(f"{path} has no records in split {split!r}")
    if limit is not None and limit > len(chosen):
        there = f"{name} has {len(chosen)} records" + (f" in split {split}" if split else "")
        raise ValueError(f"{there}; {limit} were asked for")
    if seed:
        random.Random(seed).shuffle(chosen)
    chosen = chosen[:limit]
    records = _with_references(chosen) if benchmark is parse_counterfact else [record for _, record in chosen]
    if all(record.kind == "counterfact" and not record.generation_prompts for record in records):
        _warn_without_generation()
    return records


def _read(path: Path) -> list[Any]:
    """A file's JSON list; a byte order mark in front is passed over.

    Raises:
        ValueError: for any other content; of an object that has a field twice, no reader would take both.
    """
    try:
        entries = decode_json(path.read_text(encoding="utf-8-sig"), _field_twice)
    except RecordError as error:
        raise RecordError(f"{path}, {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be in UTF-8: {error}") from error
    except ValueError as error:
        lines = "; one list is read, not JSON Lines" if str(error).startswith("Extra data") else ""
        raise ValueError(f"{path} is not JSON: {error}{lines}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} must hold a JSON list of records")
    return entries


def _field_twice(found: dict[str, Any], name: str) -> RecordError:
    return RecordError(f"record {found.get('case_id', 'without an id')}: field {name!r} is there twice")


def _with_references(chosen: Sequence[tuple[Mapping[str, Any], Record]]) -> list[Record]:
    """Records of CounterFact with the texts about subjects that have their new object by nature."""
    if not cached("attribute-snippets").exists():
        _warn_without_references()
        return [record for _, record in chosen]
    pairs = [
        (record.relation, field(entry, "requested_rewrite.target_new.id", record.case_id, default=None))
        for entry, record in chosen
    ]
    texts = reference_texts(read_entries(downloaded("attribute-snippets")), set(pairs))
    return [replace(record, reference_texts=texts[pair]) for (_, record), pair in zip(chosen, pairs, strict=True)]


@cache
def _warn_without_references() -> None:
    log.warning(
        "attribute-snippets is not here: CounterFact's records have no reference texts, and their consistency "
        "is not measured; `blue download attribute-snippets` fetches it"
    )


@cache
def _warn_without_generation() -> None:
    log.warning("no record has generation_prompts: fluency and consistency are not measured")


def _parser_for(entry: Any, path: Path) -> Callable[[Mapping[str, Any], int], Record]:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    if "requested_rewrite" in keys:
        return parse_counterfact
    if "src" in keys:
        return parse_zsre
    if "prompt" in keys:
        return parse_counterfact_flat
    raise ValueError(
        f"{path} is in no known form: its first record has neither 'requested_rewrite' (CounterFact), "
        "'src' (zsRE) nor 'prompt' (flat CounterFact)"
    )
