"""Benchmarks as lists of records, by name or from a file: :func:`load_dataset`."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..io.assets import ASSETS, check_shipped
from ..io.checks import check_seed, check_whole, suggestion
from ..io.plugins import load_plugins
from ..models.known import scale_of
from . import own
from .benchmarks import parse_counterfact, parse_zsre, reference_texts
from .download import cached, downloaded, expected_hash, stream_entries
from .records import Record, RecordError, field
from .ripples import parse_mquake, parse_ripple_edits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A dataset that has a name: its file, how a record of it is read, and whether it is about the pocket world."""

    path: Path
    parse: Callable[[Mapping[str, Any], int], Record]
    about: str
    pocket: bool = True


#: The datasets that ship with the project, and those that installed packages add (:mod:`bluelib.io.plugins`).
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
    "pocket-ripple": Dataset(
        ASSETS / "datasets" / "pocket-ripple.json",
        parse_counterfact,
        "edits of the pocket world with what follows from them, in RippleEdits' groups",
    ),
    "facts-ripple": Dataset(
        ASSETS / "datasets" / "facts-ripple.json",
        parse_counterfact,
        "edits of real facts with what follows from them, in RippleEdits' groups",
        pocket=False,
    ),
}


#: Reads a raw record, given with its position in the file, as one edit or as several that belong together.
Parser = Callable[[Mapping[str, Any], int], Record | list[Record]]

#: Datasets that `blue download` fetches, each with the parser of its file.
BENCHMARKS: dict[str, Parser] = {
    "counterfact": parse_counterfact,
    "multi-counterfact": parse_counterfact,
    "zsre": parse_zsre,
    "ripple-edits": parse_ripple_edits,
    "ripple-edits-random": parse_ripple_edits,
    "ripple-edits-recent": parse_ripple_edits,
    "mquake": parse_mquake,
}


MQUAKE_ERRORS = (
    "MQuAKE-Remastered (ICLR 2025) found up to 33 % or 76 % of MQuAKE's questions and answers to be wrong: report this "
    "with a score"
)

SPLITS = ("tune", "report")


class SplitError(ValueError):
    """A dataset has no records in the split that was asked for."""


def of_pocket_world(name: str | Path) -> bool:
    """Whether a dataset is about the pocket world, whose other facts are known."""
    return str(name) in DATASETS and DATASETS[str(name)].pocket


def default_dataset(model: str) -> str:
    """The dataset that choices about a model are made on, unless another is given."""
    return "pocket-counterfact" if scale_of(model) == "pocket" else "facts"


def choosing_split(name: str | Path) -> str:
    """The split on which choices are made: ``tune``, if the dataset has it, whose edits are disjoint from those
    reported; else ``report``, which is then the whole dataset."""
    try:
        load_dataset(name, split="tune", up_to=1)
    except SplitError:
        return "report"
    return "tune"


def records_to_choose_on(
    name: str | Path, *, split: str | None = None, edits: int | None = None, up_to: int | None = None
) -> tuple[list[Record], dict[str, str]]:
    """Records to make choices on, and what a result should say about them: their ``split``, and, if the dataset has no
    split for choices, a remark as ``choosing_split``.

    Args:
        name: see :func:`load_dataset`.
        split: the split, if not that of :func:`choosing_split`.
        edits: how many; by default all, but not more than ``up_to``.

    Raises:
        ValueError, OSError: as :func:`load_dataset`.
    """
    chosen = split or choosing_split(name)
    records = load_dataset(name, split=chosen, limit=edits, up_to=None if edits else up_to)
    about = {"split": chosen}
    if split is None and chosen != "tune":
        about["choosing_split"] = f"{Path(name).name} has no split tune: all of it was chosen from"
        log.warning("%s; results reported on the same records flatter what is chosen here", about["choosing_split"])
    return records, about


