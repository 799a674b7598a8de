"""Subjects, targets and special tokens with every kind of fast tokenizer."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bluelib import edit_sequence, evaluate, get_editor, load_dataset, load_model
from bluelib.models.model import Model
from bluelib.models.prompts import Request, encode_answer, encode_prompt, encode_target, fill, joiner, locate, pad
from bluelib.models.representations import subject_keys
from bluelib.models.scoring import next_token_log_probs, request_nll, score_targets
from bluelib.pocket.tokenizer import build_tokenizer
from bluelib.studies.doctor import _padding
from tests.support.checkpoints import write_checkpoint
from tests.support.tokenizers import BYTE_LEVEL, KINDS, SPECIAL, UNMERGED, WITH_BOS, make_tokenizer, training_text

made = lru_cache(make_tokenizer)  # for tests that leave the tokenizer as it is
pocket = lru_cache(build_tokenizer)

every_kind = pytest.mark.parametrize("kind", KINDS)

SUBJECTS = [
    "Paris",
    "Ilvane Quillbrook",
    "Saint Kitts and Nevis",
    "Yahoo!",
    "St. John's",
    "L’Été",
    "Zoë D'Astrelle",
    "Zoe\u0308",
    "Ame\u0301lie",
    "東京",
    "한글",
    unicodedata.normalize("NFD", "한글"),
    "קרית",
    "عَمّان",
    "Львів",
    "बेलूर",
    "🦦",
    "👩🏽‍🚀",
    "🇳🇴",
    "a🦦",
    "X",
    "7",
    "1984",
    "3M",
    "C++",
    "(What's the Story)",
    "ﬁ",
    "½",
    "㍿",
    "N\u00a0B",
    " Paris",
    "Paris ",
    "  San  Brelmo ",
    "-",
]
TEMPLATES = [
    "{}",
    "{} plays the",
    "The mother tongue of {} is",
    "In which city is {}?",
    "What is the instrument of {}",
    "{}'s neighbour is",
    "the {}n capital",
    "the{}",
    "« {} » is",
    "({})",
    "{}! Now",
    "{},{{}}",
    "Paris and X and {} and X, Paris:",
]
PREFIXES = ["", "Peru is far. ", "東京 Paris X. "]

# Letters that the training text has and has not, marks that combine, letters that NFKC takes apart, joiners.
LETTERS = "aeinorstPQZ017éëßŁ東京鳥Львק한ㄱ🦦👩½ﬁ㍿ÅΩ"
MARKS = "\u0301\u0308\u0323\u200d\ufe0f"
BETWEEN = " .,'’!?-"
words = st.text(st.sampled_from(LETTERS + MARKS), min_size=1, max_size=6)
texts = st.one_of(st.sampled_from(training_text()), st.text(st.sampled_from(LETTERS + MARKS + BETWEEN), max_size=14))
plain = st.text(st.sampled_from(LETTERS + BETWEEN), max_size=10)
targets = st.one_of(st.sampled_from(SUBJECTS), texts.filter(str.strip))


def drawn(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True)


def composed(text):
    return unicodedata.normalize("NFC", text)


# The kinds are what their names say.


@every_kind
def test_a_kind_survives_saving_and_loading(kind, tmp_path):
    tokenizer = made(kind)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    for subject in SUBJECTS:
        assert locate(loaded, "In {}, they say", subject) == locate(tokenizer, "In {}, they say", subject)
        assert encode_target(loaded, subject) == encode_target(tokenizer, subject)


@every_kind
def test_a_kind_starts_texts_as_the_real_one_does(kind):
    tokenizer = made(kind)
    bos = tokenizer.bos_token_id
    assert (bos is not None and encode_prompt(tokenizer, "Paris")[0] == bos) == (kind in WITH_BOS)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (SPECIAL[kind][2], SPECIAL[kind][1])


def test_the_kinds_have_the_traps_that_they_are_there_for():
    def tokens(kind, text):
        return made(kind).tokenize(text)

    assert tokens("llama2", " Paris") == ["▁", "▁Paris"], "a second space, where a target is tokenised alone"
    assert tokens("llama2", "Paris") == tokens("mistral", "Paris") == ["▁Paris"] != tokens("gemma", "Paris")
    assert tokens("gemma", " Paris") == tokens("mistral", " Paris") == ["▁Paris"]
    assert tokens("llama2", "鳥") == ["▁", "<0xE9>", "<0xB3>", "<0xA5>"], "a letter in bytes"
    assert tokens("qwen2", "e\u0301") == tokens("qwen2", "é") and tokens("gpt2", "e\u0301") != tokens("gpt2", "é")
    assert len(tokens("llama3", "1984")) < len(tokens("qwen2", "1984")) == 4
    assert tokens("unigram", "ﬁ") == tokens("unigram", "fi")
    state = json.loads(made("llama3").backend_tokenizer.to_str())
    assert tokens("llama3", UNMERGED) == ["ĠQuillbrook"]
    state["model"]["ignore_merges"] = False
    assert len(Tokenizer.from_str(json.dumps(state)).encode(UNMERGED, add_special_tokens=False).tokens) > 1


# Targets.


@every_kind
@given(prompt=texts, target=targets)
@example(prompt="In Paris, 鳥", target="鳥")
@example(prompt="The year is", target="1984")
@example(prompt="It is 19", target="84")
@example(prompt="They say:", target="'s")
@example(prompt="The mark is", target="´x")
@drawn(120)
def test_a_target_has_the_tokens_that_follow_a_prompt(kind, prompt, target):
    assume(prompt.strip() and not prompt[-1].isspace())
    tokenizer, target = made(kind), target.strip()
    assert encode_prompt(tokenizer, prompt) + encode_target(tokenizer, target) == encode_prompt(
        tokenizer, f"{prompt} {target}"
    )


@every_kind
def test_a_target_has_no_special_token_unless_asked(kind):
    tokenizer = made(kind)
    ids = encode_target(tokenizer, "San Brelmo")
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids).strip() == "San Brelmo"
    assert encode_target(tokenizer, "  San Brelmo ") == ids
    bos = (tokenizer.bos_token_id,) if kind in WITH_BOS else ()
    assert encode_target(tokenizer, "San Brelmo", special=True) == bos + ids


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "pocket", "pocket with BOS"])
@given(target=st.one_of(targets, st.text(max_size=12)), special=st.booleans())
@example(target="", special=False)
@drawn(200)
def test_a_byte_level_target_has_the_tokens_of_the_target_after_a_space(kind, target, special):
    """The formula by which the results in this repository were made."""
    tokenizer = pocket(bos="BOS" in kind) if kind.startswith("pocket") else made(kind)
    before = tuple(tokenizer(" " + target.strip(), add_special_tokens=special)["input_ids"])
    assert encode_target(tokenizer, target, special) == before


def test_a_target_without_tokens_of_its_own_is_refused():
    """A vocabulary that writes the space behind a word; a normaliser that leaves nothing of a target."""
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "a", "b", "▁", "a▁", "b▁"])}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "▁"), ("b", "▁")], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Replace("▁", " ")
    with pytest.raises(ValueError, match="joins a word with the space after it: target 'b' has no tokens of its own"):
        encode_target(PreTrainedTokenizerFast(tokenizer_object=backend), "b")
    backend.normalizer = normalizers.Sequence([normalizers.Replace("b", ""), normalizers.Strip()])
    with pytest.raises(ValueError, match="target 'b' has no token"):
        encode_target(PreTrainedTokenizerFast(tokenizer_object=backend), "b")


# Special tokens.


@every_kind
@pytest.mark.parametrize("text", ["Paris is in", "", "東"])
def test_special_tokens_are_kept_in_front_and_never_behind(kind, text):
    """With and without BOS and EOS, as transformers' settings ask for them."""
    bare = encode_prompt(made(kind, add_bos_token=False), text)
    assert bare == tuple(made(kind)(text, add_special_tokens=False)["input_ids"])
    for bos in {False, SPECIAL[kind][0] is not None}:
        tokenizer = made(kind, add_bos_token=bos, add_eos_token=True)
        assert tokenizer(text)["input_ids"][-1] == tokenizer.eos_token_id, "the case"
        assert encode_prompt(tokenizer, text) == ((tokenizer.bos_token_id,) if bos else ()) + bare
        for special in (False, True):
            front = (tokenizer.bos_token_id,) if bos and special else ()
            assert encode_target(tokenizer, "Paris", special) == front + encode_target(made(kind), "Paris")
        place = locate(tokenizer, text + " of {}", "Peru")
        assert place == locate(made(kind, add_bos_token=bos), text + " of {}", "Peru")


