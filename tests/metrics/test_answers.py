"""What a model says before and after, and how far it moved where nobody edited it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bluelib import load_dataset, load_model
from bluelib.data import Probe
from bluelib.metrics.answers import TOKENS, Said, ask_about, compare, first_sentence
from bluelib.metrics.drift import PROMPTS, drift, unrelated
from bluelib.metrics.locality import Reference, divergences
from bluelib.models.generation import continue_greedily, end_tokens
from bluelib.models.prompts import encode_prompt, encode_target
from bluelib.models.scoring import next_token_log_probs
from tests.support.small import RECORDS


def greedy(model, prompt, tokens):
    """One token after the other, through the whole model."""
    ids = list(encode_prompt(model.tokenizer, prompt))
    begin = len(ids)
    for _ in range(tokens):
        ids.append(model.hf_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[begin:]


def test_answers_are_the_first_choices_one_after_the_other(any_model):
    records = [replace(r, paraphrases=(f"Say of {r.subject}:", r.request.text)) for r in RECORDS]
    for record, said in zip(records, ask_about(any_model, records, tokens=6), strict=True):
        chosen = greedy(any_model, record.request.text, 6)
        text = any_model.tokenizer.decode(
            chosen[: next((i for i, t in enumerate(chosen) if t in end_tokens(any_model)), 6)], skip_special_tokens=True
        )
        assert said.text == first_sentence(text)
        assert (said.case_id, said.prompt, said.target_new) == (record.case_id, record.request.text, record.target_new)
        target = list(encode_target(any_model.tokenizer, record.target_new))
        assert said.first_choice == (greedy(any_model, said.prompt, len(target)) == target)
        assert said.paraphrases[1] == said.first_choice and len(said.paraphrases) == 2


def test_a_first_choice_stands_after_the_record_s_own_separator(any_model):
    """A token that a word begins with after a space is not the one that it begins with at once."""
    tokenizer, found = any_model.tokenizer, set()
    for record in RECORDS:
        chosen = greedy(any_model, record.request.text, 1)
        for separator in ("", " "):
            here = replace(record, target_new=tokenizer.decode(chosen).strip() or "Rome", separator=separator)
            (said,) = ask_about(any_model, [here], tokens=1)
            ids = list(encode_target(tokenizer, here.target_new, separator=separator))
            assert said.first_choice == (greedy(any_model, said.prompt, len(ids)) == ids)
            found.add((separator, said.first_choice))
    assert {first for _, first in found} == {True, False}


def test_neighbours_are_asked_about_if_they_are_to_be(any_model):
    probes = [Probe("Peru lies in"), Probe("The capital of Peru is", "Lima")]
    records = [replace(RECORDS[0], locality=tuple(probes)), replace(RECORDS[1], locality=())]
    assert [said.neighbours for said in ask_about(any_model, records)] == [(), ()]
    said = ask_about(any_model, records, neighbours=True)
    texts = [
        first_sentence(text) for text in continue_greedily(any_model, [one.prompt for one in probes], [TOKENS] * 2)
    ]
    assert said[0].neighbours == tuple(zip([one.prompt for one in probes], texts, strict=True))
    assert said[1].neighbours == () and [one.text for one in said] == [
        one.text for one in ask_about(any_model, records)
    ]
    first, second = compare(said, [replace(said[0], neighbours=(said[0].neighbours[0], ("", "Cusco"))), said[1]])
    assert first["neighbours"][1] == {"prompt": probes[1].prompt, "before": texts[1], "after": "Cusco"}
    assert "neighbours" not in second


def test_a_model_that_knows_a_fact_says_it():
    """The object is what it says, and its first choice, also after paraphrases; the one that is to come is not."""
    model, records = load_model("pocket-llama"), load_dataset("pocket-counterfact", split="report", limit=4)
    turned = [replace(record, target_new=record.target_true, target_true=record.target_new) for record in records]
    for record, new, true in zip(records, ask_about(model, records), ask_about(model, turned), strict=True):
        assert new.text == true.text and true.text.startswith(record.target_true)
        assert true.first_choice and all(true.paraphrases)
        assert not new.first_choice and not any(new.paraphrases)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (" Rome, Italy. It is", "Rome, Italy."),
        ("Rome", "Rome"),
        ("\n\nRome\nParis", "Rome"),
        ("St. Petersburg. Not Moscow.", "St. Petersburg."),
        ("J. Verne! And", "J. Verne!"),
        ("3.14 or so? Yes", "3.14 or so?"),
        ("東京。大阪", "東京。"),
        ("", ""),
    ],
)
def test_an_answer_is_its_first_sentence(text, first):
    assert first_sentence(text) == first


def test_an_answer_ends_where_the_model_ends_the_text(any_model, monkeypatch):
    chosen = greedy(any_model, "Peru is", 8)
    end = chosen[3]
    monkeypatch.setattr(any_model.hf_model.generation_config, "eos_token_id", end)
    assert end in end_tokens(any_model)
    kept = chosen[: chosen.index(end)]
    (text,) = continue_greedily(any_model, ["Peru is"], [8], until_end=True)
    assert text == any_model.tokenizer.decode(kept, skip_special_tokens=True).strip()
    (on,) = continue_greedily(any_model, ["Peru is"], [8])
    assert on == any_model.tokenizer.decode(chosen, skip_special_tokens=True).strip() != text


def test_end_tokens_are_those_of_the_tokenizer_and_of_the_models_settings(any_model, monkeypatch):
    own = {any_model.tokenizer.eos_token_id, any_model.tokenizer.bos_token_id} - {None}
    for found, ends in (([7, 9], {7, 9}), (7, {7}), (None, set())):
        monkeypatch.setattr(any_model.hf_model.generation_config, "eos_token_id", found)
        assert end_tokens(any_model) == sorted(own | ends)


def test_before_and_after_stand_side_by_side():
    old = [Said(1, "A is", "b", "c.", False, (False, False)), Said(2, "B is", "c", "d", True, ())]
    new = [Said(1, "A is", "b", "b.", True, (True, False)), Said(2, "B is", "c", "c", True, ())]
    first, second = compare(old, new)
    assert first == {
        "case_id": 1,
        "prompt": "A is",
        "target_new": "b",
        "paraphrases": 2,
        "before": {"says": "c.", "first_choice": False, "first_choice_paraphrases": 0},
        "after": {"says": "b.", "first_choice": True, "first_choice_paraphrases": 1},
    }
    assert second["paraphrases"] == 0 and second["after"]["says"] == "c"
    with pytest.raises(ValueError, match="zip"):
        compare(old, new[:1])


def test_an_answer_ends_with_the_context_and_a_prompt_that_fills_it_is_refused(any_model, monkeypatch):
    monkeypatch.setattr(type(any_model), "max_positions", 24)
    prompt, room = "{} is", any_model.max_positions
    while len(encode_prompt(any_model.tokenizer, prompt.format(RECORDS[0].subject))) < room - 1:
        prompt += " is"
    (said,) = ask_about(any_model, [replace(RECORDS[0], prompt=prompt)])
    assert said.text == first_sentence(any_model.tokenizer.decode(greedy(any_model, said.prompt, 1)))
    with pytest.raises(ValueError, match=rf"record 0: .* and an answer: {room + 1} tokens exceed"):
        ask_about(any_model, [replace(RECORDS[0], prompt=prompt + " is")])


def test_an_answer_ends_where_the_text_does(any_model, monkeypatch):
    chosen = greedy(any_model, RECORDS[0].request.text, 3)
    monkeypatch.setattr(any_model.hf_model.generation_config, "eos_token_id", chosen[0])
    (said,) = ask_about(any_model, RECORDS[:1])
    assert said.text == ""


def test_divergence_by_hand():
    before, after = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]).log(), torch.tensor([[0.25, 0.5, 0.25]] * 2).log()
    found = divergences(before, after)
    assert found.tolist() == pytest.approx(
        [0.5 * math.log(2), 0.9 * math.log(0.9 / 0.25) + 0.1 * math.log(0.1 / 0.5)], abs=1e-6
    )
    assert divergences(after, after).tolist() == [0, 0]


def test_a_model_that_does_not_change_does_not_move_and_one_that_does_does(any_model):
    reference, before = Reference.of(any_model, PROMPTS), next_token_log_probs(any_model, PROMPTS)
    assert drift(any_model, reference)["max_nats"] == 0
    any_model.weight(1).mul_(1.5)
    by_hand = divergences(before, next_token_log_probs(any_model, PROMPTS))
    assert drift(any_model, reference) == {
        "prompts": len(PROMPTS),
        "mean_nats": pytest.approx(by_hand.mean().item(), rel=1e-3, abs=2e-6),
        "max_nats": pytest.approx(by_hand.max().item(), rel=1e-3, abs=2e-6),
        "most_after": PROMPTS[int(by_hand.argmax())],
    }
    assert by_hand.max() > 1e-4


def test_the_prompt_that_moved_most_is_named():
    class Moved:
        def moved(self, model):
            return {prompt: {"kl": nats} for prompt, nats in (("b", 0.5), ("a", 0.75), ("c", 0.25))}

    assert drift(None, Moved()) == {"prompts": 3, "mean_nats": 0.5, "max_nats": 0.75, "most_after": "a"}


def test_prompts_about_an_edited_subject_are_not_unrelated(any_model):
    assert unrelated(RECORDS) == list(PROMPTS) and len(set(PROMPTS)) == 20
    bees = replace(RECORDS[0], subject="bees")
    assert unrelated([*RECORDS, bees]) == [prompt for prompt in PROMPTS if "Bees" not in prompt]
    everything = [replace(RECORDS[0], subject=" ".join(prompt.split()[:2])) for prompt in PROMPTS]
    nothing = unrelated(everything)
    assert nothing == []
    none = drift(any_model, None)
    assert none == {"prompts": 0, "mean_nats": None, "max_nats": None, "most_after": None}
