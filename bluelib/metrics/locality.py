"""How far an edit moves a model where it should not, without asking what is true (arXiv:2601.17343).

Next-token distributions before and after editing are compared, on the records' locality probes or on any prompts. The
measures are the divergence D_KL(before ‖ after) in nats, and the share, in per cent, of the k most probable tokens that
both have in common, for k of 1, 5 and 10. An answer that was wrong before counts as much as one that was right.

Of the model before editing, the inputs of the head are kept instead of the distributions: editing does not change the
head, and ``d_model`` numbers per prompt are as good as ``vocabulary``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from ..data import Record
from ..models.model import Model
from ..models.scoring import final_states, log_probs_of

TOP = (1, 5, 10)
#: Prompts whose distributions are compared at a time.
CHUNK = 256


@dataclass(frozen=True)
class Reference:
    """What a model said before it was edited.

    Attributes:
        prompts: the distinct prompts.
        states: what :func:`~bluelib.models.scoring.final_states` returned for them, ``(n, d_model)``.
    """

    prompts: tuple[str, ...]
    states: Tensor = field(repr=False)

    @classmethod
    def of(cls, model: Model, prompts: Sequence[str]) -> Reference:
        """What the model says now.

        Raises:
            ValueError: if there are no prompts; as :func:`~bluelib.models.scoring.final_states`.
        """
        distinct = tuple(dict.fromkeys(prompts))
        if not distinct:
            raise ValueError("there are no prompts to compare a model on")
        return cls(distinct, final_states(model, distinct))

    @torch.no_grad()
    def moved(self, model: Model, prompts: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
        """How far the model's distributions have moved since, by prompt: ``kl`` and ``overlap_1`` and so on.

        Args:
            model: the model now.
            prompts: only these of :attr:`prompts`; by default all.

        Raises:
            ValueError: if the model's states have another size, so it is another model.
        """
        if self.states.shape[1] != model.head.weight.shape[1]:
            raise ValueError(
                f"{model.name} has final states of {model.head.weight.shape[1]} numbers, and the reference's have "
                f"{self.states.shape[1]}: it is another model's"
            )
        wanted = {*self.prompts} if prompts is None else {*prompts}
        rows = [row for row, prompt in enumerate(self.prompts) if prompt in wanted]
        now = final_states(model, [self.prompts[row] for row in rows]) if rows else self.states[:0]
        found: dict[str, dict[str, float]] = {}
        for first in range(0, len(rows), CHUNK):
            part = rows[first : first + CHUNK]
            before, after = log_probs_of(model, self.states[part]), log_probs_of(model, now[first : first + CHUNK])
            columns = {"kl": divergences(before, after).tolist()}
            for k in TOP:
                columns[f"overlap_{k}"] = [
                    100 * len({*old} & {*new}) / k
                    for old, new in zip(before.topk(k).indices.tolist(), after.topk(k).indices.tolist(), strict=True)
                ]
            for i, row in enumerate(part):
                found[self.prompts[row]] = {name: values[i] for name, values in columns.items()}
        return found


def divergences(before: Tensor, after: Tensor) -> Tensor:
    """D_KL(before ‖ after) of each pair of rows of log-probabilities, in nats, ``(n,)`` float64."""
    before, after = before.double(), after.double()
    terms = torch.where(before.isneginf(), 0.0, before.exp() * (before - after))
    return terms.sum(-1).clamp_min(0.0)


def probes_of(records: Sequence[Record]) -> list[str]:
    """The prompts of the records' locality probes, with or without answers."""
    return [probe.prompt for record in records for probe in record.locality]


def locality(model: Model, records: Sequence[Record], reference: Reference) -> list[dict[str, float | int | str]]:
    """Per record, ``case_id`` and the means over its locality probes; only ``case_id`` for a record without probes.

    Raises:
        ValueError: if the reference lacks a probe; the message names the record.
    """
    known = set(reference.prompts)
    for record in records:
        for probe in record.locality:
            if probe.prompt not in known:
                raise ValueError(
                    f"record {record.case_id}: what the model said after {probe.prompt[:80]!r} before editing is not "
                    "known; take Before.of(model, records), with the same chat, before you edit"
                )
    moved = reference.moved(model, probes_of(records))
    rows: list[dict[str, float | int | str]] = []
    for record in records:
        own = [moved[probe.prompt] for probe in record.locality]
        means = {name: fmean(row[name] for row in own) for name in own[0]} if own else {}
        rows.append({"case_id": record.case_id, **means})
    return rows
