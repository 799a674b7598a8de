"""One edit at a time against the same edits in sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bluelib import Before, edit_sequence, evaluate, get_editor, load_dataset
from bluelib.io.formats import read_json
from bluelib.metrics import Scores
from bluelib.metrics.editing import per_record
from bluelib.studies import single as module
from bluelib.studies.single import METRICS, PROTOCOLS, single, singles

HOW = {"dataset": "pocket-ripple", "edits": 4}


@pytest.mark.slow
def test_each_edit_is_evaluated_alone_and_then_all_at_the_end_of_their_sequence(llama, project):
    """With a method that remembers: what is prepared once for all of them must not be changed by one."""
    editor = "alphaedit"
    unedited = llama.weight(0).clone()
    path = single(llama, editor, **HOW)
    assert llama.weight(0).equal(unedited), "the model is left as it was"
    records = load_dataset("pocket-ripple", split="report", limit=4)
    before = Before.of(llama, records, METRICS)
    how = {"generate": False, "metrics": METRICS, "before": before}

    def edited(chosen):
        run = edit_sequence(llama, chosen, get_editor(editor, llama), batch_size=1)
        try:
            return evaluate(llama, chosen, **how).records
        finally:
            run.revert()

    content = read_json(path)
    assert content["single"] == per_record(Scores(tuple(row for one in records for row in edited([one]))))
    assert content["sequential"] == per_record(Scores(edited(records)))
    assert content["single"] != content["sequential"]
    frame = singles([path])
    assert frame.protocol.tolist() == list(PROTOCOLS) and frame.scores[0]["efficacy"] == content["single"]["efficacy"]
    written = path.stat().st_mtime_ns
    assert single(llama, editor, **HOW) == path and path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_next_edit(llama, project, monkeypatch):
    path = single(llama, "memit_blue", **HOW)
    whole = read_json(path)
    path.unlink()
    alone, made = module._alone, []

    def interrupted(model, method, case, *how):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(case[0].case_id)
        return alone(model, method, case, *how)

    monkeypatch.setattr(module, "_alone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        single(llama, "memit_blue", **HOW)
    assert not path.exists()
    later = []
    monkeypatch.setattr(module, "_alone", lambda *given: later.append(given[2][0].case_id) or alone(*given))
    again = read_json(single(llama, "memit_blue", **HOW))
    assert made + later == whole["case_ids"] and len(later) == 2
    assert again["single"] == whole["single"] and again["sequential"] == whole["sequential"]
    assert not (project / "results" / "raw" / "single" / path.stem).exists()


def test_records_that_form_one_case_are_edited_together(llama):
    records = load_dataset("pocket-ripple", split="report", limit=5)
    ids = [record.case_id for record in records]
    records[2] = replace(records[2], together=(ids[0], ids[1]))
    records[4] = replace(records[4], together=(ids[3],))
    assert [[record.case_id for record in case] for case in module._cases(records)] == [ids[:3], ids[3:]]


def test_both_protocols_make_one_edit_a_batch_and_ask_the_same(llama, project, monkeypatch):
    """A case of two records, one after the other; and what another case edits is asked in neither protocol."""
    records = load_dataset("pocket-ripple", split="report", limit=4)
    records[1] = replace(records[1], together=(records[0].case_id,))
    (group, (first, *_)) = next(iter(records[3].portability.items()))
    asks = replace(first, queries=(replace(first.queries[0], prompt=records[0].request.text),))
    records[3] = replace(records[3], portability={**records[3].portability, group: (asks,), "other": (asks, first)})
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: records)
    sizes, sequence, asked, measure = [], module.edit_sequence, [], module.evaluate

    def edit(*given, **how):
        run = sequence(*given, **how)
        sizes.append([batch["edits"] for batch in run.batches])
        return run

    monkeypatch.setattr(module, "edit_sequence", edit)
    monkeypatch.setattr(module, "evaluate", lambda m, chosen, **how: asked.extend(chosen) or measure(m, chosen, **how))
    content = read_json(single(llama, "memit", **HOW))
    assert sizes == [[1, 1], [1], [1], [1] * 4]
    assert asked[:4] == asked[4:] and group not in asked[3].portability and asked[3].portability["other"] == (first,)
    for protocol in PROTOCOLS:
        assert content[protocol][f"executed_{group}"][3] is None


def test_a_metric_or_an_option_that_does_not_exist_is_refused_before_anything_runs(llama, project):
    with pytest.raises(ValueError, match="there is no 'ripples'"):
        single(llama, "memit", metrics=("ripples",), **HOW)
    with pytest.raises(ValueError, match="editor 'memit' has no hyper-parameter depth"):
        single(llama, "memit", options={"depth": 3}, **HOW)
    assert not (project / "results").exists()
