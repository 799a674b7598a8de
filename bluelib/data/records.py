"""One record type for all benchmarks, and the checks that every record passes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from difflib import SequenceMatcher
from typing import Any, Literal

from ..models.prompts import Request, visible


class RecordError(ValueError):
    """A record that cannot be used; the message names its id and field and says what would be right."""


@dataclass(frozen=True)
class Probe:
    """A prompt about something that an edit must leave alone, with its true answer; with None, nothing is measured."""

    prompt: str
    answer: str | None = None


@dataclass(frozen=True)
class Query:
    """A prompt with its answers.

    Attributes:
        prompt: a full prompt.
        answers: the things that must all be named, each by any of its names.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Consequence:
    """What follows from an edit, or stays as it was: a test of RippleEdits (Cohen et al. 2024).

    Attributes:
        queries: what is asked after editing.
        every: whether all of them must be answered right, or any one.
        conditions: queries that must all be answered right before editing; otherwise the test shows nothing.
    """

    queries: tuple[Query, ...]
    every: bool = False
    conditions: tuple[Query, ...] = ()


@dataclass(frozen=True)
class Record:
    """An edit with everything it is evaluated on.

    Attributes:
        case_id: the record's id in its benchmark.
        kind: which benchmark's metrics apply: ``counterfact`` compares the probabilities of two objects, ``zsre``
            counts correctly predicted tokens.
        prompt: the rewrite prompt, with ``{}`` for the subject.
        subject, target_new, target_true: the edit. ``target_true`` is what the unedited model should say, or None.
            Without it, CounterFact's metrics that compare the two objects are left out; zsRE's do not read it.
        paraphrases: full prompts that ask the same in other words.
        locality: probes about other subjects.
        relation: the relation's id, where the benchmark has one.
        attribute_prompts: prompts about subjects that have the new object by nature.
        generation_prompts, reference_texts: for fluency and consistency; empty where the benchmark has none.
        questions: whole questions that the new object answers.
        portability: what follows from the edit, in named groups.
        together: ids of the records that form one case with this one: ``portability`` follows from all of them.
        before: a text in front of the rewrite prompt, and of a context prefix too, see :func:`.in_chat`; the full
            prompts have it in them.
        separator: the text between every prompt of the record and its target, a space or nothing; if None,
            :func:`.joiner` decides.

    A space at the end of a prompt that targets follow belongs to the target, and is removed.
    """

    case_id: int | str
    kind: Literal["counterfact", "zsre"]
    prompt: str
    subject: str
    target_new: str
    target_true: str | None
    paraphrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    relation: str | None = None
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    portability: Mapping[str, tuple[Consequence, ...]] = dataclass_field(default_factory=dict, hash=False)
    together: tuple[int | str, ...] = ()
    before: str = ""
    separator: str | None = None

    def __post_init__(self) -> None:
        self._take_spaces_off()  # sets the separator, too, if a prompt ended in it
        if self.separator not in (None, "", " "):
            raise RecordError(f"record {self.case_id}: separator must be a space or empty, not {self.separator!r}")
        if self.kind not in ("counterfact", "zsre"):
            raise RecordError(f"record {self.case_id}: kind must be counterfact or zsre, not {self.kind!r}")
        needed = ("prompt", "subject", "target_new", "target_true")
        for field in needed[:3] if self.target_true is None else needed:
            text = getattr(self, field)
            if wrong := _wrong(text):
                raise RecordError(f"record {self.case_id}: {field} must be a {wrong}, not {text!r}")
        if self.prompt.count("{}") != 1:
            raise RecordError(
                f"record {self.case_id}: prompt must contain {{}} for the subject exactly once, not {self.prompt!r}"
            )
        true = self.target_true
        if self.kind == "counterfact" and true is not None and self.target_new.strip() == true.strip():
            raise RecordError(
                f"record {self.case_id}: target_new must differ from target_true; both are {self.target_new!r}"
            )
        texts = {name: getattr(self, name) for name in _LISTS}
        for name, listed in texts.items():
            if not isinstance(listed, (tuple, list)):
                raise RecordError(f"record {self.case_id}: {name} must be a tuple, not {listed!r}")
        answers = [probe.answer for probe in self.locality if probe.answer is not None]
        texts["locality"] = [*(probe.prompt for probe in self.locality), *answers]
        texts["portability"] = [text for listed in self.portability.values() for one in listed for text in _said(one)]
        for name, listed in texts.items():
            for text in listed:
                if wrong := _wrong(text):
                    raise RecordError(f"record {self.case_id}: {name} holds {text!r}; each must be a {wrong}")

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.subject, self.target_new, self.before, self.separator)

    def _take_spaces_off(self) -> None:
        """Remove spaces and tabs at the end of every prompt; what is not text is left for the checks."""

        def bare(value: Any) -> Any:
            if isinstance(value, Probe):
                return replace(value, prompt=bare(value.prompt))
            if isinstance(value, (tuple, list)):
                return type(value)(map(bare, value))
            return bare_end(value) if isinstance(value, str) else value

        if isinstance(self.prompt, str) and isinstance(self.subject, str) and bare_end(self.prompt).endswith("{}"):
            object.__setattr__(self, "subject", bare_end(self.subject) or self.subject)
        if self.separator == "" and isinstance(self.prompt, str) and bare_end(self.prompt) != self.prompt:
            object.__setattr__(self, "separator", " ")
        for name in ("prompt", "paraphrases", "locality", "generation_prompts"):
            object.__setattr__(self, name, bare(getattr(self, name)))


