"""What a model says after edits whose target is a text of several sentences.

==============  ====================================================================================================
measure         per cent
==============  ====================================================================================================
rouge_l         ROUGE-L, F-measure, of the text that the model generates greedily with the target (Lin 2004)
token_recall    share of the target's tokens that are the model's first choice after the target so far
object_recall   share of mentions of the new object whose tokens are all the first choice, given the target so far
whole           100 where the whole target is generated, word for word
==============  ====================================================================================================

As many tokens are generated as the target has. Nothing in a text marks its end, so what would follow is not judged.
Recall is teacher-forced: repeated names and wordings make much of a text easy, so compare it with its value before
editing. The mentions of the object are what an edit is about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

import pandas as pd
from rouge_score.rouge_scorer import RougeScorer

from ..data import Record
from ..models.generation import continue_greedily
from ..models.model import Model
from ..models.prompts import encode_answer, joiner
from ..models.scoring import score_targets

MEASURES = ("rouge_l", "token_recall", "object_recall", "whole")


def rouge_l(target: str, text: str) -> float:
    """ROUGE-L, F-measure, in per cent; words in lower case, without stemming."""
    return 100 * RougeScorer(["rougeL"]).score(target, text)["rougeL"].fmeasure


def evaluate_long_form(model: Model, records: Sequence[Record], objects: Sequence[str]) -> pd.DataFrame:
    """All measures after each record's prompt, and after its paraphrases, averaged over these.

    Args:
        model: the model in its present state.
        records: the long-form edits.
        objects: each edit's new object; a record whose text does not mention it has no ``object_recall``.

    Returns:
        Columns ``prompt`` (``question``, ``rephrased``), ``metric``, ``record``, ``value``.

    Raises:
        ValueError: if a prompt with its target is longer than the model's context.
    """
    asked = [(i, "question", record.request.text) for i, record in enumerate(records)]
    asked += [(i, "rephrased", text) for i, record in enumerate(records) for text in record.paraphrases]
    targets = [records[i].target_new for i, _, _ in asked]
    pairs = [(text, target) for (_, _, text), target in zip(asked, targets, strict=True)]
    between = [
        joiner(*pair) if (given := records[i].separator) is None else given
        for (i, _, _), pair in zip(asked, pairs, strict=True)
    ]
    mentions = [
        _mentions(text + space, target, objects[i])
        for (i, _, text), target, space in zip(asked, targets, between, strict=True)
    ]
    recall = [100 * score.accuracy for score in score_targets(model, pairs, separators=between)]
    found = iter(score_targets(model, [pair for some in mentions for pair in some]))
    of_object = [[100.0 * (next(found).accuracy == 1) for _ in some] for some in mentions]
    lengths = [len(encode_answer(model.tokenizer, *pair, space)) for pair, space in zip(pairs, between, strict=True)]
    texts = continue_greedily(model, [text for text, _ in pairs], lengths)
    rows = []
    for n, (i, prompt, _) in enumerate(asked):
        rouge, whole = rouge_l(targets[n], texts[n]), 100.0 * (texts[n].split() == targets[n].split())
        values = (rouge, recall[n], fmean(of_object[n]) if of_object[n] else None, whole)
        rows += [
            {"prompt": prompt, "metric": metric, "record": i, "value": value}
            for metric, value in zip(MEASURES, values, strict=True)
            if value is not None
        ]
    return pd.DataFrame(rows).groupby(["prompt", "metric", "record"], sort=False).value.mean().reset_index()


def _mentions(before: str, target: str, name: str) -> list[tuple[str, str]]:
    """For each mention of ``name`` in the target: all text before it, and the name. ``before`` precedes the target."""
    places = [match.start() for match in re.finditer(rf"\b{re.escape(name)}\b", target)]
    return [(f"{before}{target[:place]}".rstrip(), name) for place in places]
