"""What follows from an edit, and what has to stay the same although it is about the same subject: RippleEdits' metric
(Cohen et al., TACL 2024).

A consequence is executed if its conditions were answered right *before* the edit. In the published definition it counts
only if the edit itself is answered right afterwards. So three numbers belong together: the share of consequences that
were executed (``executed``, and ``executed_<group>``), whether the edit succeeded (``edited``), and the share of
executed ones that passed (``<group>``). ``all_<group>`` is the same share over all requested edits, whether they
succeeded or not.

A query is answered right if the model's greedy answer names each of the query's answers, by one of its names, as whole
words. A name has more than one character, is a number, or is of a script without spaces. Names are compared after
SQuAD's normalisation. Those of up to three characters, and those in capitals, are compared letter for letter: "IT" and
"the US" are not pronouns.

This differs from the published code:

- Names are looked for only in what the model says; the code also looks at the prompt.
- The limit of an answer is in tokens (30), in the code in characters; and an answer ends with its line.
- Names must be whole words, not any part of the text.
- A query without answers shows nothing and is not executed; the code lets it pass.
- Nothing is sampled; the code draws without a seed. ``Forgetfulness`` is counted as itself; the code counts it as
  ``Compositionality_II``.
- The records may have been edited together, or, as in the code, one at a time (``blue single``). Where they are given
  together, a consequence that asks for what another edit has changed is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from ..data import Record
from ..data.records import Consequence, Query
from ..models.generation import answer
from ..models.model import Model
from ..models.prompts import has_unspaced
from .generated import frame, named, normalise

TOKENS = 30
#: Names of at most this many characters are compared letter for letter.
SHORT = 3
_ARTICLE = re.compile(r"^(the|a|an)\s+", re.IGNORECASE)


def ask(model: Model, queries: Iterable[Query], *, context: str = "bare") -> dict[Query, bool]:
    """Whether the model, in its present state, answers each query right, in one of :data:`.generated.CONTEXTS`."""
    before, after = frame(model, context)
    distinct = list(dict.fromkeys(queries))
    prompts = list(dict.fromkeys(query.prompt for query in distinct))
    texts = answer(model, [before + prompt + after for prompt in prompts], tokens=TOKENS, stops="\n")
    said = dict(zip(prompts, texts, strict=True))
    return {query: answered(said[query.prompt], query.answers) for query in distinct}


def answered(text: str, answers: Sequence[Sequence[str]]) -> bool:
    """Whether a text names every answer, each by one of its names; False if there are no answers."""
    words = f" {normalise(text)} "
    return bool(answers) and all(any(_named(text, words, name) for name in names) for names in answers)


def _named(text: str, words: str, name: str) -> bool:
    """Whether a name is in a text; ``words`` are the text's normalised words, with a space before and after each."""
    normal, core = normalise(name), _ARTICLE.sub("", name.strip())
    if has_unspaced(core):
        return core in text
    if not normal or (len(core) < 2 and not core.isdigit()):
        return False
    if len(core) <= SHORT or core.isupper():
        return re.search(rf"(?<!\w){re.escape(core)}(?!\w)", text) is not None
    return f" {normal} " in words


def conditions(model: Model, records: Sequence[Record], *, context: str = "bare") -> dict[Query, bool]:
    """Whether each condition of the records' consequences holds, for the model before it is edited."""
    return ask(model, (q for one in _all(records) for q in one.conditions), context=context)


def portability(
    model: Model, records: Sequence[Record], held: Mapping[Query, bool], *, context: str = "bare"
) -> list[dict[str, float | int | str]]:
    """Per record, in per cent: ``edited``, whether the edit succeeded, or, in a case with several edits, all of them;
    ``executed``, the share of its consequences that were executed, and ``executed_<group>``; and the share of each
    group's executed ones that passed, ``<group>`` if the edit succeeded and ``all_<group>`` in any case. Names have the
    context in front, unless it is the bare prompt. A record without consequences has none of these.

    Args:
        model: the edited model.
        records: the edits.
        held: what :func:`conditions` returned before the edits, in the same context.
        context: of :data:`.generated.CONTEXTS`.

    Raises:
        ValueError: if a condition was not asked before editing; the message names the record.
    """
    for record in records:
        for query in (q for one in _all([record]) for q in one.conditions):
            if query not in held:
                raise ValueError(
                    f"record {record.case_id}: whether {query.prompt[:80]!r} was answered before editing is not known "
                    f"in context {context}; take Before.of(model, records, contexts=[{context!r}]) before you edit"
                )
    cases = _cases(records)
    counted = kept_apart(records)
    edits = [Query(record.request.text, (_names(record),)) for record in records]
    wanted = {own for case, groups in zip(cases, counted, strict=True) if groups for own in case}
    queries = [query for groups in counted for listed in groups.values() for one in listed for query in one.queries]
    now = ask(model, [*(edits[number] for number in sorted(wanted)), *queries], context=context)
    rows: list[dict[str, float | int | str]] = []
    for record, case, groups in zip(records, cases, counted, strict=True):
        if not groups:
            rows.append({"case_id": record.case_id})
            continue
        edited = len(case) == 1 + len(record.together) and all(now[edits[own]] for own in case)
        executed = {
            group: [one for one in listed if all(held[query] for query in one.conditions)]
            for group, listed in groups.items()
        }
        row: dict[str, float] = {"edited": 100.0 * edited, "executed": _share(executed.values(), groups.values())}
        for group, listed in executed.items():
            row[f"executed_{group}"] = _share([listed], [groups[group]])
            if listed:
                share = 100 * fmean(_passed(one, now) for one in listed)
                row |= {f"all_{group}": share, **({group: share} if edited else {})}
        rows.append({"case_id": record.case_id, **{named(context, name): value for name, value in row.items()}})
    return rows


def _share(part: Iterable[Sequence[Consequence]], whole: Iterable[Sequence[Consequence]]) -> float:
    return 100 * sum(map(len, part)) / sum(map(len, whole))


def _cases(records: Sequence[Record]) -> list[list[int]]:
    """For each record, the positions of the records that form one case with it, itself first, as far as they are
    given."""
    ids = {record.case_id: number for number, record in enumerate(records)}
    return [[number, *(ids[other] for other in r.together if other in ids)] for number, r in enumerate(records)]


def kept_apart(records: Sequence[Record]) -> list[dict[str, tuple[Consequence, ...]]]:
    """For each record, the groups of its consequences, without those that ask for what a record of another case
    edits."""
    changed: dict[str, set[int]] = {}
    for number, record in enumerate(records):
        changed.setdefault(record.request.text, set()).add(number)
    found = []
    for record, case in zip(records, _cases(records), strict=True):
        groups = {
            group: tuple(
                one
                for one in listed
                if not any(changed.get(query.prompt, set()) - {*case} for query in (*one.queries, *one.conditions))
            )
            for group, listed in record.portability.items()
        }
        found.append({group: listed for group, listed in groups.items() if listed})
    return found


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