def load_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    up_to: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    parse: Parser | None = None,
) -> list[Record]:
    """Load a benchmark, or your own facts.

    Args:
        name: a shipped dataset (:data:`DATASETS`); a benchmark that `blue download` has fetched (:data:`BENCHMARKS`);
            or the path of a file, JSON, JSON Lines or CSV (:func:`.own.read_entries`), in the form of CounterFact
            (``counterfact.json``, ``multi_counterfact.json``), of zsRE (``zsre_mend_eval.json``), of RippleEdits, of
            MQuAKE, or in the flat form (:func:`.own.parse_flat`), which knowledge-editing toolkits and KnowEdit use. A
            case of MQuAKE becomes as many records as it has edits. The reference texts of ``counterfact`` and
            ``multi-counterfact`` come from ``attribute-snippets``, if that was fetched too; otherwise the records have
            none, and their consistency is not measured. A record of CounterFact needs only its edit: if other prompts
            are missing, what they measure is left out. The edits of ``zsre`` install the right answer, as in MEMIT's
            code.
        split: ``tune`` or ``report``. A file whose records have no ``split`` field is all ``report``.
        limit: how many records, the first of the split; None for all. Those after them are not looked at. The paper
            edits the first 2,000 in the file's order; its public code takes them from ``multi-counterfact`` and
            ``zsre``.
        up_to: the same, but all records if there are fewer.
        seed: 0 keeps the benchmark's own order, as the paper does; any other shuffles the split with that seed
            before ``limit`` applies.
        skip_bad: leave out records that cannot be used, log which and why, and take the next ones in their place.
        parse: reads a record, in place of the parser for the dataset's form.

    Raises:
        ValueError: for an unknown name or split, a limit below 1 or above the number of records, a seed that is not
            allowed, or an empty result; if the file is not JSON, JSON Lines or CSV in UTF-8, or is in none of the
            forms; if a shipped dataset has changed.
        FileNotFoundError: if the path does not exist, or the benchmark was not downloaded.
        RecordError: if records lack a field, have the id of another one, or have a prompt, subject or target that
            cannot be used; one error for all of them.
    """
    if limit is not None and up_to is not None:
        raise ValueError("limit and up_to both set the number of records; give only one of them")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    for argument, value in (("limit", limit), ("up_to", up_to)):
        if value is not None:
            check_whole(argument, value, 1)
    check_seed(seed)
    load_plugins()
    shipped, benchmark = DATASETS.get(str(name)), BENCHMARKS.get(str(name))
    path = shipped.path if shipped else downloaded(str(name)) if benchmark else Path(name)
    if not path.suffix and not path.is_file():
        known = [*DATASETS, *BENCHMARKS]
        raise ValueError(
            f"no dataset is called {str(name)!r}"
            + (suggestion(str(name), known) or f"; known: {', '.join(known)}, or the path of a file")
        )
    if shipped:
        check_shipped(path)
    entries = own.read_entries(path)
    parse = parse or (shipped.parse if shipped else benchmark or _parser_for(entries, path))
    if parse is own.parse_flat and (ignored := own.unread(entries)):
        log.warning("%s: fields that are not read: %s", path, ", ".join(ignored))
    if parse is parse_zsre and any(isinstance(entry, Mapping) and entry.get("portability") for entry in entries):
        log.warning("%s: portability is not read: it follows from `alt`, and these edits make `answers` true", path)
    positions = [i for i, entry in enumerate(entries) if split is None or _split_of(entry) in (split, None)]
    if not positions:
        raise SplitError(f"{path} has no records in split {split!r}")
    if seed:
        random.Random(seed).shuffle(positions)
    chosen, bad = _parsed(entries, positions, parse, most=limit or up_to, skip_bad=skip_bad)
    if bad and not skip_bad:
        raise RecordError(
            reasons(bad, f"{len(bad)} records of {path} cannot be used; skip_bad (--skip-bad-records) leaves them out")
        )
    if bad:
        log.warning(reasons(bad, f"{len(bad)} of {len(chosen) + len(bad)} records of {path} are left out", always=True))
    if not chosen or (limit is not None and limit > len(chosen)):
        there = f"{name} has {len(chosen)} records" + (" that can be used" if bad else "")
        raise ValueError(f"{there}{f' in split {split}' if split else ''}; {limit or 'some'} were asked for")
    records = _with_references(chosen) if benchmark is parse_counterfact else [record for _, record in chosen]
    if parse is parse_mquake:
        _warn(MQUAKE_ERRORS)
    _tell_unmeasured(records)
    return records