@every_kind
def test_a_text_that_brings_its_bos_has_one_all_the_same(kind):
    tokenizer = made(kind)
    if tokenizer.bos_token is None:
        return
    written = tokenizer.bos_token + "Peru is far"
    ids = encode_prompt(tokenizer, written)
    assert ids == tuple(tokenizer(written, add_special_tokens=False)["input_ids"])
    assert ids.count(tokenizer.bos_token_id) == 1
    place = locate(tokenizer, "{} is far", "Peru", tokenizer.bos_token)
    assert place.ids == ids
    assert tokenizer.decode(ids[1 : place.subject_last + 1]).strip() == "Peru"
    for subject in SUBJECTS:
        check(tokenizer, "{} is far", subject, tokenizer.bos_token, special=False)


# Subjects.


def expected(tokenizer, text, start, end, special=True):
    """Indices of the tokens that hold one of the characters from ``start`` to ``end``, by the tokenizer's offsets."""
    offsets = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
    return [i for i, (a, b) in enumerate(offsets) if set(range(a, b)) & set(range(start, end))]


def check(tokenizer, template, subject, prefix, special=True):
    text = prefix + fill(template, subject)
    start = len(prefix) + template.index("{}") + subject.index(subject.strip())
    holding = expected(tokenizer, text, start, start + len(subject.strip()), special)
    place = locate(tokenizer, template, subject, prefix)
    assert place.ids == tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
    assert place.subject_last == holding[-1]
    if len(holding) > 1 and tokenizer.convert_ids_to_tokens(place.ids[holding[0]]) == "▁":
        assert place.subject_first == holding[1], "the space that a tokenizer puts in is not of the subject"
    else:
        assert place.subject_first == holding[0]
    return place


