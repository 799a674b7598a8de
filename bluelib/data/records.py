"""One record type for all benchmarks, and the checks that every record passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..prompts import Request


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

    def __post_init__(self) -> None:
        needed = ("prompt", "subject", "target_new", "target_true")
        for field in needed if self.kind == "counterfact" else needed[:3]:
            text = getattr(self, field)
            if not isinstance(text, str) or not text.strip():
                raise RecordError(f"record {self.case_id}: {field} must be a non-empty string, not {text!r}")
        if "{}" not in self.prompt:
            raise RecordError(f"record {self.case_id}: prompt must hold {{}} for the subject, not {self.prompt!r}")
        for field in ("paraphrases", "attribute_prompts", "generation_prompts", "reference_texts"):
            for text in getattr(self, field):
                if not isinstance(text, str) or not text.strip():
                    raise RecordError(f"record {self.case_id}: {field} holds {text!r}; non-empty strings are needed")
        for probe in self.locality:
            for text in (probe.prompt, probe.answer):
                if not isinstance(text, str) or not text.strip():
                    raise RecordError(f"record {self.case_id}: locality holds {text!r}; non-empty strings are needed")

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.subject, self.target_new)


def field(entry: Mapping[str, Any], path: str, case_id: object, kind: type | tuple[type, ...] = str) -> Any:
    """Look up a dotted path in a raw record.

    Raises:
        RecordError: naming the record and the field, if it is missing or of another type.
    """
    value: Any = entry
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise RecordError(f"record {case_id}: field {path!r} is missing")
        value = value[key]
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise RecordError(f"record {case_id}: field {path!r} must be {wanted}, not {type(value).__name__}")
    return value


def put_subject_out(prompt: str, subject: str, case_id: object, name: str) -> str:
    """Turn a full prompt into a template: its last mention of the subject becomes ``{}``.

    Raises:
        RecordError: if the prompt does not mention the subject.
    """
    if not subject.strip():
        raise RecordError(f"record {case_id}: subject must be a non-empty string, not {subject!r}")
    at = prompt.rfind(subject)
    if at < 0:
        raise RecordError(f"record {case_id}: field {name!r} does not mention the subject {subject!r}: {prompt!r}")
    return prompt[:at] + "{}" + prompt[at + len(subject) :]
