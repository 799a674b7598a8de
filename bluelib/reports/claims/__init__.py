"""Claims of the paper against what a notebook saw: each has a rule about the notebook's numbers, in words and in code.

A verdict is *reproduced* where all of a claim's conditions hold, *partly* where some do, and *not at this scale* where
none does: the last says that the numbers do not show it, not that they refute it. Conditions on sizes and differences
are conditions on their 95 % intervals; those on an order, a count, a ratio of means or a median have none. What holds
by definition (at the last critical layer the two residuals are one) is left out. "Edits better" is about efficacy and
generalization; specificity is a claim of its own.

A module for each study of :data:`~bluelib.studies.STUDIES`, and :mod:`~bluelib.reports.claims.main` for the main table,
has ``View``, what its claims look at, and ``CLAIMS``, whose functions take a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

Numbers = Mapping[str, Any]

#: By verdict, its mark in tables.
MARKS = {"reproduced": "✓", "partly": "◐", "not at this scale": "✗"}
#: What the words mean, for readers of a table.
LEGEND = (
    "*reproduced*: all of a claim's conditions hold, on 95 % intervals where there are any; *partly*: some do; *not at "
    "this scale*: none does, so that the claim is not shown here, which does not refute it."
)


class Verdict(NamedTuple):
    """One row of the table that ends a notebook; with the size of what it is about, if not that of the notebook."""

    claim: str
    seen: str
    verdict: str
    size: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and the rule by which numbers show it. All functions take a view of the numbers.

    Attributes:
        text: what the paper claims.
        seen: words the evidence.
        conditions: by a condition in words, its test. A condition about *each* of several things has an answer for
            each, and counts as so many conditions.
        size: words the size of what the claim is about, if it is not the notebook's.
        applies: whether the numbers have what the claim is about.
    """

    text: str
    seen: Callable[[Any], str]
    conditions: Mapping[str, Callable[[Any], bool | Iterable[bool]]]
    size: Callable[[Any], str] = lambda view: ""
    applies: Callable[[Any], bool] = lambda view: True

    def verdict(self, view: Any) -> Verdict:
        """What came of the claim.

        Raises:
            ValueError: if the numbers have nothing that a condition could be about.
        """
        answers: list[bool] = []
        for test in self.conditions.values():
            found = test(view)
            answers.extend(found if isinstance(found, Iterable) else [found])
        return Verdict(self.text, self.seen(view), judge(*answers), self.size(view))


def judge(*conditions: bool) -> str:
    """*reproduced*, *partly* or *not at this scale*: all, some or none of the conditions hold.

    Raises:
        ValueError: for no conditions.
    """
    if not conditions:
        raise ValueError("a claim without conditions has no verdict")
    return "reproduced" if all(conditions) else "partly" if any(conditions) else "not at this scale"


def claims_of(study: str) -> tuple[Claim, ...]:
    """The claims that a study of :data:`~bluelib.studies.STUDIES` examines."""
    return import_module(f".{study}", __package__).CLAIMS


def verdicts(study: str, numbers: Numbers) -> list[Verdict]:
    """The verdicts on a study's claims that its notebook's numbers give."""
    view = import_module(f".{study}", __package__).View(numbers)
    return [claim.verdict(view) for claim in claims_of(study) if claim.applies(view)]


def as_table(verdicts: Sequence[Mapping[str, str]]) -> str:
    """The verdicts of a notebook's numbers as a Markdown table."""
    lines = ["| claim | what we see | verdict |", "|---|---|---|"]
    lines += [f"| {v['claim']} | {v['seen']} | **{v['verdict']}** |" for v in verdicts]
    return "\n".join([*lines, "", LEGEND])


def as_lines(verdicts: Sequence[Mapping[str, str]]) -> str:
    """One line for each verdict and its claim."""
    return "\n".join(f"{v['verdict']}: {v['claim']}" for v in verdicts)