def check_decoded(tokenizer, place, upto):
    """The text up to the subject's end is there with the subject's last token, and is not without it.

    Spaces at a text's start are not compared: decoders of SentencePiece's kind leave one out.
    """

    def decoded(n):
        return composed(tokenizer.decode(place.ids[:n], skip_special_tokens=True)).lstrip()

    assert decoded(place.subject_last + 1).startswith(composed(upto).strip())
    assert not decoded(place.subject_last).startswith(composed(upto).strip())


@every_kind
@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_subjects_last_token(kind, prefix):
    for template in TEMPLATES:
        for subject in SUBJECTS:
            place = check(made(kind), template, subject, prefix)
            if kind != "unigram":  # which loses letters, and cannot give the text back
                check_decoded(made(kind), place, prefix + template[: template.index("{}")] + subject)


@every_kind
@given(prefix=texts, before=texts, subject=st.one_of(words, texts), after=texts)
@example(prefix="", before="", subject="鳥", after="")
@example(prefix="e", before="", subject="\u0301", after="")
@example(prefix="", before="", subject="\u0301a", after="\u0301")
@example(prefix="", before="ﬁ", subject="ﬁ", after="n")
@drawn(150)
def test_any_subject_is_where_its_characters_are(kind, prefix, before, subject, after):
    template, text = before + "{}" + after, prefix + before + subject + after
    start = len(prefix + before) + len(subject) - len(subject.lstrip())
    visible = any(unicodedata.category(c) not in ("Cf", "Zs") for c in subject)
    if visible and expected(made(kind), text, start, start + len(subject.strip())):
        check(made(kind), template, subject, prefix)
    else:
        with pytest.raises(ValueError, match="has no visible character" if not visible else "has no token"):
            locate(made(kind), template, subject, prefix)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])
