"""Claims of the paper, and of others about the same methods, against what a notebook saw.

Each claim has conditions, in words and in code: the bar that its numbers are held to. A condition on a size or a
difference looks at its 95 % interval, and has three answers: it holds, the interval lies on the other side of the bar
(the opposite holds), or the interval covers the bar (not seen). A condition on an order, a count, a ratio of means or a
median has two answers: it holds, or it is not seen. The answers make the verdict, see :data:`LEGEND`. What holds by
definition (at the last critical layer the two residuals are the same) is left out. "Edits better" is about efficacy and
generalization; specificity is a claim of its own.

There is a module for each study of :data:`~bluelib.studies.STUDIES`, and :mod:`~bluelib.reports.claims.main` for the
main table. Each has ``View``, the numbers that its claims look at, and ``CLAIMS``, whose functions take a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

Numbers = Mapping[str, Any]

#: The mark of each verdict in tables.
MARKS = {"reproduced": "✓", "partly": "◐", "not seen here": "○", "reversed here": "✗"}
#: What the words mean, for readers of a table.
LEGEND = (
    "✓ *reproduced*: all of a claim's conditions hold, on 95 % intervals where there are any; ◐ *partly*: some do "
    "(1/4: one of four; −1: for one the interval says the opposite); ○ *not seen here*: none does, and no interval "
    "says the opposite; ✗ *reversed here*: none does, and at least one interval lies on the other side (1/2: one of "
    "two). "
    "Intervals are over records of the sequences that were run, and not adjusted for the number of conditions."
)
#: The sources of claims, in the order of a report, and what a report calls them.
SOURCES = {
    "BLUE": "The paper (BLUE, arXiv:2502.03748)",
    "ROME, MEMIT": "What it builds on (ROME, arXiv:2202.05262; MEMIT, arXiv:2210.07229)",
    "FE": "Forward replay (FE, arXiv:2605.00358)",
    "CAKE": "Shares by causal effect (CAKE, ACL 2026)",
    "one-time": "A sequence and one batch (arXiv:2605.26670)",
    "replication": "A public replication of BLUE (10,000 edits, Llama3)",
}
#: What a condition answers.
Answer = bool | int | Iterable[bool | int]


class Verdict(NamedTuple):
    """What came of a claim, with the size of the runs that it is about, if that is not the notebook's, and the answers
    of its conditions."""

    claim: str
    seen: str
    verdict: str
    size: str = ""
    answers: tuple[int, ...] = ()

    @property
    def mark(self) -> str:
        """The verdict's mark; where there are several conditions, with how many of them hold, or say the opposite."""
        mark, of = MARKS[self.verdict], len(self.answers)
        holds, against = (sum(sign * answer > 0 for answer in self.answers) for sign in (1, -1))
        if of < 2 or self.verdict not in ("partly", "reversed here"):
            return mark
        if self.verdict == "reversed here":
            return f"{mark} {against}/{of}"
        return f"{mark} {holds}/{of}" + (f" −{against}" if against else "")


@dataclass(frozen=True)
class Claim:
    """A claim and the rule by which numbers show it. All functions take a view of the numbers.

    Attributes:
        text: what is claimed.
        seen: puts the evidence into words.
        conditions: the test of each condition, by the condition in words. A test gives True or 1 where its condition
            holds, −1 where the opposite does, else False or 0. A condition about *each* of several things has an answer
            for each, and counts as that many conditions.
        source: whose claim it is, one of :data:`SOURCES`.
        published: what was published for it, in a few words.
        size: puts into words the size of the runs that the claim is about, if it is not the notebook's.
        applies: whether the numbers have what the claim is about, and could have failed it.
    """

    text: str
    seen: Callable[[Any], str]
    conditions: Mapping[str, Callable[[Any], Answer]]
    source: str = "BLUE"
    published: str = ""
    size: Callable[[Any], str] = lambda view: ""
    applies: Callable[[Any], bool] = lambda view: True

    @property
    def bar(self) -> str:
        """The conditions in words."""
        return "; ".join(self.conditions)

    def verdict(self, view: Any) -> Verdict:
        """What came of the claim.

        Raises:
            ValueError: if the numbers have nothing that the conditions are about.
        """
        answers: list[bool | int] = []
        for test in self.conditions.values():
            found = test(view)
            answers.extend(found if isinstance(found, Iterable) else [found])
        return Verdict(self.text, self.seen(view), judge(*answers), self.size(view), tuple(map(int, answers)))


def judge(*answers: bool | int) -> str:
    """The verdict that follows from the answers of a claim's conditions, see :data:`LEGEND`.

    Raises:
        ValueError: if there are no answers.
    """
    if not answers:
        raise ValueError("a claim has no verdict if the numbers answer none of its conditions")
    holds = [answer > 0 for answer in answers]
    if any(holds):
        return "reproduced" if all(holds) else "partly"
    return "reversed here" if any(answer < 0 for answer in answers) else "not seen here"


def above(rows: Any, bar: Any = 0.0) -> Any:
    """Whether an interval is above a bar (1), below it (−1), or covers it (0); for a frame, one answer per row.

    Args:
        rows: an interval, or a frame of intervals, with ``low`` and ``high``.
        bar: a number, or one for each row.
    """
    low, high = (np.asarray(rows[end], dtype=float) for end in ("low", "high"))
    found = np.sign((low > bar).astype(int) - (high < bar).astype(int))
    return found if found.ndim else int(found)


def below(rows: Any, bar: Any = 0.0) -> Any:
    """The opposite of :func:`above`."""
    return -above(rows, bar)


def apart(one: Any, other: Any) -> int:
    """Whether an interval lies above another (1), below it (−1), or overlaps it (0)."""
    return int(one["low"] > other["high"]) - int(one["high"] < other["low"])


def claims_of(study: str) -> tuple[Claim, ...]:
    """The claims that a study of :data:`~bluelib.studies.STUDIES` examines."""
    return import_module(f".{study}", __package__).CLAIMS


def verdicts(study: str, numbers: Numbers) -> list[Verdict]:
    """The verdicts on a study's claims that its notebook's numbers give."""
    view = import_module(f".{study}", __package__).View(numbers)
    return [claim.verdict(view) for claim in claims_of(study) if claim.applies(view)]
