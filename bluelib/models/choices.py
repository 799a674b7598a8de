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
        name: the option's name.
        of: what takes the option: ``targets``, ``editor``, the name of an editor's factory, or ``metrics``.
        point: what is decided.
        published: the value of the option that the public code computes; the default.
        text: the value that the papers write.
        code_does, text_says: the two in words.
        source: the paper that has the text.
        other: a further value, which is neither of the two: that of one part of the public code.
    """

    name: str
    of: str
    point: str
    published: Any
    text: Any
    code_does: str
    text_says: str
    source: str
    other: Any = None

    @property
    def values(self) -> tuple[Any, ...]:
        """All values, the default first."""
        return tuple(dict.fromkeys(v for v in (self.published, self.text, self.other) if v is not None))


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
            "(no paper says so) ten tokens after each opening",
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
            "(no paper says so) the loss stays as it is",
            "–",
        ),
        Choice(
            "idf",
            "metrics",
            "inverse document frequencies of consistency",
            "fixed",
            "records",
            "of a fixed set: every reference text of the benchmark",
            "(no paper says so) of the reference texts of the records at hand",
            "–",
        ),
        Choice(
            "words",
            "metrics",
            "what fluency counts as a word",
            "nltk",
            "regex",
            "nltk's word tokenizer",
            "(no paper says so) runs of letters, and single punctuation marks",
            "–",
        ),
        Choice(
            "score_bos",
            "metrics",
            "zsRE's answers where the tokenizer puts BOS before a text (Llama)",
            False,
            False,
            "the BOS is taken off; MEMIT's own code, which knows no such tokenizer, scores it as a token of the answer",
            "accuracy of the answer's own tokens",
            "MEMIT (Meng et al. 2023)",
            other=True,
        ),
    )
}


def published(name: str) -> Any:
    """The default of an option: what the public code computes."""
    return CHOICES[name].published


def as_text(among: Collection[str], method: str = "") -> dict[str, Any]:
    """The options among these names, with the values of the papers' text. Options of single methods are left out,
    except those of ``method``."""
    own = (*_SHARED, method)
    return {name: choice.text for name, choice in CHOICES.items() if name in among and choice.of in own}


#: The values of ``Choice.of`` that are not a single method.
_SHARED = ("targets", "editor", "metrics")


def check_choice(name: str, value: Any) -> None:
    """Refuse a value that an option does not have.

    Raises:
        ValueError: if the value is refused; the message names the option, its values and what they mean.
    """
    choice = CHOICES[name]
    if not any(type(value) is type(allowed) and value == allowed for allowed in choice.values):
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, choice.values))}, not {value!r}; "
            f"public code ({choice.published!r}): {choice.code_does}; text ({choice.text!r}): {choice.text_says}"
        )
