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
counts as a failure. A record without a true object has no efficacy and generalization of CounterFact's kind. A
neighbour without an answer does not count, nor, for CounterFact's kind, does one whose answer is the new object. All
values are in the paper's units: per cent, entropy × 100, cosine × 100.
Definitions: ROME (Meng et al. 2022), MEMIT (Meng et al. 2023).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
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
from .before import COMPARING, Before
from .generated import CONTEXTS, ask_all, measured
from .locality import locality
from .negation import negation
from .portability import portability
from .text import generation_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measures:
    """What is measured where the papers' text and the public code differ about metrics (:mod:`bluelib.models.choices`).

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


#: How the published numbers were measured, and how the papers' text says to measure.
PUBLISHED = Measures()
TEXT = Measures(**as_text({field.name for field in fields(Measures)}))

#: What can be measured: the metrics of the benchmarks; whether the new object is the first choice; what the model says
#: (:mod:`.generated`); how far it moved elsewhere (:mod:`.locality`); what follows from an edit (:mod:`.portability`);
#: whether it says so after "is not" too (:mod:`.negation`).
GROUPS = ("editing", "argmax", "generated", "locality", "portability", "negation")
METRICS = ("efficacy", "generalization", "specificity", "fluency", "consistency")
#: The metrics that need no generated text.
TEACHER_FORCED = METRICS[:3]
#: Those that say how well a model was edited; their mean is called editing.
EDITING = TEACHER_FORCED[:2]


def editing_scores(scores: Mapping[str, Any]) -> list[float | None]:
    """For each scored record, the mean of its efficacy and generalization; None for one that has not both, such as one
    without paraphrases."""
    both = zip(*(scores[metric] for metric in EDITING), strict=True)
    return [None if one is None or other is None else (one + other) / 2 for one, other in both]


@dataclass(frozen=True)
class Scores:
    """Results of an evaluation.

    Attributes:
        records: per record, ``case_id`` and the metrics that its benchmark defines.
    """

    records: tuple[dict[str, Any], ...]

    @classmethod
    def of_columns(cls, columns: Mapping[str, Sequence[float | None]]) -> Scores:
        """The scores of which :func:`per_record` has each metric's values; without case ids."""
        rows = zip(*columns.values(), strict=True)
        return cls(tuple({name: v for name, v in zip(columns, row, strict=True) if v is not None} for row in rows))

    def values(self, metric: str) -> list[float]:
        return [record[metric] for record in self.records if metric in record]

    @property
    def metrics(self) -> list[str]:
        """The metrics that any record has: those of the benchmarks first, then others as they come."""
        there = dict.fromkeys(name for record in self.records for name in record if name != "case_id")
        return [name for name in METRICS if name in there] + [name for name in there if name not in METRICS]

    @property
    def means(self) -> dict[str, float]:
        """The mean over records of each metric that any record has."""
        return {metric: fmean(self.values(metric)) for metric in self.metrics}

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
    metrics: Sequence[str] = ("editing",),
    contexts: Sequence[str] = ("bare",),
    before: Before | None = None,
) -> Scores:
    """Evaluate a model, edited or not, on all metrics of each record's benchmark, or also on others.

    Args:
        model: the model in its present state.
        records: what to evaluate on.
        generate: whether to generate text for fluency and consistency, where records have prompts for it.
        seed: of the sampling.
        dataset: the name that the records were loaded by, for consistency: inverse document frequencies are those of
            all reference texts of that dataset. Without a name, they are those of ``records``.
        measures: what is measured where the papers' text and the public code differ; by default as in the code.
        chat: ask in the tokenizer's chat template, see :func:`~bluelib.data.chat.in_chat`.
        metrics: which groups of :data:`GROUPS`.
        contexts: in which of :data:`.generated.CONTEXTS` a model is asked for ``generated`` and ``portability``.
        before: what the model said before it was edited, which ``locality`` and ``portability`` compare with.

    Raises:
        ValueError: if there are no records, the seed is not allowed, a group or context is unknown, or a group lacks
            what it compares with; if a prompt with its target is longer than the model's context, or leaves nothing to
            generate; the message then names the record.
    """
    if not records:
        raise ValueError("there are no records to evaluate")
    check_seed(seed)
    check_groups(metrics, contexts)
    bare, records = records, in_chat(model, records) if chat else records
    _check_before(records, metrics, before)
    results: list[dict[str, Any]] = [{"case_id": record.case_id} for record in records]

    def add(group: str, rows: Iterable[Mapping[str, Any]]) -> None:
        empty = True
        for result, row in zip(results, rows, strict=True):
            empty &= not row.keys() - {"case_id"}
            result.update(row)
        if empty and group != "editing":
            _say_unmeasured(group)

    teacher_forced = {"editing": _editing_metrics, "argmax": _argmax}
    if any(group in metrics for group in teacher_forced):
        for record in records:
            check_texts(model, record, generate and "editing" in metrics, _special(record, measures.score_bos))
        scored: dict[bool, list[list[TargetScore]]] = {}
        for group, measure in teacher_forced.items():
            special = measures.score_bos and group == "editing"  # argmax never scores a BOS
            if group in metrics:
                if special not in scored:
                    scored[special] = _scores(model, records, special)
                add(group, map(measure, records, scored[special]))
    for context in contexts:
        if "generated" in metrics:
            add("generated", measured(ask_all(model, bare, context=context)))
    if "locality" in metrics:
        reference = before.reference if before else None
        add("locality", locality(model, records, reference) if reference else [{} for _ in records])
    for context in contexts:
        if "portability" in metrics:
            held = before.held.get(context, {}) if before else {}
            add("portability", portability(model, bare, held, context=context))
    if "negation" in metrics:
        add("negation", negation(model, bare, chat=chat))
    if generate and "editing" in metrics:
        if not any(record.generation_prompts or record.kind != "counterfact" for record in records):
            _say_unmeasured("fluency and consistency")
        add(
            "editing",
            generation_scores(model, records, seed=seed, dataset=dataset, words=measures.words, idf=measures.idf),
        )
    return Scores(tuple(results))


