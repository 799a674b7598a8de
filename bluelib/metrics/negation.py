"""Whether an edited model takes the "not" in "is not" into account (arXiv:2510.00625).

An edit that installs "The capital of France is" – "Rome" must not make a model go on with "Rome" after "The capital of
France is not". The model is asked the rewrite prompt followed by "not", for records whose prompt ends in a form of "to
be". The edit passes if the old object is then more probable than the new one. A model that ignores "not" passes as long
as it is unedited: read this together with efficacy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ..data import Record
from ..data.chat import in_chat
from ..models.model import Model
from ..models.scoring import score_targets

_TO_BE = re.compile(r"\b(is|are|was|were)$")


def negated(record: Record) -> Record | None:
    """The record with "not" after its rewrite prompt; None if that makes no sentence, or there is no old object."""
    if record.target_true is None or not _TO_BE.search(record.request.text):
        return None
    return replace(record, prompt=f"{record.prompt} not")


def negation(model: Model, records: Sequence[Record], *, chat: bool = False) -> list[dict[str, float | int | str]]:
    """Per record, ``case_id`` and ``negation``, 100 or 0: P(true) > P(new) after the negated prompt, P being the mean
    log-probability per token; only ``case_id`` for a record without the metric. The records must not be in a chat
    template yet."""
    asked = {number: one for number, record in enumerate(records) if (one := negated(record)) is not None}
    asked = dict(zip(asked, in_chat(model, list(asked.values())) if chat else asked.values(), strict=True))
    pairs = [(r.request.text, str(target)) for r in asked.values() for target in (r.target_new, r.target_true)]
    scores = score_targets(model, pairs, separators=[r.separator for r in asked.values() for _ in range(2)])
    passed = {
        number: {"negation": 100.0 * (true.log_prob > new.log_prob)}
        for number, new, true in zip(asked, scores[0::2], scores[1::2], strict=True)
    }
    return [{"case_id": record.case_id, **passed.get(number, {})} for number, record in enumerate(records)]
