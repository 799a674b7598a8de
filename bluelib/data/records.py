"""One record type for all benchmarks, and the checks that every record passes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..models.prompts import Request, visible


class RecordError(ValueError):
    """A record that cannot be used; the message names its id and field and says what would be right."""


@dataclass(frozen=True)
class Probe:
    """A prompt about something that an edit must leave alone, with its true answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Record:
    """An edit with everything it is evaluated on.

    Attributes:
        case_id: the record's id in its benchmark.
        kind: which benchmark's metrics apply: ``counterfact`` compares the probabilities of two objects, ``zsre``
            counts tokens predicted right.
        prompt: the rewrite prompt, with ``{}`` for the subject.
        subject, target_new, target_true: the edit. ``target_true`` is what the unedited model should say; zsRE's
            metrics do not read it, and it may be None there.
        paraphrases: full prompts that ask the same in other words.
        locality: probes about other subjects.
        relation: the relation's id, where the benchmark has one.
        attribute_prompts: prompts about subjects that have the new object by nature.
        generation_prompts, reference_texts: for fluency and consistency; empty where the benchmark has none.
        questions: full questions about the edited fact, where the benchmark has any.
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

    def __post_init__(self) -> None:
        if self.kind not in ("counterfact", "zsre"):
            raise RecordError(f"record {self.case_id}: kind must be counterfact or zsre, not {self.kind!r}")
        needed = ("prompt", "subject", "target_new", "target_true")
        optional = self.kind == "zsre" and self.target_true is None
        for field in needed[:3] if optional else needed:
            text = getattr(self, field)
            if wrong := _wrong(text):
                raise RecordError(f"record {self.case_id}: {field} must be a {wrong}, not {text!r}")
        if self.prompt.count("{}") != 1:
            raise RecordError(
                f"record {self.case_id}: prompt must hold {{}} for the subject, and once, not {self.prompt!r}"
            )
        if self.kind == "counterfact" and self.target_new.strip() == str(self.target_true).strip():
            raise RecordError(
                f"record {self.case_id}: target_new must be another object than target_true; "
                f"both are {self.target_new!r}"
            )
        texts = {name: getattr(self, name) for name in _LISTS}
        for name, listed in texts.items():
            if not isinstance(listed, (tuple, list)):
                raise RecordError(f"record {self.case_id}: {name} must be a tuple, not {listed!r}")
        texts["locality"] = [text for probe in self.locality for text in (probe.prompt, probe.answer)]
        for name, listed in texts.items():
            for text in listed:
                if wrong := _wrong(text):
                    raise RecordError(f"record {self.case_id}: {name} holds {text!r}; each must be a {wrong}")

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.subject, self.target_new)


_LISTS = ("paraphrases", "locality", "attribute_prompts", "generation_prompts", "reference_texts", "questions")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _wrong(text: Any) -> str:
    """What a text of a record must be and this is not; empty if it can be used."""
    if not isinstance(text, str) or not text.strip():
        return "non-empty string"
    if not visible(text):
        return "text with a visible character"
    if _SURROGATE.search(text):
        return "text without lone surrogates, which no tokenizer reads"
    return ""


#: The default of a field that must be there.
_NEEDED = object()


def field(
    entry: Mapping[str, Any],
    path: str,
    case_id: object,
    kind: type | tuple[type, ...] = str,
    default: Any = _NEEDED,
) -> Any:
    """Look up a dotted path in a raw record; a missing one has the ``default``, if there is any.

    Raises:
        RecordError: naming the record and the field, if it is missing or of another type; a bool is no int.
    """
    value: Any = entry
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            if default is not _NEEDED:
                return default
            raise RecordError(f"record {case_id}: field {path!r} is missing")
        value = value[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise RecordError(f"record {case_id}: field {path!r} must be {wanted}, not {type(value).__name__}")
    return value


def record_id(entry: Mapping[str, Any], position: int, needed: bool = False) -> int | str:
    """A raw record's id: its ``case_id``, or, where that is not ``needed``, its position if it has none.

    Raises:
        RecordError: if ``case_id`` is needed and missing, or neither an int nor a string that can be printed.
    """
    if not needed and "case_id" not in entry:
        return position
    found = field(entry, "case_id", f"at position {position}", (int, str))
    if isinstance(found, str) and (wrong := _wrong(found)):
        raise RecordError(f"record at position {position}: field 'case_id' must be a {wrong}, not {found!r}")
    return found


def put_subject_out(prompt: str, subject: str, case_id: object, name: str) -> str:
    """Turn a full prompt into a template: its last mention of the subject becomes ``{}``.

    A mention that stands for itself goes before one inside a longer word (of "Ann" in "Where does Ann meet Annette?"
    the first). One whose last letter bears a further mark is none: it ends in another letter.

    Raises:
        RecordError: if the prompt does not mention the subject, or has a ``{}`` of its own.
    """
    if not subject.strip():
        raise RecordError(f"record {case_id}: subject must be a non-empty string, not {subject!r}")
    starts = [match.start() for match in re.finditer(f"(?={re.escape(subject)})", prompt)]
    places = [at for at in starts if not _is_mark(prompt[at + len(subject) :][:1])]
    if not places:
        raise RecordError(f"record {case_id}: field {name!r} does not mention the subject {subject!r}: {prompt!r}")
    at = max(places, key=lambda at: (not _inside_word(prompt, at, at + len(subject)), at))
    template = prompt[:at] + "{}" + prompt[at + len(subject) :]
    if template.count("{}") != 1:
        raise RecordError(f"record {case_id}: field {name!r} holds {{}} besides the subject: {prompt!r}")
    return template


def _inside_word(text: str, start: int, end: int) -> bool:
    return any(0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at]) for at in (start, end))


def _in_word(character: str) -> bool:
    return character.isalnum() or _is_mark(character)


def _is_mark(character: str) -> bool:
    """Whether it changes the letter before it: an accent, a variation selector, a joiner."""
    return bool(character) and (unicodedata.category(character)[0] == "M" or character == "\u200d")
