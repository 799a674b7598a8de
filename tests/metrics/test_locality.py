"""Locality without ground truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bluelib import edit_sequence, get_editor, load_dataset, load_model
from bluelib.metrics import locality as module
from bluelib.metrics.locality import Reference, locality, probes_of
from bluelib.models.scoring import next_token_log_probs


@pytest.fixture(scope="module")
def model():
    return load_model("pocket-llama")


@pytest.fixture(scope="module")
def records():
    return load_dataset("pocket-counterfact", split="report", limit=4)


def test_a_model_that_was_not_edited_has_not_moved(model, records):
    rows = locality(model, records, Reference.of(model, probes_of(records)))
    for record, row in zip(records, rows, strict=True):
        assert row == {"case_id": record.case_id, "kl": 0.0, "overlap_1": 100, "overlap_5": 100, "overlap_10": 100}


def test_divergence_and_overlap_are_those_of_the_whole_distributions(model, records, monkeypatch):
    prompts = probes_of(records)
    with torch.no_grad():
        before = {prompt: next_token_log_probs(model, [prompt])[0].double() for prompt in prompts}
    reference = Reference.of(model, prompts)
    monkeypatch.setattr(module, "CHUNK", 7)
    run = edit_sequence(model, records, get_editor("memit", model), batch_size=4, progress=False)
    try:
        rows = locality(model, records, reference)
        for record, row in zip(records, rows, strict=True):
            kl, overlaps = [], {k: [] for k in (1, 5, 10)}
            for probe in record.locality:
                with torch.no_grad():
                    now = next_token_log_probs(model, [probe.prompt])[0].double()
                old = before[probe.prompt]
                kl.append((old.exp() * (old - now)).sum().item())
                for k, found in overlaps.items():
                    found.append(100 * len({*old.topk(k).indices.tolist()} & {*now.topk(k).indices.tolist()}) / k)
            assert row["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-6) and row["kl"] > 0
            for k, found in overlaps.items():
                assert row[f"overlap_{k}"] == pytest.approx(sum(found) / len(found))
    finally:
        run.revert()


def test_what_cannot_be_compared(model, records):
    reference = Reference.of(model, probes_of(records[:1]))
    with pytest.raises(ValueError, match=f"record {records[1].case_id}: what the model said after .* is not known"):
        locality(model, records[:2], reference)
    with pytest.raises(ValueError, match="there are no prompts"):
        Reference.of(model, [])
    with pytest.raises(ValueError, match="the reference's have 7: it is another model's"):
        Reference(("a",), torch.zeros(1, 7)).moved(model)


def test_only_the_records_own_prompts_are_asked(model, records, monkeypatch):
    reference, asked = Reference.of(model, probes_of(records)), []
    states = module.final_states
    monkeypatch.setattr(module, "final_states", lambda *given: asked.extend(given[1]) or states(*given))
    rows = locality(model, records[1:2], reference)
    assert asked == list(dict.fromkeys(probes_of(records[1:2]))) and rows[0]["overlap_1"] == 100
    one = replace(records[0], locality=records[0].locality[:1])
    assert locality(model, [one], reference)[0]["overlap_1"] == 100
    assert locality(model, [replace(records[0], locality=())], reference) == [{"case_id": records[0].case_id}]
