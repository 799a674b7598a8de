"""The definition of each metric: :data:`DEFINITIONS`, from which the page ``docs/metrics.md`` is made."""

from __future__ import annotations

from dataclasses import dataclass

#: The placeholders in names of metrics, and what they stand for.
VARYING = {
    "<metric>": "efficacy, generalization or specificity",
    "<group>": "the name of a group of consequences, such as Relation_Specificity",
}


@dataclass(frozen=True)
class Definition:
    """A metric, or several with one definition.

    Attributes:
        name: as in scores; ``<metric>`` and ``<group>`` stand for what :data:`VARYING` says.
        group: of :data:`.editing.GROUPS`.
        definition: in words.
        unit: of the values.
        source: where it comes from.
    """

    name: str
    group: str
    definition: str
    unit: str
    source: str


_ROME, _MEMIT = "ROME (Meng et al. 2022)", "MEMIT (Meng et al. 2023)"
_MIRAGE = "The Mirage of Model Editing (Yang et al. 2025)"
_RIPPLE = "RippleEdits (Cohen et al. 2024)"
_WITHOUT = "arXiv:2601.17343"
DEFINITIONS = tuple(
    Definition(*row)
    for row in (
        ("efficacy", "editing", "CounterFact: P(new) > P(true) after the rewrite prompt", "%", _ROME),
        ("generalization", "editing", "CounterFact: share of paraphrases with P(new) > P(true)", "%", _ROME),
        ("specificity", "editing", "CounterFact: share of neighbours with P(answer) > P(new)", "%", _ROME),
        ("efficacy", "editing", "zsRE: share of the new object's tokens that are the first choice", "%", _MEMIT),
        ("generalization", "editing", "zsRE: the same share after the rephrased question", "%", _MEMIT),
        ("specificity", "editing", "zsRE: the same share of the unrelated answer's tokens", "%", _MEMIT),
        ("fluency", "editing", "weighted entropy of bigrams and trigrams of generated text", "bits × 100", _ROME),
        ("consistency", "editing", "TF-IDF cosine of generated text and reference texts", "cosine × 100", _ROME),
        (
            "argmax_efficacy",
            "argmax",
            "whether all tokens of the new object are the first choice after the rewrite prompt",
            "%",
            _MIRAGE,
        ),
        (
            "argmax_generalization",
            "argmax",
            "share of paraphrases after which all tokens of the new object are the first choice",
            "%",
            _MIRAGE,
        ),
        (
            "exact_<metric>",
            "generated",
            "share of greedy answers that are the object: the new one after the rewrite prompt and paraphrases, the "
            "probe's own after the first two locality probes of a record",
            "%",
            _MIRAGE,
        ),
        ("contains_<metric>", "generated", "share of greedy answers with the object's words in them", "%", _MIRAGE),
        ("kl", "locality", "D_KL(before ‖ after) of next tokens after locality probes", "nats", _WITHOUT),
        ("overlap_1", "locality", "share of locality probes with the same first choice as before", "%", _WITHOUT),
        ("overlap_5", "locality", "share of the five first choices that are those of before", "%", _WITHOUT),
        ("overlap_10", "locality", "share of the ten first choices that are those of before", "%", _WITHOUT),
        ("edited", "portability", "whether the greedy answer to the rewrite prompt names the new object", "%", _RIPPLE),
        (
            "executed",
            "portability",
            "share of consequences whose conditions were answered right before editing",
            "%",
            _RIPPLE,
        ),
        ("executed_<group>", "portability", "the same share of one group's consequences", "%", _RIPPLE),
        (
            "<group>",
            "portability",
            "share of a group's executed consequences that are answered right, of records whose edit succeeded",
            "%",
            _RIPPLE,
        ),
        (
            "all_<group>",
            "portability",
            "share of a group's executed consequences that are answered right, whether the edit succeeded or not",
            "%",
            "–",
        ),
        (
            "negation",
            "negation",
            "P(true) > P(new) after the rewrite prompt and “not”, where that ends in is, are, was or were",
            "%",
            "arXiv:2510.00625",
        ),
    )
)