_SPACES = "".join(map(chr, (9, 0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)))


def bare_end(text: str) -> str:
    """A text without spaces of any kind at its end; line breaks stay."""
    return text.rstrip(_SPACES)


_LISTS = ("paraphrases", "locality", "attribute_prompts", "generation_prompts", "reference_texts", "questions")


def _said(consequence: Consequence) -> list[str]:
    """Every text of a consequence."""
    queries = (*consequence.queries, *consequence.conditions)
    return [text for query in queries for text in (query.prompt, *(name for names in query.answers for name in names))]


_SURROGATE = re.compile("[\ud800-\udfff]")


def _wrong(text: Any) -> str:
    """What a text of a record must be but this one is not; empty if it can be used."""
    if not isinstance(text, str) or not text.strip():
        return "non-empty string"
    if not visible(text):
        return "text with a visible character"
    if _SURROGATE.search(text):
        return "text without lone surrogates, which no tokenizer reads"
    return ""


#: The default that stands for a field that must be there.
_NEEDED = object()


def field(
    entry: Mapping[str, Any],
    path: str,
    case_id: object,
    kind: type | tuple[type, ...] = str,
    default: Any = _NEEDED,
) -> Any:
    """Look up a dotted path in a raw record; if it is missing, return the ``default``, if one is given.

    Raises:
        RecordError: if the field is missing, or of another type, see :func:`checked`; the message names the record and
            the field.
    """
    value: Any = entry
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            if default is not _NEEDED:
                return default
            raise RecordError(f"record {case_id}: field {path!r} is missing")
        value = value[key]
    return checked(value, path, case_id, kind)


def checked(value: Any, name: str, case_id: object, kind: type | tuple[type, ...] = str) -> Any:
    """A value of a raw record, if it is of this type; a bool does not count as an int.

    Raises:
        RecordError: if it is of another type; the message names the record and the field. A number does not count as a
            string, because nothing says how to write it.
    """
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    if kind in (str, (str, list)) and isinstance(value, (int, float)) and not isinstance(value, bool):
        raise RecordError(
            f'record {case_id}: field {name!r} must be a string: write "{value}" with quotes, not the number {value}'
        )
    wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
    raise RecordError(f"record {case_id}: field {name!r} must be {wanted}, not {type(value).__name__}")