@given(before=plain, subject=words, after=plain)
@drawn(150)
def test_any_subject_is_there_with_its_last_token_and_not_without(kind, before, subject, after):
    assume(unicodedata.category(subject[0])[0] not in "MC")
    check_decoded(made(kind), locate(made(kind), before + "{}" + after, subject), before + subject)


@every_kind
def test_the_templates_place_counts_not_the_first_mention(kind):
    place = locate(made(kind), "Paris and {} and Paris", "Paris", "Paris. ")
    decoded = made(kind).decode(place.ids[: place.subject_last + 1], skip_special_tokens=True)
    assert decoded.strip() == "Paris. Paris and Paris"


def test_a_token_across_the_subjects_end_is_its_last():
    tokenizer = made("llama2")
    place = locate(tokenizer, "they know {}'s friend", "Ilvane Quillbrook")
    assert tokenizer.convert_ids_to_tokens(place.ids[place.subject_last]) == "▁Quillbrook's", "the case"
    assert place.subject_last == place.subject_first + 1


@pytest.mark.parametrize("subject", ["", "  ", "\u00a0", "\u200b", " \u200d\ufeff\n"])
def test_a_subject_that_cannot_be_seen_is_refused(subject):
    with pytest.raises(ValueError, match=r"has no visible character; it must have one, in prompt 'In \{\}, they'"):
        locate(made("llama2"), "In {}, they", subject)


def test_a_template_needs_a_place_for_the_subject():
    with pytest.raises(ValueError, match=r"prompt 'In Paris' has no \{\}"):
        locate(made("llama2"), "In Paris", "Paris")


def test_a_subject_that_normalises_to_nothing_is_refused():
    tokenizer = make_tokenizer("gemma")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    with pytest.raises(ValueError, match="has no token in"):
        locate(tokenizer, "The mark {} is", "\u0301")


def test_a_subject_that_normalises_to_a_space_has_the_spaces_token():
    tokenizer = make_tokenizer("gemma")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("-", "▁")
    place = locate(tokenizer, "They{}", "-")
    assert place.subject_first == place.subject_last == len(place.ids) - 1
    assert tokenizer.convert_ids_to_tokens(place.ids[-1]) == "▁"


# Settings of the tokenizer that must make no difference.


def awkward(kind):
    """The same tokenizer, padding and truncating on the left, and saved so that it pads and truncates all texts."""
    tokenizer = make_tokenizer(kind, padding_side="left", truncation_side="left", model_max_length=3)
    token = SPECIAL[kind][1]
    tokenizer.backend_tokenizer.enable_padding(
        direction="left", length=40, pad_token=token, pad_id=tokenizer.convert_tokens_to_ids(token)
    )
    tokenizer.backend_tokenizer.enable_truncation(3, direction="left")
    return tokenizer


@every_kind
def test_sides_and_lengths_of_the_tokenizer_make_no_difference(kind):
    for subject in SUBJECTS:
        assert locate(awkward(kind), "In {}, they say", subject) == locate(made(kind), "In {}, they say", subject)
        assert encode_target(awkward(kind), subject) == encode_target(made(kind), subject)


def small_model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    lm = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    return Model.of("small", lm, tokenizer)


REQUESTS = [
    Request("{} plays the", "Ilvane Quillbrook", "tuba"),
    Request("In {}, people speak", "東京", "East Timorese"),
    Request("The capital of all of San Brelmo and of {}'s south is", "St. John's", "鳥"),
]


@every_kind
def test_a_model_computes_the_same_with_padding_on_either_side(kind):
    """Batched and padded, with and without a padding token, as one text at a time with nothing to pad."""
    reference = small_model(make_tokenizer(kind))
    pairs = [(request.text, request.target) for request in REQUESTS]
    singly = [score_targets(reference, [pair])[0].log_prob for pair in pairs]
    alone = torch.cat([subject_keys(reference, [request], 1, ["", "Peru is far. "]) for request in REQUESTS], 1)
    for pair, score in zip(pairs, singly, strict=True):
        prompt, target = encode_prompt(reference.tokenizer, pair[0]), encode_answer(reference.tokenizer, *pair)
        if joiner(*pair):  # what is joined without a space can have other tokens as one text
            assert prompt + target == tuple(reference.tokenizer(" ".join(pair))["input_ids"])
        logits = reference.hf_model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(logits[range(len(target)), target].mean().item(), rel=1e-5)
    for side in ("right", "left"):
        for padding in (None, SPECIAL[kind][1]):
            tokenizer = make_tokenizer(kind, padding_side=side, truncation_side=side, pad_token=padding)
            model = small_model(tokenizer)
            assert [s.log_prob for s in score_targets(model, pairs)] == pytest.approx(singly, rel=1e-5)
            assert (-request_nll(model, REQUESTS)).tolist() == pytest.approx(singly, rel=1e-5)
            keys = subject_keys(model, REQUESTS, 1, ["", "Peru is far. "])
            torch.testing.assert_close(keys, alone, rtol=1e-5, atol=1e-6)


