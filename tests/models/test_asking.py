"""Asking a model: what it says, its first choices, and a user's turn."""

from __future__ import annotations

import pytest

from bluelib.models.asking import Reply
from bluelib.models.generation import continue_greedily
from bluelib.models.prompts import encode_prompt
from bluelib.models.scoring import top_tokens

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def test_a_reply_is_the_continuation_and_the_first_choices(any_model):
    reply, lm, tokenizer = any_model.ask("Peru is", tokens=6, top=3), any_model.hf_model, any_model.tokenizer
    ids = tokenizer("Peru is", return_tensors="pt").input_ids
    said = lm.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, ids.shape[1] :]
    assert reply.text == tokenizer.decode(said, skip_special_tokens=True).strip() and reply.prompt == "Peru is"
    chances, first = lm(ids).logits[0, -1].softmax(-1).topk(3)
    assert [token for token, _ in reply.top] == [tokenizer.decode([i]) for i in first]
    assert [chance for _, chance in reply.top] == pytest.approx(chances.tolist())


def test_a_reply_reads_as_text():
    reply = Reply("Rome is in", "Italy.", ((" Italy", 0.875), (" Peru", 0.00123)))
    assert str(reply) == repr(reply) == "Italy.\n 87.50 %  ' Italy'\n  0.12 %  ' Peru'"
    assert str(Reply("Rome is in", "", ((" Italy", 0.875),))) == "(nothing: the text ends)\n 87.50 %  ' Italy'"


def test_in_chat_the_prompt_is_a_users_turn(any_model, monkeypatch):
    monkeypatch.setattr(any_model.tokenizer, "chat_template", TEMPLATE)
    reply = any_model.ask("Where is Peru?", chat=True, tokens=4)
    bos = any_model.tokenizer.bos_token or ""
    assert reply.prompt == f"{bos}[user] Where is Peru?\n[assistant]\n"
    assert list(reply.top) == top_tokens(any_model, reply.prompt)
    ids = encode_prompt(any_model.tokenizer, reply.prompt)
    assert ids.count(any_model.tokenizer.bos_token_id) == 1, "the one that the template writes"
    assert [reply.text] == continue_greedily(any_model, [reply.prompt], [4], until_end=True)


def test_what_cannot_be_asked_is_refused(any_model):
    with pytest.raises(ValueError, match="has no chat template; without chat"):
        any_model.ask("Peru is", chat=True)
    for name in ("tokens", "top"):
        with pytest.raises(ValueError, match=f"{name} must be "):
            any_model.ask("Peru is", **{name: 0})
    with pytest.raises(ValueError, match="exceed"):
        any_model.ask("Peru is", tokens=10**6)