def record_id(entry: Mapping[str, Any], position: int) -> int | str:
    """A raw record's id: its ``case_id``, or its position if it has none.

    Raises:
        RecordError: if ``case_id`` is neither an int nor a string that can be printed.
    """
    if "case_id" not in entry:
        return position
    found = field(entry, "case_id", f"at position {position}", (int, str))
    if isinstance(found, str) and (wrong := _wrong(found)):
        raise RecordError(f"record at position {position}: field 'case_id' must be a {wrong}, not {found!r}")
    return found


def put_subject_out(prompt: str, subject: str, case_id: object, name: str) -> str:
    """Turn a full prompt into a template: its last mention of the subject becomes ``{}``.

    A mention as whole words is preferred to one inside a longer word (for "Ann" in "Where does Ann meet Annette?", the
    first). If a further mark follows its last letter, it is not a mention: it ends in another letter.

    Raises:
        RecordError: if the prompt does not mention the subject, or has a ``{}`` of its own.
    """
    if not subject.strip():
        raise RecordError(f"record {case_id}: subject must be a non-empty string, not {subject!r}")
    starts = [match.start() for match in re.finditer(f"(?={re.escape(subject)})", prompt)]
    places = [at for at in starts if not _is_mark(prompt[at + len(subject) :][:1])]
    if not places:
        near = _nearest(prompt, subject)
        if unicodedata.normalize("NFC", subject) in unicodedata.normalize("NFC", prompt):
            raise RecordError(
                f"record {case_id}: field {name!r} and the subject write {subject!r} with other characters that look "
                "the same (Unicode's composed and decomposed forms): write both in one of them, such as NFC"
            )
        raise RecordError(
            f"record {case_id}: field {name!r} does not mention the subject {subject!r}: {prompt!r}"
            + (f"; did you mean {near!r}? The prompt must mention the subject letter for letter" if near else "")
        )
    at = max(places, key=lambda at: (not _inside_word(prompt, at, at + len(subject)), at))
    template = prompt[:at] + "{}" + prompt[at + len(subject) :]
    if template.count("{}") != 1:
        raise RecordError(f"record {case_id}: field {name!r} contains {{}} besides the subject: {prompt!r}")
    return template


def put_subject_in(prompt: str, subject: str, case_id: object, name: str) -> str:
    """The template of a prompt that has ``{}`` already, or mentions the subject, see :func:`put_subject_out`.

    A ``{}`` is the subject's place unless the prompt also mentions the subject as a word of its own.

    Raises:
        RecordError: for a prompt with neither, or with both.
    """
    mentions = re.finditer(f"(?={re.escape(subject)})", prompt) if subject.strip() else ()
    alone = [m for m in mentions if not _inside_word(prompt, m.start(), m.start() + len(subject))]
    return prompt if "{}" in prompt and not alone else put_subject_out(prompt, subject, case_id, name)


#: How alike two texts must be, from 0 to 1, for one to be suggested for the other.
_ALIKE = 0.6


def _nearest(prompt: str, subject: str) -> str | None:
    """The words of a prompt that are most like the subject, if any are; capitals and accents make no difference."""

    def bare(text: str) -> str:
        split = unicodedata.normalize("NFKD", text)
        return "".join(character for character in split if not _is_mark(character)).casefold()

    words = [match.span() for match in re.finditer(r"\w\S*(?<=\w)", prompt)]
    lengths = range(1, len(subject.split()) + 2)
    found = [prompt[words[i][0] : words[i + n - 1][1]] for n in lengths for i in range(len(words) - n + 1)]
    likeness = {text: SequenceMatcher(None, bare(text), bare(subject)).ratio() for text in found}
    best = max(found, key=lambda text: likeness[text], default=None)
    return best if best is not None and likeness[best] >= _ALIKE else None


def _inside_word(text: str, start: int, end: int) -> bool:
    return any(0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at]) for at in (start, end))


def _in_word(character: str) -> bool:
    return character.isalnum() or _is_mark(character)


def _is_mark(character: str) -> bool:
    """Whether a character changes the letter before it: an accent, a variation selector, a joiner."""
    return bool(character) and (unicodedata.category(character)[0] == "M" or character == "\u200d")