#: What a record needs for each group.
NEEDED = {
    "fluency and consistency": "generation_prompts",
    "argmax": "an edit",
    "generated": "an edit",
    "locality": "locality probes",
    "portability": "consequences of its edit",
    "negation": "an old object and a prompt that ends in is, are, was or were",
}


def _check_before(records: Sequence[Record], metrics: Sequence[str], before: Before | None) -> None:
    """Make sure that ``before`` has what metrics compare with. (The metrics themselves report a missing probe or
    condition.)"""
    there = {
        "locality": before is not None and (before.reference is not None or not any(r.locality for r in records)),
        "portability": before is not None,
    }
    if missing := [group for group in COMPARING if group in metrics and not there[group]]:
        raise ValueError(
            f"{missing[0]} compares with what the model said before it was edited: pass before=Before.of(model, "
            f"records, {missing!r}), taken before editing"
        )


def _scores(model: Model, records: Sequence[Record], score_bos: bool) -> list[list[TargetScore]]:
    """For each record, the scores of its :func:`_pairs`."""
    hows = [_special(record, score_bos) for record in records]
    scored = {}
    for how in dict.fromkeys(hows):
        chosen = [record for record, own in zip(records, hows, strict=True) if own == how]
        pairs = [pair for record in chosen for pair in _pairs(record)]
        separators = [record.separator for record in chosen for _ in _pairs(record)]
        scored[how] = iter(score_targets(model, pairs, special=how, separators=separators))
    return [[next(scored[how]) for _ in _pairs(record)] for record, how in zip(records, hows, strict=True)]


