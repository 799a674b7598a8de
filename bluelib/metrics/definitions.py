"""What each metric is: :data:`DEFINITIONS`, which the page ``docs/metrics.md`` is made from."""

from __future__ import annotations

from dataclasses import dataclass

#: Of metrics that there are several of, what stands for the part of a name that differs.
VARYING = {
    "<prompt>": ("efficacy", "generalization", "specificity"),
    "<group>": ("Relation_Specificity", "Logical_Generalization", "and every other group of a record"),
}


@dataclass(frozen=True)
class Definition:
    """A metric, or several with one definition.

    Attributes:
        name: as in scores; ``<prompt>`` and ``<group>`` stand for what :data:`VARYING` says.
        group: of :data:`.editing.GROUPS`.
        definition: in words.
        unit: of the values.
        source: who asks for it.
    """

    name: str
    group: str
    definition: str
    unit: str
    source: str


_ROME, _MEMIT = "ROME (Meng et al. 2022)", "MEMIT (Meng et al. 2023)"
_MIRAGE = "The Mirage of Model Editing (Yang et al. 2025)"
_RIPPLE = "RippleEdits (Cohen et al. 2024)"
DEFINITIONS = tuple(
    Definition(*row)
    for row in (
        ("efficacy", "editing", "CounterFact: P(new) > P(true) after the rewrite prompt", "%", _ROME),
        ("efficacy", "editing", "zsRE: tokens of the new object that are the first choice there", "%", _MEMIT),
        ("generalization", "editing", "the same after paraphrases", "%", _ROME),
        ("specificity", "editing", "CounterFact: neighbours with P(answer) > P(new)", "%", _ROME),
        ("specificity", "editing", "zsRE: tokens of the unrelated answer that are the first choice", "%", _MEMIT),
        ("fluency", "editing", "weighted entropy of bigrams and trigrams of generated text", "bits × 100", _ROME),
        ("consistency", "editing", "TF-IDF cosine of generated text and reference texts", "cosine × 100", _ROME),
        (
            "argmax_efficacy",
            "argmax",
            "all tokens of the new object are the first choice there",
            "%",
            _MIRAGE,
        ),
        ("argmax_generalization", "argmax", "the same: share of paraphrases", "%", _MIRAGE),
        (
            "exact_<prompt>",
            "generated",
            "the greedy answer is the object, after SQuAD's normalisation: the new one after the rewrite prompt and "
            "paraphrases, the old answer after locality probes",
            "%",
            _MIRAGE,
        ),
        ("contains_<prompt>", "generated", "the object's words stand in the greedy answer", "%", _MIRAGE),
        ("kl", "locality", "D_KL(before ‖ after) of next tokens after locality probes", "nats", "arXiv:2601.17343"),
        ("overlap_1", "locality", "whether the first choice there is the same", "%", "arXiv:2601.17343"),
        ("overlap_5", "locality", "what the five first choices have in common", "%", "arXiv:2601.17343"),
        ("overlap_10", "locality", "what the ten first choices have in common", "%", "arXiv:2601.17343"),
        ("edited", "portability", "the greedy answer to the rewrite prompt names the new object", "%", _RIPPLE),
        ("executed", "portability", "consequences whose conditions were answered right before editing", "%", _RIPPLE),
        (
            "<group>",
            "portability",
            "executed consequences of a group that are answered right, of records whose edit succeeded",
            "%",
            _RIPPLE,
        ),
        ("all_<group>", "portability", "the same of all records, whether their edit succeeded or not", "%", "–"),
        (
            "negation",
            "negation",
            "P(true) > P(new) after the rewrite prompt and “not”, where that ends in is, are, was or were",
            "%",
            "arXiv:2510.00625",
        ),
    )
)
