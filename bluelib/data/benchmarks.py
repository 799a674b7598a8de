"""Parsers of the benchmarks' own schemas into :class:`~bluelib.data.records.Record`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .consequences import portability_of
from .records import Probe, Record, RecordError, field, put_subject_out, record_id


def parse_counterfact(entry: Mapping[str, Any], position: int) -> Record:
    """A record of ``counterfact.json`` or ``multi_counterfact.json`` (Meng et al. 2022).

    The edit itself must be there. Other prompts may be missing; then what they measure is left out.
    """
    case_id = record_id(entry, position)

    def text(path: str) -> str:
        return field(entry, path, case_id)

    def texts(path: str) -> tuple[str, ...]:
        return tuple(field(entry, path, case_id, list, default=()))

    true = field(entry, "requested_rewrite.target_true.str", case_id, default=None)
    return Record(
        case_id=case_id,
        kind="counterfact",
        prompt=text("requested_rewrite.prompt"),
        subject=text("requested_rewrite.subject"),
        target_new=text("requested_rewrite.target_new.str"),
        target_true=true,
        relation=field(entry, "requested_rewrite.relation_id", case_id, default=None),
        paraphrases=texts("paraphrase_prompts"),
        locality=tuple(Probe(prompt, true) for prompt in texts("neighborhood_prompts")),
        attribute_prompts=texts("attribute_prompts"),
        generation_prompts=texts("generation_prompts"),
        reference_texts=texts("reference_texts"),
        questions=texts("questions"),
        portability=portability_of(entry, case_id),
        separator=field(entry, "separator", case_id, default=None),
    )


def parse_zsre(entry: Mapping[str, Any], position: int, target: str = "answers") -> Record:
    """A record of ``zsre_mend_eval.json`` (Mitchell et al. 2022).

    Args:
        entry: the raw record.
        position: where it stands in its file. This is its id, since the format has none.
        target: what the edit should make the model say: ``answers``, the right answer, as the MEMIT family's code
            does for models that do not know it; or ``alt``, MEND's alternative answer, for models that do.
    """
    case_id = record_id(entry, position)
    subject = field(entry, "subject", case_id)
    answers = field(entry, "answers", case_id, list)
    if not answers or not isinstance(answers[0], str):
        raise RecordError(f"record {case_id}: field 'answers' must start with a string")
    unrelated, rephrased = (field(entry, name, case_id, default=None) for name in ("loc", "rephrase"))
    if unrelated is not None and not unrelated.strip():
        raise RecordError(f"record {case_id}: field 'loc' must be a non-empty string, not {unrelated!r}")
    if target not in ("answers", "alt"):
        raise ValueError(f"the target of zsRE edits is 'answers' or 'alt', not {target!r}")
    return Record(
        case_id=case_id,
        kind="zsre",
        prompt=put_subject_out(field(entry, "src", case_id), subject, case_id, "src"),
        subject=subject,
        target_new=answers[0] if target == "answers" else field(entry, "alt", case_id),
        target_true=answers[0] if target == "alt" else None,
        paraphrases=() if rephrased is None else (rephrased,),
        locality=() if unrelated is None else (Probe(unrelated + "?", field(entry, "loc_ans", case_id)),),
        portability=portability_of(entry, case_id) if target == "alt" else {},  # EasyEdit's follows from ``alt``
        separator=field(entry, "separator", case_id, default=None),
    )


def reference_texts(
    snippets: Iterable[Mapping[str, Any]], wanted: Collection[tuple[str | None, str | None]]
) -> dict[tuple[str | None, str | None], tuple[str, ...]]:
    """Texts of ``attribute_snippets.json`` (Meng et al. 2022) about subjects that have a certain object.

    Args:
        snippets: the file's entries, each with ``relation_id``, ``target_id`` and ``samples``.
        wanted: pairs of a relation's and an object's id; a pair that lacks one of them has no texts.

    Returns:
        The texts of all samples of each wanted pair, in the file's order, without blank ones.

    Raises:
        RecordError: if an entry lacks a field.
    """
    found: dict[tuple[str | None, str | None], list[str]] = {pair: [] for pair in wanted}
    for position, entry in enumerate(snippets):
        where = f"at position {position} of the snippets"
        texts = found.get((field(entry, "relation_id", where), field(entry, "target_id", where)))
        if texts is not None:
            samples = (field(sample, "text", where) for sample in field(entry, "samples", where, list))
            texts.extend(text for text in samples if text.strip())
    return {pair: tuple(texts) for pair, texts in found.items()}