def check_groups(metrics: Sequence[str], contexts: Sequence[str] = ("bare",)) -> None:
    """Make sure that these groups of metrics and these contexts exist.

    Raises:
        ValueError: if one does not exist, which the message names; if there is no group, or no context.
    """
    for what, given, known in (("metrics", metrics, GROUPS), ("contexts", contexts, CONTEXTS)):
        if not given or isinstance(given, str):
            raise ValueError(f"{what} must be a list of at least one of {', '.join(known)}, not {given!r}")
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{what}: there is no {unknown[0]!r}; known: {', '.join(known)}")


@cache
def _say_unmeasured(group: str) -> None:
    """Warn once: records are evaluated before editing and after it."""
    log.warning("no record has %s: %s cannot be measured", NEEDED[group], group)


def check_texts(model: Model, record: Record, generate: bool, special: bool = False) -> None:
    """Make sure that a model can read what a record's metrics ask.

    Raises:
        ValueError: if a text is longer than the context, or has a token without an embedding; the message names the
            record.
    """
    try:
        for prompt, target in _pairs(record):
            # Hardly any token has less than a byte, so only a text that could be too long, or unknown, is tokenised
            # twice.
            if model.lacks_embeddings or len((prompt + target).encode()) >= model.max_positions // 4:
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
    of_edit = [(prompt, target) for prompt in edited for target in (record.target_new, record.target_true) if target]
    other = [(prompt, answer) for prompt, answer in known if answer != record.target_new]  # which can win against it
    return of_edit + [(prompt, target) for prompt, answer in other for target in (record.target_new, answer)]


def _asked(record: Record) -> list[str]:
    """The prompts after which a record's new object is measured."""
    return [record.request.text, *record.paraphrases]


def _split(record: Record, scores: list[TargetScore]) -> tuple[list[TargetScore], list[TargetScore], list[TargetScore]]:
    """The scores of :func:`_pairs`, split: those of the new object after the edit's prompts; those of the true one
    there, if there is one to compare with; and those of the locality probes."""
    n = len(_asked(record))
    if record.kind == "zsre" or record.target_true is None:
        return scores[:n], [], scores[n:]
    return scores[0 : 2 * n : 2], scores[1 : 2 * n : 2], scores[2 * n :]


def _editing_metrics(record: Record, scores: list[TargetScore]) -> dict[str, float]:
    new, true, known = _split(record, scores)
    if record.kind == "zsre":
        edited, kept = [score.accuracy for score in new], [score.accuracy for score in known]
    else:
        edited = [float(a.log_prob > b.log_prob) for a, b in zip(new, true, strict=False)]
        kept = [float(b.log_prob > a.log_prob) for a, b in zip(known[0::2], known[1::2], strict=True)]
    return _means({"efficacy": edited[:1], "generalization": edited[1:], "specificity": kept})


def _argmax(record: Record, scores: list[TargetScore]) -> dict[str, float]:
    """Whether all tokens of the new object are the model's first choice after the rewrite prompt, and the share of
    paraphrases after which they are."""
    hits = [float(score.accuracy == 1) for score in _split(record, scores)[0]]
    return _means({"argmax_efficacy": hits[:1], "argmax_generalization": hits[1:]})


def _means(groups: dict[str, list[float]]) -> dict[str, float]:
    return {metric: 100 * fmean(group) for metric, group in groups.items() if group}


def scores_frame(scores: Scores) -> pd.DataFrame:
    """Scores per record: columns metric, record (its position), value."""
    return pd.DataFrame(
        [
            {"metric": metric, "record": i, "value": record[metric]}
            for metric in scores.means
            for i, record in enumerate(scores.records)
            if metric in record
        ]
    )


def readable(value: float, decimals: int) -> float:
    """A number rounded to ``decimals`` decimals; one below 1, to as many significant digits."""
    return round(value, decimals) if abs(value) >= 1 else float(f"{value:.{decimals}g}")


def per_record(scores: Scores) -> dict[str, list[float | None]]:
    """Each metric's values in the order of the records, for paired comparisons; None where a record has none."""
    return {
        metric: [None if metric not in record else readable(float(record[metric]), 3) for record in scores.records]
        for metric in scores.means
    }
