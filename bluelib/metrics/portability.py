"""What follows from an edit, and what has to stay although it is about the same subject: RippleEdits' metric (Cohen et
al., TACL 2024).

A consequence counts where its conditions were answered right *before* the edit, and, in the published definition, where
the edit itself is answered right after it. So three numbers belong together: the share of consequences whose conditions
held (``executed``), whether the edit succeeded (``edited``), and the share of executed ones that passed. ``all_…`` is
the same share without asking whether the edit succeeded: of every requested edit.

A query is answered right where every answer is named in what the model says, greedily, up to the end of the line: by a
name of more than one character, or by a number, as words of their own. Four faults of the published code are not
repeated: it looks for answers in the prompt too, takes a limit in characters for one in tokens, draws an unseeded
sample, and counts ``Forgetfulness`` as ``Compositionality_II``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from ..data import Record
from ..data.records import Consequence, Query
from ..models.generation import answer
from ..models.model import Model
from .generated import frame, named, normalise

TOKENS = 30


def ask(model: Model, queries: Iterable[Query], *, context: str = "bare", tokens: int = TOKENS) -> dict[Query, bool]:
    """Which queries a model answers right now, asked in one of :data:`.generated.CONTEXTS`."""
    before, after = frame(model, context)
    distinct = list(dict.fromkeys(queries))
    prompts = list(dict.fromkeys(query.prompt for query in distinct))
    texts = answer(model, [before + prompt + after for prompt in prompts], tokens=tokens, stops="\n")
    said = dict(zip(prompts, texts, strict=True))
    return {query: answered(said[query.prompt], query.answers) for query in distinct}


def answered(text: str, answers: Sequence[Sequence[str]]) -> bool:
    """Whether a text names every answer, each by one of its names that can be told from a chance: of more than one
    character, or a number. No answers are not named."""
    words = f" {normalise(text)} "
    return bool(answers) and all(
        any(f" {normalise(name)} " in words for name in names if len(name) > 1 or name.isdigit()) for names in answers
    )


def conditions(
    model: Model, records: Sequence[Record], *, context: str = "bare", tokens: int = TOKENS
) -> dict[Query, bool]:
    """Which conditions of the records' consequences hold; of the model before it is edited."""
    return ask(model, (q for one in _all(records) for q in one.conditions), context=context, tokens=tokens)


def portability(
    model: Model,
    records: Sequence[Record],
    held: Mapping[Query, bool],
    *,
    context: str = "bare",
    tokens: int = TOKENS,
) -> list[dict[str, float | int | str]]:
    """Per record, in per cent: ``edited``; ``executed``, of all its consequences; and for each group of executed ones
    the share that passed, under the group's name where the edit succeeded, and under ``all_…`` in any case. The context
    stands in front of a name where it is not the bare prompt. A record without consequences has none of them.

    Args:
        model: the edited model.
        records: the edits.
        held: what :func:`conditions` said before them, in the same context.
        context: of :data:`.generated.CONTEXTS`.
        tokens: of an answer, at most.

    Raises:
        ValueError: naming the record, for a condition that was not asked for.
    """
    for record in records:
        for query in (q for one in _all([record]) for q in one.conditions):
            if query not in held:
                raise ValueError(
                    f"record {record.case_id}: whether {query.prompt[:80]!r} was answered before editing is not known; "
                    "take conditions(model, records) before you edit"
                )
    edits = {r.case_id: Query(r.request.text, (_names(r),)) for r in records if any(r.portability.values())}
    queries = [*edits.values(), *(query for one in _all(records) for query in one.queries)]
    now = ask(model, queries, context=context, tokens=tokens)
    rows: list[dict[str, float | int | str]] = []
    for record in records:
        if record.case_id not in edits:
            rows.append({"case_id": record.case_id})
            continue
        edited = now[edits[record.case_id]]
        row: dict[str, float] = {"edited": 100.0 * edited}
        executed = {
            group: [one for one in listed if all(held[query] for query in one.conditions)]
            for group, listed in record.portability.items()
        }
        row["executed"] = 100 * sum(map(len, executed.values())) / sum(map(len, record.portability.values()))
        for group, listed in executed.items():
            if listed:
                share = 100 * fmean(_passed(one, now) for one in listed)
                row |= {f"all_{group}": share, **({group: share} if edited else {})}
        rows.append({"case_id": record.case_id, **{named(context, name): value for name, value in row.items()}})
    return rows


def _names(record: Record) -> tuple[str, ...]:
    """The new object, with the names that the record's queries have for it."""
    queries = (query for one in _all([record]) for query in one.queries)
    known = [names for query in queries for names in query.answers if record.target_new in names]
    return tuple(dict.fromkeys([record.target_new, *(name for names in known for name in names)]))


def _passed(one: Consequence, now: Mapping[Query, bool]) -> bool:
    right = [now[query] for query in one.queries]
    return all(right) if one.every else any(right)


def _all(records: Iterable[Record]) -> Iterable[Consequence]:
    return (one for record in records for listed in record.portability.values() for one in listed)