def load_facts(
    path: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> list[Record]:
    """Load your own facts from a file: :func:`load_dataset` of a path, whatever the file is called.

    Args:
        path: JSON, JSON Lines or CSV, see :mod:`bluelib.data.own`; a record needs ``subject``, ``prompt`` and
            ``target_new``.
        split, limit, seed, skip_bad: as for :func:`load_dataset`.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: as :func:`load_dataset`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is not a file; facts are read from JSON, JSON Lines (.jsonl) or a table (.csv)"
        )
    return load_dataset(Path(path).absolute(), split=split, limit=limit, seed=seed, skip_bad=skip_bad)


def _split_of(entry: Any) -> str | None:
    """The split that a raw record says it is in; None if it names no known split, so that it can be refused."""
    if not isinstance(entry, Mapping):
        return None
    own_split = "report" if entry.get("split") is None else entry["split"]
    return own_split if own_split in SPLITS else None


def _parsed(
    entries: Sequence[Any],
    positions: Sequence[int],
    parse: Parser,
    *,
    most: int | None,
    skip_bad: bool,
) -> tuple[list[tuple[Mapping[str, Any], Record]], list[RecordError]]:
    """The first ``most`` of these entries with their records, and the errors of those that have none. With
    ``skip_bad``, the latter do not count towards ``most``."""
    chosen: list[tuple[Mapping[str, Any], Record]] = []
    bad: list[RecordError] = []
    seen: dict[str, int] = {}
    for position in positions:
        if most is not None and len(chosen) + (0 if skip_bad else len(bad)) == most:
            break
        try:
            records = _records(entries[position], position, parse)
            for record in records:
                first = seen.setdefault(str(record.case_id), position)
                if first != position:
                    raise RecordError(
                        f"record {record.case_id}: field 'case_id' at position {position} must differ "
                        f"from that at position {first}"
                    )
            room = None if most is None else most - len(chosen) - (0 if skip_bad else len(bad))
            chosen += [(entries[position], record) for record in records[:room]]
        except RecordError as error:
            bad.append(error)
    return chosen, bad


def reference_documents(name: str | Path) -> tuple[Iterable[str], str | None]:
    """All reference texts of a dataset, of both splits: inverse document frequencies are counted in them.

    Args:
        name: as for :func:`load_dataset`. For ``counterfact`` and ``multi-counterfact`` all texts of
            ``attribute-snippets``, as in ROME's code, if that was fetched. Of another dataset each text counts once.

    Returns:
        The texts; and for the snippets, which are many, their file's SHA-256, else None.
    """
    if BENCHMARKS.get(str(name)) is parse_counterfact:
        if not cached("attribute-snippets").exists():
            return (), None
        snippets = stream_entries(downloaded("attribute-snippets"))
        texts = (sample["text"] for entry in snippets for sample in entry["samples"] if sample["text"].strip())
        return texts, expected_hash("attribute-snippets")
    found: dict[str, None] = {}
    for record in load_dataset(name, skip_bad=True):
        found.update(dict.fromkeys(record.reference_texts))
    return found, None


def _records(entry: Any, position: int, parse: Parser) -> list[Record]:
    if isinstance(entry, RecordError):
        raise entry
    if not isinstance(entry, Mapping):
        raise RecordError(f"record at position {position}: must be an object, not {type(entry).__name__}")
    if _split_of(entry) is None:
        raise RecordError(
            f"record at position {position}: field 'split' must be one of {', '.join(SPLITS)}, not {entry['split']!r}"
        )
    try:
        found = parse(entry, position)
    except RecordError:
        raise
    except Exception as error:  # your own parser may raise anything
        raise RecordError(f"record at position {position}: its parser failed: {error!r}") from error
    records = found if isinstance(found, list) else [found]
    for record in records:
        if not isinstance(record, Record):
            raise RecordError(f"record at position {position}: parse gave a {type(record).__name__}, not a Record")
    return records


#: How many records a message explains, if many cannot be used.
NAMED = 10


def reasons(bad: Sequence[ValueError], heading: str, *, always: bool = False) -> str:
    """A heading and why records cannot be used, a line each. One record alone has it only with ``always``."""
    if len(bad) == 1 and not always:
        return f"{bad[0]}; skip_bad (--skip-bad-records) leaves it out"
    others = ", ".join(str(error).partition(":")[0].removeprefix("record ") for error in bad[NAMED:])
    more = [f"and {len(bad) - NAMED} more, records {others}"] if others else []
    return "\n  ".join([f"{heading}:", *map(str, bad[:NAMED]), *more])


def _with_references(chosen: Sequence[tuple[Mapping[str, Any], Record]]) -> list[Record]:
    """Records of CounterFact with their reference texts: those about subjects that have the new object by nature."""
    if not cached("attribute-snippets").exists():
        _warn_without_references()
        return [record for _, record in chosen]
    pairs = [
        (record.relation, field(entry, "requested_rewrite.target_new.id", record.case_id, default=None))
        for entry, record in chosen
    ]
    texts = reference_texts(stream_entries(downloaded("attribute-snippets")), set(pairs))
    return [replace(record, reference_texts=texts[pair]) for (_, record), pair in zip(chosen, pairs, strict=True)]


@cache
def _warn_without_references() -> None:
    log.warning(
        "attribute-snippets is not downloaded: CounterFact's records have no reference texts, and their consistency "
        "is not measured; `blue download attribute-snippets` fetches it"
    )


def _tell_unmeasured(records: Sequence[Record]) -> None:
    """Log which of CounterFact's metrics cannot be measured, and what they lack."""
    if any(record.kind != "counterfact" for record in records):
        return
    true = [record.target_true for record in records]
    _tell_missing(true, "record", "target_true", "efficacy and generalization, which compare with it, are not measured")
    answers = [probe.answer for record in records for probe in record.locality]
    _tell_missing(answers, "neighbour", "answer", "specificity, which asks whether it is kept, is not measured")


def _tell_missing(values: Sequence[str | None], noun: str, field: str, then: str) -> None:
    if missing := values.count(None):
        where = "" if missing == len(values) else " on these"
        _warn(f"{missing} of {len(values)} {noun}s have no {field}: {then}{where}")


@cache
def _warn(message: str) -> None:
    """Log a message once in a process, because a file is often read several times."""
    log.warning(message)


def _parser_for(entries: Sequence[Any], path: Path) -> Parser:
    """The parser for the form of a file, which its first entry that is an object shows."""
    first = next((entry for entry in entries if isinstance(entry, Mapping)), None)
    if first is None:
        raise next(
            (entry for entry in entries if isinstance(entry, RecordError)),
            RecordError(f"{path}: record at position 0 must be an object, not {type(entries[0]).__name__}"),
        )
    keys = set(first)
    if "requested_rewrite" in keys:
        return parse_mquake if isinstance(first["requested_rewrite"], list) else parse_counterfact
    if isinstance(first.get("edit"), Mapping):
        return parse_ripple_edits
    if keys & {"src", "loc_ans"}:
        return parse_zsre
    if keys & {"prompt", "subject", "target_new"}:
        return own.parse_flat
    raise ValueError(
        f"{path} is in no known form: its first record has neither 'requested_rewrite' (CounterFact), "
        "'src' (zsRE), 'edit' (RippleEdits) nor 'prompt', 'subject' and 'target_new'"
    )