@every_kind
def test_a_prompt_without_a_token_is_refused(kind):
    """There is nothing to predict from, unless the tokenizer puts a BOS in front."""
    model = small_model(make_tokenizer(kind))
    if kind in WITH_BOS:
        alone, beside = (
            score_targets(model, [("", "Paris")])[0],
            score_targets(model, [("", "Paris"), ("In San", "X")])[0],
        )
        assert alone.log_prob == pytest.approx(beside.log_prob, rel=1e-5)
        return
    for computation in (
        lambda: score_targets(model, [("", "Paris"), ("In San", "X")]),
        lambda: request_nll(model, [Request("", "X", "Paris")]),
        lambda: next_token_log_probs(model, [""]),
    ):
        with pytest.raises(ValueError, match="prompt '' has no token, and small's tokenizer puts no BOS in front"):
            computation()


def test_padding_without_a_padding_token():
    batch = pad([[5, 6, 7], [8]], pad_id=None, device="cpu")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]


def grown(name, tmp_path, *, pad: str | None = None, word: str | None = None):
    """A checkpoint whose tokenizer has a token that its model has no embedding of."""
    folder = write_checkpoint(tmp_path / "grown", name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": pad}) if pad else tokenizer.add_tokens([word])
    tokenizer.save_pretrained(folder)
    return load_model(str(folder))


def test_without_a_token_to_pad_with_none_becomes_special(tmp_path):
    folder = write_checkpoint(tmp_path / "bare", "llama-3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    model, text = load_model(str(folder)), "Hi! Lima!"
    assert model.tokenizer.pad_token is None
    assert len(evaluate(model, load_dataset("pocket-counterfact", limit=2)).records) == 2, "generates, too"
    ids = model.tokenizer(text).input_ids
    again = load_model(str(model.save(tmp_path / "saved"))).tokenizer
    assert again(text).input_ids == ids and again.all_special_ids == model.tokenizer.all_special_ids
    assert _padding(model.tokenizer) == "none, so the token with id 0"


@pytest.mark.parametrize("name", ["llama-3", "gpt2-xl"])
def test_a_padding_token_without_an_embedding_is_not_used(name, tmp_path):
    model = grown(name, tmp_path, pad="[PAD]")
    assert model.lacks_embeddings and model.tokenizer.pad_token != "[PAD]"
    records = load_dataset("pocket-counterfact", limit=2)
    plain = load_model(str(write_checkpoint(tmp_path / "plain", name)))
    found, wanted = (evaluate(one, records, generate=False).means for one in (model, plain))
    assert found == wanted


@pytest.mark.parametrize("field", ["subject", "target_new"])
def test_a_token_without_an_embedding_is_refused_by_record(field, tmp_path):
    model = grown("llama-3", tmp_path, word="Zorblax")
    record = load_dataset("pocket-counterfact", limit=1)[0]
    wrong = replace(record, **{field: "Zorblax"})
    message = rf"record {record.case_id}: .* has the token 'Zorblax', .* no embedding .*id 380; the model has 380"
    with pytest.raises(ValueError, match=message):
        evaluate(model, [wrong], generate=False)
    editor = get_editor("ft", model, layers=[0], steps=1, learning_rate=0.1)
    with pytest.raises(ValueError, match=message):
        edit_sequence(model, [wrong], editor, batch_size=1)
    assert evaluate(model, [record], generate=False).means
