"""What stands between a prompt and its target: a space, or nothing; and prompts behind a chat template."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bluelib import edit_sequence, evaluate
from bluelib.data import Probe, Record, RecordError
from bluelib.data.chat import in_chat
from bluelib.data.provenance import records_hash
from bluelib.editing.residuals import DIRECT
from bluelib.editing.solvers import Ridge
from bluelib.metrics import answers, longform, negation
from bluelib.models.prompts import (
    Request,
    chat_frame,
    encode_answer,
    encode_prompt,
    encode_target,
    joiner,
    locate,
)
from bluelib.models.scoring import score_targets
from bluelib.runs.cell import run_cell
from bluelib.studies import layers
from tests.support.small import LLAMA_FIRST, PREFIXES, RECORDS, editor
from tests.support.tokenizers import BYTE_LEVEL, KINDS, make_tokenizer

#: In the forms of SmolLM2 (with a system prompt of its own), Llama 3 (which writes BOS) and Vicuna.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You help.<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']\n\n' + message['content'] | trim + "
        "'[end]' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
    ),
    "vicuna": (
        "{% for message in messages %}{{ message['role'] | upper + ': ' + message['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}


@pytest.mark.parametrize(
    ("prompt", "target", "between"),
    [
        ("The Eiffel Tower is in", "Rome", " "),
        ("The Eiffel Tower is in", " Rome", " "),
        ("Where is it?", "Rome", " "),
        ("<|im_start|>assistant\n", "Rome", ""),
        ("ASSISTANT:", "Rome", " "),
        ("It is called (", "Rome", ""),
        ("It is called “", "Rome", ""),
        ('It is called "', "Rome", ""),
        ("He is the boys'", "teacher", " "),
        ("埃菲尔铁塔位于", "罗马", ""),
        ("エッフェル塔は", "ローマ", ""),
        ("问：铁塔在哪里？", "Rome", ""),
        ("The tower is in", "罗马", ""),
        ("หอไอเฟลอยู่ที่", "โรม", ""),
        ("ຫໍຢູ່", "ໂຣມ", ""),
        ("ប៉ម", "រ៉ូម", ""),
        ("မြို့", "ရောမ", ""),
        ("에펠탑의 위치는", "로마", " "),
        ("Эйфелева башня находится в", "Риме", " "),
        ("", "Rome", " "),
    ],
)
def test_a_space_stands_where_words_are_divided_by_spaces(prompt, target, between):
    assert joiner(prompt, target) == between


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["The tower is in", "Answer:\n", "问：塔在", "หอไอเฟลอยู่ที่"])
def test_a_targets_tokens_are_those_behind_its_prompt(kind, prompt):
    """Read back, prompt and target are the text that a reader would write."""
    tokenizer = make_tokenizer(kind)
    ids = encode_prompt(tokenizer, prompt) + encode_answer(tokenizer, prompt, "Rome")
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert (
        text
        == tokenizer.decode(
            tokenizer(f"{prompt}{joiner(prompt, 'Rome')}Rome").input_ids, skip_special_tokens=True
        ).strip()
    )
    if kind in BYTE_LEVEL:
        assert text == f"{prompt}{joiner(prompt, 'Rome')}Rome"
    spaced, joined = encode_target(tokenizer, "Rome"), encode_target(tokenizer, "Rome", separator="")
    assert encode_answer(tokenizer, "Answer:\n", "Rome") == joined
    assert encode_answer(tokenizer, "Answer:\n", "Rome", " ") == spaced == encode_answer(tokenizer, "It is in", "Rome")
    with pytest.raises(ValueError, match="must be a space or nothing, not '-'"):
        encode_target(tokenizer, "Rome", separator="-")


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_target(any_model):
    record = Record(
        0,
        "counterfact",
        "{} is a ",
        "Ilvane",
        "potter",
        "player",
        paraphrases=("Ilvane works as a\t", "So:\n"),
        locality=(Probe("Torrin is a ", "player"),),
        generation_prompts=("Ilvane ",),
    )
    bare = replace(record, prompt="{} is a", paraphrases=("Ilvane works as a", "So:\n"))
    assert (
        record == bare
        and record.locality == (Probe("Torrin is a", "player"),)
        and record.generation_prompts == ("Ilvane",)
    )
    tokenizer = any_model.tokenizer
    ids = encode_prompt(tokenizer, record.request.text) + encode_answer(tokenizer, record.request.text, "potter")
    assert tokenizer.decode(ids, skip_special_tokens=True).replace("  ", "!").endswith("Ilvane is a potter")
    with pytest.raises(RecordError, match="record 0: separator must be a space or empty, not 'x'"):
        replace(record, separator="x")


def test_a_separator_can_be_forced(any_model):
    pair = ("Ilvane plays the", "tuba")
    (spaced,), (joined,) = (score_targets(any_model, [pair], separators=[between]) for between in (" ", ""))
    assert score_targets(any_model, [pair]) == [spaced] != [joined]
    record = replace(RECORDS[0], separator="", paraphrases=())
    assert record.request.separator == ""
    (alone,) = evaluate(any_model, [record], generate=False).records
    both = evaluate(any_model, [RECORDS[0], record, RECORDS[1]], generate=False).records
    assert both[1] == alone and [r["case_id"] for r in both] == [0, 0, 1]


def test_whatever_scores_an_answer_joins_it_as_the_edit_does(any_model, monkeypatch):
    joined = replace(RECORDS[0], separator="", paraphrases=(f"It is known that {RECORDS[0].request.text}",))
    asked = []

    def scored(model, pairs, *, separators=None, **how):
        if pairs:
            asked.append((pairs, separators))
        return score_targets(model, pairs, separators=separators, **how)

    for module in (answers, layers, longform, negation):
        monkeypatch.setattr(module, "score_targets", scored)
    answers.ask_about(any_model, [joined, RECORDS[1]])
    layers.growth_of_probability(any_model, [joined, RECORDS[1]])
    longform.evaluate_long_form(any_model, [joined], ["nothing"])
    for pairs, separators in asked:
        own = [between for (prompt, _), between in zip(pairs, separators, strict=True) if joined.subject in prompt]
        assert own and set(own) <= {""}, pairs
    asked.clear()
    negation.negation(any_model, [replace(joined, prompt="{} is")])
    assert [separators for _, separators in asked] == [["", ""]]


def test_what_is_added_to_records_later_does_not_change_their_hash():
    assert records_hash(RECORDS) == records_hash([replace(r, before="", separator=None) for r in RECORDS])
    assert len({records_hash([replace(RECORDS[0], **more)]) for more in ({}, {"before": "x"}, {"separator": ""})}) == 3


@pytest.fixture(params=TEMPLATES)
def chatty(request, any_model, monkeypatch):
    """A model whose tokenizer has a chat template."""
    monkeypatch.setattr(any_model.tokenizer, "chat_template", TEMPLATES[request.param])
    return any_model


def test_prompts_become_turns_of_the_template(chatty):
    record = replace(RECORDS[2], paraphrases=("Ilvane is from",), locality=(Probe("Peru is in", "Asia"),))
    (framed,) = in_chat(chatty, [record])
    wanted = chatty.tokenizer.apply_chat_template(
        [{"role": "user", "content": record.request.text}], tokenize=False, add_generation_prompt=True
    )
    assert framed.request.text == wanted.rstrip(" ")
    before, after = chat_frame(chatty.tokenizer)
    assert framed.paraphrases == (before + "Ilvane is from" + after,) and "Peru is in" in framed.locality[0].prompt
    assert framed.generation_prompts == record.generation_prompts
    with pytest.raises(ValueError, match="record 2 is already in a chat template"):
        in_chat(chatty, [framed])


def test_the_subject_is_found_inside_the_turn_behind_a_context_prefix(chatty):
    (framed,) = in_chat(chatty, RECORDS[:1])
    request, tokenizer = framed.request, chatty.tokenizer
    for prefix in PREFIXES:
        place = locate(tokenizer, request.prompt, request.subject, prefix, request.before)
        read = tokenizer.decode(place.ids[place.subject_first : place.subject_last + 1])
        assert read.strip() == request.subject
        whole = tokenizer.decode(place.ids)
        assert prefix.strip() in whole and whole.index(request.subject) > whole.index(prefix.strip())
    if chatty.has_bos:
        assert list(place.ids).count(tokenizer.bos_token_id) == 1


@LLAMA_FIRST
def test_edits_are_made_behind_the_template(chatty, small_world):
    """The new objects become likelier there, and the run is that of the framed records."""
    method = editor(Ridge(1e-3), DIRECT, layers=(0, 1))
    framed = in_chat(chatty, RECORDS)
    pairs = [(record.request.text, record.target_new) for record in framed]
    before = [score.log_prob for score in score_targets(chatty, pairs)]
    run = edit_sequence(chatty, RECORDS, method, batch_size=5, chat=True)
    after = [score.log_prob for score in score_targets(chatty, pairs)]
    assert run.records == framed
    assert sum(after) > sum(before) + 1
    weights = chatty.weight(1).clone()
    run.revert()
    edit_sequence(chatty, framed, method, batch_size=5)
    assert torch.equal(weights, chatty.weight(1))
    assert (
        evaluate(chatty, RECORDS, generate=False, chat=True).records == evaluate(chatty, framed, generate=False).records
    )


def test_a_cell_says_whether_it_was_in_chat(chatty, small_world, tmp_path):
    how = {"batch_size": 2, "seed": 0, "generate": False, "progress": False}
    scores = tmp_path / "before.json"
    found = run_cell(chatty, "mine", RECORDS[:2], editor(Ridge(50.0)), chat=True, before=scores, **how)
    assert found.result["chat"] is True
    found.run.revert()
    with pytest.raises(ValueError, match="chat is True, not False"):
        run_cell(chatty, "mine", RECORDS[:2], editor(Ridge(50.0)), before=scores, **how)


def test_without_a_template_there_is_no_chat(any_model, monkeypatch):
    with pytest.raises(ValueError, match="has no chat template; without chat, a prompt is a text"):
        edit_sequence(any_model, RECORDS, editor(Ridge(50.0)), batch_size=5, chat=True)
    monkeypatch.setattr(any_model.tokenizer, "chat_template", "{{ messages[0]['content'] | lower }}")
    with pytest.raises(ValueError, match="must show a user's words exactly once and unchanged; it turns 'USERS-WORDS'"):
        chat_frame(any_model.tokenizer)


def test_a_request_reads_as_one_text():
    assert Request("{} is in<end>", "Peru", "Asia", before="<user>").text == "<user>Peru is in<end>"


@pytest.mark.parametrize(
    ("marker", "space", "separator"),
    [("<|Assistant|>", "", ""), ("[/INST]", " ", None), ("<|assistant|>\n", "", None), ("[A]", "?", None)],
)
def test_a_target_follows_a_chat_template_as_an_answer_would(marker, space, separator):
    """Where the rule for plain texts says the same, or the template shows neither, the rule is kept."""
    tokenizer = make_tokenizer("gpt2")
    answer = "{% else %}" + space + "{{ m.content }}{% endif %}{% endfor %}"
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}" + marker + answer
    (record,) = in_chat(
        SimpleNamespace(tokenizer=tokenizer), [Record(0, "counterfact", "{} lives in", "Ada", "Rome", None)]
    )
    assert record.separator == separator
