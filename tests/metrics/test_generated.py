"""Answers in the model's own words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bluelib import edit_sequence, evaluate, get_editor, load_dataset, load_model
from bluelib.data import Record
from bluelib.metrics import generated as module_of_answers
from bluelib.metrics import negation as module
from bluelib.metrics.before import Before
from bluelib.metrics.generated import CONTEXTS, INSTRUCTION, Answer, ask_all, measured, normalise
from bluelib.metrics.negation import negated, negation
from bluelib.metrics.portability import answered
from bluelib.models import generation as module_of_generation
from bluelib.models.generation import answer, continue_greedily, end_tokens
from bluelib.models.prompts import encode_prompt, encode_target
from bluelib.models.scoring import TargetScore, score_targets


@pytest.fixture(scope="module")
def model():
    return load_model("pocket-llama")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  an  U.S. president ", "us president"),
        ("theatre", "theatre"),
        ("a", ""),
        ("Île-de-France", "îledefrance"),
    ],
)
def test_squad_s_normalisation(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("said", "expected", "exact", "contains"),
    [
        ("Rome", "rome", True, True),
        ("the city of Rome, Italy", "Rome", False, True),
        ("Romeo", "Rome", False, False),
        ("New York City", "York City", False, True),
        ("", "Rome", False, False),
        ("", "The", False, False),
        ("The", "The", True, True),
        ("James L. Brooks", "James L. Brooks", True, True),
    ],
)
def test_an_answer_is_exact_or_contains_the_object_s_words(said, expected, exact, contains):
    one = Answer(1, 0, "efficacy", "bare", "p", expected, said)
    assert (one.exact, one.contains) == (exact, contains)


def written_out(model, prompt, tokens):
    """One token at a time, the whole text each time."""
    ids, text = list(encode_prompt(model.tokenizer, prompt)), ""
    begin = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            token = model.hf_model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token in end_tokens(model):
            break
        ids.append(token)
        text = model.tokenizer.decode(ids[begin:], skip_special_tokens=True).lstrip()
        if "." in text or "\n" in text:
            return text.split(".")[0].split("\n")[0].strip()
    return text.strip()


@pytest.mark.parametrize("stage", [1, 3, 12])
def test_answers_of_a_batch_are_those_of_each_prompt_alone(model, stage, monkeypatch):
    monkeypatch.setattr("bluelib.models.generation.FIRST_STAGE", stage)
    records = load_dataset("pocket-counterfact", split="report", limit=4)
    prompts = [text for record in records for text in (record.request.text, *record.paraphrases)]
    assert len({len(encode_prompt(model.tokenizer, prompt)) for prompt in prompts}) > 2
    assert answer(model, prompts, tokens=12) == [written_out(model, prompt, 12) for prompt in prompts]
    assert answer(model, prompts[:1], tokens=1) == [written_out(model, prompts[0], 1)]
    assert answer(model, []) == []


def test_answers_need_no_padding_token(model):
    prompts = ["Ada", "The mother tongue of Ada Lovelace is"]
    padding, model.tokenizer.pad_token = model.tokenizer.pad_token, None
    try:
        assert answer(model, prompts, tokens=4) == [written_out(model, prompt, 4) for prompt in prompts]
    finally:
        model.tokenizer.pad_token = padding


def test_what_is_blank_at_the_beginning_ends_nothing(model, monkeypatch):
    """As where a question is answered on the next line."""
    texts = ["\n", "\n\n", " ", "Rome", ".", " It", "is"]
    monkeypatch.setattr(model.tokenizer, "batch_decode", lambda ids: (texts + ["x"] * len(ids))[: len(ids)])
    kinds = replace(module_of_generation._kinds(model, ".\n|"), ends=[7])
    rows = torch.tensor([[0, 2, 1, 3, 4], [3, 0, 5, 6, 6], [4, 3, 3, 3, 3]])
    stopping = module_of_generation._Stopping(kinds, torch.tensor([False] * 3))
    ended = torch.stack([stopping(rows[:, : i + 1], None) for i in range(5)], 1)
    assert ended.tolist() == [[False] * 4 + [True], [False] + [True] * 4, [True] * 5]
    begun = module_of_generation._Stopping(kinds, torch.tensor([True] * 3))
    assert begun(rows[:, :1], None).tolist() == [True, False, True], "after tokens that were generated before"
    assert begun(torch.tensor([[3], [7], [3]]), None).tolist() == [True, True, True], "and at a text's end"


def test_an_object_with_a_full_stop_is_not_cut_at_it(model, monkeypatch):
    said = {".。\n": "Rome", "\n": "James L. Brooks. He wrote. It"}
    monkeypatch.setattr(module_of_answers, "answer", lambda m, prompts, tokens, stops: [said[stops]] * len(prompts))
    base = load_dataset("pocket-counterfact", split="report", limit=1)[0]
    records = [replace(base, target_new=new, paraphrases=(), locality=()) for new in ("Rome", "James L. Brooks", "Mr.")]
    answers = ask_all(model, records)
    assert [one.text for one in answers] == ["Rome", "James L. Brooks", "James L"]
    assert [row["exact_efficacy"] for row in measured(answers)] == [100, 100, 0]  # one id, and three rows


def test_a_model_is_asked_for_new_objects_and_for_what_others_had(model):
    record = load_dataset("pocket-counterfact", split="report", limit=1)[0]
    assert [one.prompt for one in ask_all(model, [record], tokens=1)][-2:] == [p.prompt for p in record.locality[:2]]
    answers = ask_all(model, [record], tokens=12, probes=None)
    assert [(one.metric, one.prompt, one.expected) for one in answers] == [
        ("efficacy", record.request.text, record.target_new),
        *(("generalization", prompt, record.target_new) for prompt in record.paraphrases),
        *(("specificity", probe.prompt, probe.answer) for probe in record.locality),
    ]
    (row,) = measured(answers)
    others = [one for one in answers if one.metric == "specificity"]
    assert row["case_id"] == record.case_id and row["contains_efficacy"] == 0
    assert row["contains_specificity"] == 100 * sum(one.contains for one in others) / len(others) > 80


def test_the_instruction_stands_before_the_prompt(model, monkeypatch):
    read = []
    monkeypatch.setattr(
        "bluelib.metrics.generated.answer",
        lambda model, prompts, tokens, stops: [read.append(p) or "x" for p in prompts],
    )
    record = load_dataset("pocket-counterfact", split="report", limit=1)[0]
    (row,) = measured(ask_all(model, [record], context="instruction"))
    assert read[0] == INSTRUCTION + record.request.text and "instruction_exact_efficacy" in row


def test_contexts_that_cannot_be_asked_in(model):
    record = load_dataset("pocket-counterfact", split="report", limit=1)[0]
    with pytest.raises(ValueError, match="context must be one of bare, instruction, chat, not 'loud'"):
        ask_all(model, [record], context="loud")
    with pytest.raises(ValueError, match="has no chat template"):
        ask_all(model, [record], context=CONTEXTS[2])
    with pytest.raises(ValueError, match="tokens of an answer"):
        answer(model, ["word " * 2000])


def test_a_chat_model_is_asked_behind_its_template(smollm2):
    record = load_dataset("facts", split="report", limit=1)[0]
    answers = ask_all(smollm2, [record], context="chat", tokens=8)
    assert all(one.text for one in answers) and {one.context for one in answers} == {"chat"}


def test_groups_of_metrics_stand_beside_each_other(model):
    records = load_dataset("pocket-counterfact", split="report", limit=3)
    usual = evaluate(model, records, generate=False)
    assert usual.metrics == ["efficacy", "generalization", "specificity"]
    before = Before.of(model, records, metrics=("locality",))
    run = edit_sequence(model, records, get_editor("memit", model), batch_size=3, progress=False)
    try:
        found = evaluate(
            model, records, generate=False, metrics=("editing", "argmax", "generated", "locality"), before=before
        )
        assert {name: found.means[name] for name in usual.metrics} == evaluate(model, records, generate=False).means
        asked = measured(ask_all(model, records))
        assert [{name: row[name] for name in asked[0]} for row in found.records] == asked
        for record, row in zip(records, found.records, strict=True):
            hits = [
                score.accuracy == 1 for score in score_targets(model, [(p, record.target_new) for p in prompts(record)])
            ]
            assert row["argmax_efficacy"] == 100 * hits[0]
            assert row["argmax_generalization"] == pytest.approx(100 * sum(hits[1:]) / len(hits[1:]))
        assert found.means["kl"] > 0 and found.means["overlap_1"] <= 100
        alone = evaluate(model, records, metrics=("argmax",))
        assert alone.metrics == ["argmax_efficacy", "argmax_generalization"]
    finally:
        run.revert()


def test_argmax_of_zsre_is_exact_match(model):
    """Before and after an edit: what the model would say, token by token, is the answer."""
    records = load_dataset("pocket-zsre", split="report", limit=4)
    run = edit_sequence(model, records[:2], get_editor("memit_blue", model), batch_size=2)
    try:
        found = evaluate(model, records, generate=False, metrics=("editing", "argmax"))
        lengths = [len(encode_target(model.tokenizer, record.target_new)) for record in records]
        said = continue_greedily(model, [record.request.text for record in records], lengths)
    finally:
        run.revert()
    exact = [100 * (text.strip() == record.target_new) for text, record in zip(said, records, strict=True)]
    assert [row["argmax_efficacy"] for row in found.records] == exact == [100, 100, 0, 0]
    assert [100 * (row["efficacy"] == 100) for row in found.records] == exact


def test_groups_that_cannot_be_measured(model):
    records = load_dataset("pocket-counterfact", split="report", limit=1)
    with pytest.raises(ValueError, match="metrics: there is no 'speed'"):
        evaluate(model, records, metrics=("speed",))
    for group in ("locality", "portability"):
        with pytest.raises(
            ValueError,
            match=rf"{group} compares .* before=Before\.of\(model, records, \['{group}'\]\), taken before editing",
        ):
            evaluate(model, records, metrics=(group,))
    with pytest.raises(ValueError, match="contexts must be a list of at least one of bare, instruction, chat"):
        evaluate(model, records, metrics=("generated",), contexts=())


def test_only_what_is_asked_for_is_scored(model, monkeypatch, caplog):
    records = load_dataset("pocket-zsre", split="report", limit=2)
    monkeypatch.setattr("bluelib.metrics.editing.score_targets", None)
    assert evaluate(model, records, metrics=("generated",)).metrics
    assert evaluate(model, records, metrics=("negation",)).metrics == []
    assert "no record has an old object and a prompt that ends in is" in caplog.text


def test_locality_is_not_dropped_in_silence(model, caplog):
    records = load_dataset("pocket-counterfact", split="report", limit=1)
    before = Before.of(model, records, metrics=("portability",))
    with pytest.raises(ValueError, match="locality compares with what the model said before it was edited"):
        evaluate(model, records, metrics=("locality",), before=before)
    bare = [replace(record, locality=()) for record in records]
    found = evaluate(model, bare, generate=False, metrics=("editing", "locality"), before=Before.of(model, bare))
    assert found.metrics == ["efficacy", "generalization"]
    assert "no record has locality probes: locality cannot be measured" in caplog.text


def test_argmax_needs_no_old_object(model):
    record = replace(load_dataset("pocket-counterfact", split="report", limit=1)[0], target_true=None)
    with_old = evaluate(model, [load_dataset("pocket-counterfact", split="report", limit=1)[0]], metrics=("argmax",))
    assert evaluate(model, [record], generate=False, metrics=("argmax",)) == with_old
    assert evaluate(model, [record], generate=False).metrics == ["specificity"]


def test_negation_asks_whether_the_new_object_follows_is_not(model, monkeypatch):
    record = Record(1, "counterfact", "The capital of {} is", "France", "Rome", "Paris")
    assert negated(record).prompt == "The capital of {} is not"
    assert negated(replace(record, prompt="{} lies in")) is None and negated(replace(record, target_true=None)) is None
    likely = {"Rome": -1.0, "Paris": -2.0}
    asked = []

    def score(model, pairs, separators):
        asked.extend(pairs)
        return [TargetScore(likely[target], 1.0) for _, target in pairs]

    monkeypatch.setattr(module, "score_targets", score)
    others = [record, replace(record, case_id=2, prompt="{} lies in"), replace(record, case_id=3, target_new="Oslo")]
    likely["Oslo"] = -3.0
    rows = negation(model, others)
    assert rows == [{"case_id": 1, "negation": 0}, {"case_id": 2}, {"case_id": 3, "negation": 100}]
    assert {text for text, _ in asked} == {"The capital of France is not"}


def prompts(record):
    return [record.request.text, *record.paraphrases]


@pytest.mark.parametrize(
    ("text", "expected", "exact", "contains"),
    [
        ("罗马罗驶罗", "罗马", False, True),
        ("罗马。", "罗马", True, True),
        ("ローマです", "ローマ", False, True),
        ("北京", "罗马", False, False),
        ("Rome.", "Rome", True, True),
        ("Romeo", "Rome", False, False),
    ],
)
def test_words_of_scripts_without_spaces_are_found_within_a_text(text, expected, exact, contains):
    said = Answer(0, 0, "efficacy", "bare", "p", expected, text)
    assert (said.exact, said.contains) == (exact, contains)
    assert answered(text, [[expected]]) == contains
