"""The editing metrics of CounterFact and zsRE.

==============  ==================================================  =====================================
metric          CounterFact                                         zsRE
==============  ==================================================  =====================================
efficacy        P(new) > P(true) after the rewrite prompt           token accuracy of the new object there
generalization  share of paraphrases with P(new) > P(true)          token accuracy after the rephrase
specificity     share of neighbours with P(answer) > P(new)         token accuracy of the unrelated answer
fluency         n-gram entropy of generated text                    –
consistency     TF-IDF cosine with reference texts                  –
==============  ==================================================  =====================================

P is the mean log-probability per token of the object (teacher-forced), without BOS or other special tokens; a tie
counts as a failure. A record without a true object has no efficacy and generalization of CounterFact's kind, and a
neighbour without an answer does not count. All values are in the paper's units: per cent, entropy × 100, cosine × 100.
Definitions: ROME (Meng et al. 2022), MEMIT (Meng et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from ..data import Record
from ..data.chat import in_chat
from ..io.checks import check_seed
from ..models.choices import as_text, check_choice, published
from ..models.generation import encode_openings
from ..models.model import Model
from ..models.prompts import encode_answer, encode_prompt
from ..models.scoring import TargetScore, score_targets
from .text import generation_scores


@dataclass(frozen=True)
class Measures:
    """Where text and public code of the family differ about metrics (:mod:`bluelib.models.choices`), what is measured.

    Attributes:
        idf: inverse document frequencies of consistency: ``fixed``, or of the ``records`` at hand.
        words: of fluency: ``nltk`` or ``regex``.
        score_bos: for zsRE, score a BOS token at the start of every answer, where the tokenizer puts one before texts.
    """

    idf: str = published("idf")
    words: str = published("words")
    score_bos: bool = published("score_bos")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_choice(name, value)


#: What the published figures were measured by, and what the papers' text says.
PUBLISHED = Measures()
TEXT = Measures(**as_text({field.name for field in fields(Measures)}))

METRICS = ("efficacy", "generalization", "specificity", "fluency", "consistency")
#: Those that need no generated text.
TEACHER_FORCED = METRICS[:3]


@dataclass(frozen=True)
class Scores:
    """Results of an evaluation.

    Attributes:
        records: per record, ``case_id`` and the metrics that its benchmark defines.
    """

    records: tuple[dict[str, Any], ...]

    def values(self, metric: str) -> list[float]:
        return [record[metric] for record in self.records if metric in record]

    @property
    def means(self) -> dict[str, float]:
        """The mean over records of each metric that any record has."""
        return {metric: fmean(self.values(metric)) for metric in METRICS if self.values(metric)}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Standard error of each mean: sample standard deviation over records / √n (NaN for one record)."""
        errors = {}
        for metric in self.means:
            values = self.values(metric)
            errors[metric] = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return errors


def evaluate(
    model: Model,
    records: Sequence[Record],
    *,
    generate: bool = True,
    seed: int = 0,
    dataset: str = "",
    measures: Measures = PUBLISHED,
    chat: bool = False,
) -> Scores:
    """Evaluate a model, edited or not, on all metrics of each record's benchmark.

    Args:
        model: the model in its present state.
        records: what to evaluate on.
        generate: whether to generate text for fluency and consistency, where records have prompts for it.
        seed: of the sampling.
        dataset: the name that the records were loaded by, for consistency: inverse document frequencies are those of
            all its reference texts. Without it they are those of ``records``.
        measures: what is measured where text and public code of the family differ; the code's by default.
        chat: ask behind the tokenizer's chat template, see :func:`~bluelib.data.chat.in_chat`.

    Raises:
        ValueError: for no records, or a seed that is not allowed; naming the record, for a prompt that with its target
            is longer than the model's context, or that leaves nothing to generate.
    """
    if not records:
        raise ValueError("there are no records to evaluate")
    check_seed(seed)
    records = in_chat(model, records) if chat else records
    for record in records:
        _check_lengths(model, record, generate, _special(record, measures.score_bos))
    hows = [(_special(record, measures.score_bos), record.separator) for record in records]
    scored = {}
    for how in dict.fromkeys(hows):
        pairs = [pair for record, own in zip(records, hows, strict=True) if own == how for pair in _pairs(record)]
        scored[how] = iter(score_targets(model, pairs, special=how[0], separator=how[1]))
    results = [
        {"case_id": record.case_id, **_editing_metrics(record, [next(scored[how]) for _ in _pairs(record)])}
        for record, how in zip(records, hows, strict=True)
    ]
    if generate:
        texts = generation_scores(model, records, seed=seed, dataset=dataset, words=measures.words, idf=measures.idf)
        for result, extra in zip(results, texts, strict=True):
            result.update(extra)
    return Scores(tuple(results))


def _check_lengths(model: Model, record: Record, generate: bool, special: bool) -> None:
    try:
        for prompt, target in _pairs(record):
            # Hardly a token has less than a byte; only what could be too long is tokenised twice.
            if len((prompt + target).encode()) >= model.max_positions // 4:
                tokens = (
                    len(encode_prompt(model.tokenizer, prompt))
                    + len(encode_answer(model.tokenizer, prompt, target, record.separator, special))
                    - 1
                )
                model.check_length(tokens, f"{prompt[:80]!r} with its target")
        if generate:
            encode_openings(model, record.generation_prompts)
    except ValueError as error:
        raise ValueError(f"record {record.case_id}: {error}") from error


def _special(record: Record, score_bos: bool) -> bool:
    return score_bos and record.kind == "zsre"


def _pairs(record: Record) -> list[tuple[str, str]]:
    """The (prompt, target) pairs that a record's metrics need: rewrite, paraphrases, locality."""
    edited, known = _asked(record), [(p.prompt, p.answer) for p in record.locality if p.answer is not None]
    if record.kind == "zsre":
        return [(prompt, record.target_new) for prompt in edited] + known
    compared = [(prompt, record.target_true) for prompt in edited if record.target_true is not None] + known
    return [(prompt, target) for prompt, other in compared for target in (record.target_new, other)]


def _asked(record: Record) -> list[str]:
    """The prompts after which a record's new object is measured; none, if there is nothing to compare it with."""
    comparable = record.kind == "zsre" or record.target_true is not None
    return [record.request.text, *record.paraphrases] if comparable else []


def _editing_metrics(record: Record, scores: list[TargetScore]) -> dict[str, float]:
    n = len(_asked(record))
    if record.kind == "zsre":
        values = [score.accuracy for score in scores]
    else:
        new, other = scores[0::2], scores[1::2]
        values = [float(a.log_prob > b.log_prob) for a, b in zip(new[:n], other[:n], strict=True)]
        values += [float(b.log_prob > a.log_prob) for a, b in zip(new[n:], other[n:], strict=True)]
    groups = {"efficacy": values[: min(n, 1)], "generalization": values[1:n], "specificity": values[n:]}
    return {metric: 100 * fmean(group) for metric, group in groups.items() if group}


def scores_frame(scores: Scores) -> pd.DataFrame:
    """Scores per record: columns metric, record, value."""
    return pd.DataFrame(
        [
            {"metric": metric, "record": i, "value": value}
            for metric in scores.means
            for i, value in enumerate(scores.values(metric))
        ]
    )
