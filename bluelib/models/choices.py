"""Where the paper's text and the family's public code differ: each point is an option with a name and both values.

The published tables were made by the code, so its values are the defaults. ``get_editor(..., text=True)`` and
``evaluate(..., measures=TEXT)`` take what the papers write; each option can also be given alone, by its name. The page
``docs/as-published.md`` is made from this table.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A point at which text and code differ.

    Attributes:
        name: of the option.
        of: what takes it: ``targets``, ``editor``, the name of an editor's factory, or ``metrics``.
        point: what is decided.
        published: the value of the option that the public code computes; the default.
        text: the value that the papers write.
        code_does, text_says: the two in words.
        source: where the text stands.
    """

    name: str
    of: str
    point: str
    published: Any
    text: Any
    code_does: str
    text_says: str
    source: str


CHOICES = {
    choice.name: choice
    for choice in (
        Choice(
            "kl_at",
            "targets",
            "where KL of “{subject} is a” is read",
            "subject",
            "prompt",
            "the next-token distribution at the subject's last token",
            "the next-token distribution after the prompt",
            "ROME (Meng et al. 2022), Eq. 4",
        ),
        Choice(
            "key_mean",
            "editor",
            "weights of the context prefixes in a key",
            "bare_half",
            "equal",
            "the bare prompt has one half, the prefixed ones share the other",
            "all prefixes weigh alike",
            "MEMIT (Meng et al. 2023), Eq. 19",
        ),
        Choice(
            "contexts",
            "editor",
            "length of the context prefixes, sampled with top-k 5",
            "ten_in_all",
            "ten_more",
            "five texts of ten tokens in all, opening word and BOS included",
            "nothing; the other value is ten tokens after each opening",
            "–",
        ),
        Choice(
            "order",
            "rect",
            "when RECT drops entries of Δ",
            "restored",
            "in_turn",
            "the layers are walked with the whole Δ, W is restored, and then each layer gets what is kept of its Δ",
            "each layer gets what is kept of its Δ before the next one is solved",
            "RECT (Gu et al. 2024)",
        ),
        Choice(
            "twice",
            "prune",
            "what PRUNE's damped sum is added to",
            True,
            False,
            "the weights that hold the undamped sum already",
            "the original weights",
            "PRUNE (Ma et al. 2025)",
        ),
        Choice(
            "relax",
            "pmet",
            "PMET's loss once the new object is the first choice",
            True,
            False,
            "the NLL counts a tenth, and a request stops when its weighted KL is at most 0.01",
            "nothing; the loss stays as it is",
            "–",
        ),
        Choice(
            "idf",
            "metrics",
            "inverse document frequencies of consistency",
            "fixed",
            "records",
            "of a fixed set: every reference text of the benchmark",
            "nothing; the other value is the reference texts of the records at hand",
            "–",
        ),
        Choice(
            "words",
            "metrics",
            "what fluency counts as a word",
            "nltk",
            "regex",
            "nltk's word tokenizer",
            "nothing; the other value is runs of letters, and single punctuation marks",
            "–",
        ),
        Choice(
            "score_bos",
            "metrics",
            "zsRE's answers where the tokenizer puts BOS before a text (Llama)",
            True,
            False,
            "the BOS is scored as a token of the answer",
            "accuracy of the answer's own tokens",
            "MEMIT (Meng et al. 2023)",
        ),
    )
}


def published(name: str) -> Any:
    """The default of an option: what the public code computes."""
    return CHOICES[name].published


def as_text(among: Collection[str]) -> dict[str, Any]:
    """The options among these names, as the papers' text has them."""
    return {name: choice.text for name, choice in CHOICES.items() if name in among}


def check_choice(name: str, value: Any) -> None:
    """Refuse a value that is neither the code's nor the text's.

    Raises:
        ValueError: naming the option, both values, and what each means.
    """
    choice = CHOICES[name]
    if not any(
        value is allowed or (isinstance(value, str) and value == allowed) for allowed in (choice.published, choice.text)
    ):
        raise ValueError(
            f"{name} must be {choice.published!r} (public code: {choice.code_does}) or {choice.text!r} "
            f"(text: {choice.text_says}), not {value!r}"
        )
