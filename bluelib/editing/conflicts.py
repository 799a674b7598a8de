"""Edits that conflict: two of one subject in one batch, or two of one fact.

Two edits of the same subject in one batch have nearly the same key, so least squares gives both nearly the same
update: if they are about different relations, each pulls at the other; if they are about the same relation, the
outcome is a mixture of both objects. In different batches the later one simply takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data import Record

POLICIES = ("last", "keep", "refuse")


@dataclass(frozen=True)
class Conflict:
    """Two records, by their positions in the sequence.

    Attributes:
        kind: ``fact`` for the same subject and relation, ``subject`` for the same subject only.
        same_batch: whether both are in one batch; always true for the kind ``subject``.
        first, second: positions.
    """

    kind: str
    same_batch: bool
    first: int
    second: int


def find_conflicts(records: Sequence[Record], batch_size: int) -> list[Conflict]:
    """All conflicts; the relation is the record's relation id, or its prompt where it has none.

    Each record is compared with the last earlier record of the same fact, and with the last earlier record of the same
    subject in its batch.
    """
    conflicts = []
    facts: dict[tuple[str, str], int] = {}
    subjects: dict[tuple[str, int], int] = {}
    for i, record in enumerate(records):
        batch = i // batch_size
        fact = (record.subject, record.relation or record.prompt)
        if fact in facts:
            conflicts.append(Conflict("fact", facts[fact] // batch_size == batch, facts[fact], i))
        near = subjects.get((record.subject, batch))
        if near is not None and near != facts.get(fact):
            conflicts.append(Conflict("subject", True, near, i))
        facts[fact] = subjects[record.subject, batch] = i
    return conflicts


def resolve(records: Sequence[Record], batch_size: int, policy: str) -> tuple[list[Conflict], set[int]]:
    """The conflicts, and the positions of the records that are not edited.

    ``last``: of two records of one fact in one batch only the last is edited; other conflicts are only reported.
    ``keep``: all records are edited. ``refuse``: any conflict is an error.

    Raises:
        ValueError: if the policy is unknown, or if there is a conflict under ``refuse``.
    """
    if policy not in POLICIES:
        raise ValueError(f"on_conflict must be one of {', '.join(POLICIES)}, not {policy!r}")
    conflicts = find_conflicts(records, batch_size)
    if conflicts and policy == "refuse":
        c = conflicts[0]
        a, b = records[c.first], records[c.second]
        what = "state the same fact" if c.kind == "fact" else "edit the same subject in one batch"
        raise ValueError(
            f"records {a.case_id} and {b.case_id} {what} ({a.subject!r}: {a.prompt!r} and {b.prompt!r}); "
            f"{len(conflicts)} conflicts in all. Remove one record of each pair, or set on_conflict to last or keep"
        )
    skipped = {c.first for c in conflicts if policy == "last" and c.kind == "fact" and c.same_batch}
    return conflicts, skipped
