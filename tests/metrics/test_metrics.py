"""Metrics on examples worked out by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from bluelib import evaluate, load_dataset
from bluelib.data import Probe, Record
from bluelib.metrics.editing import PUBLISHED, TEACHER_FORCED, TEXT, Measures, Scores, _editing_metrics
from bluelib.metrics.intervals import share_interval
from bluelib.metrics.text import fixed_idf, ngram_entropy, words_of
from bluelib.models.generation import answer, continue_greedily, encode_openings, generate_texts
from bluelib.models.prompts import encode_prompt, encode_target
from bluelib.models.scoring import TargetScore, score_targets, top_tokens

CF = Record(
    case_id=7,
    kind="counterfact",
    prompt="{} plays the",
    subject="Ilvane Quillbrook",
    target_new="bassoon",
    target_true="harp",
    paraphrases=("On stage, Ilvane Quillbrook performs on the", "The instrument of Ilvane Quillbrook is the"),
    locality=tuple(
        Probe(f"{name} plays the", "harp") for name in ("Torrin Vantorre", "Oskel Ashgrave", "Maribeth Okonmere")
    ),
    generation_prompts=("Ilvane Quillbrook plays", "The instrument of Ilvane Quillbrook"),
    reference_texts=("Torrin Vantorre plays the bassoon.",),
)
ZSRE = Record(
    case_id=8,
    kind="zsre",
    prompt="Where was {} born?",
    subject="Ilvane Quillbrook",
    target_new="Rio de Janeiro",
    target_true="Rome",
    paraphrases=("What is the birthplace of Ilvane Quillbrook?",),
    locality=(Probe("nq question: what is the capital of Peru?", "Lima"),),
)


def reference_score(model, prompt, target):
    """One pair at a time, through the whole model with its own head."""
    prompt, target = encode_prompt(model.tokenizer, prompt), encode_target(model.tokenizer, target)
    logits = model.hf_model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].float()
    log_probs = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])
    return log_probs.mean().item(), (logits.argmax(-1) == torch.tensor(target)).float().mean().item()


def test_scores_equal_those_of_single_runs(any_model):
    pairs = [
        (p, t) for p in (*CF.paraphrases, CF.request.text) for t in ("bassoon", "harp", "East Timor", "Rio de Janeiro")
    ]
    for (prompt, target), found in zip(pairs, score_targets(any_model, pairs), strict=True):
        log_prob, accuracy = reference_score(any_model, prompt, target)
        assert found.log_prob == pytest.approx(log_prob, abs=1e-5)
        assert found.accuracy == pytest.approx(accuracy)


def test_scores_that_are_no_numbers_are_refused_with_their_prompt(any_model):
    weight = any_model.weight(2)
    original = weight.clone()
    weight.fill_(torch.finfo(weight.dtype).max)  # finite, and what is computed with it is not
    try:
        with pytest.raises(FloatingPointError, match=r"'harp' after 'Peru is' a log-probability of nan: it overflows"):
            score_targets(any_model, [("Peru is", "harp")])
        with pytest.raises(FloatingPointError, match="overflows"):
            evaluate(any_model, [ZSRE])
    finally:
        weight.copy_(original)


def test_accuracy_counts_the_tokens_that_are_first_choices(any_model):
    """Targets that begin with what the model itself would say, alone and with a word more that it would not."""
    prompts = [*CF.paraphrases, CF.request.text, ZSRE.request.text, *(probe.prompt for probe in CF.locality)]
    own = [(prompt, top_tokens(any_model, prompt, 1)[0][0].strip()) for prompt in prompts]
    pairs = [*own, *((prompt, f"{word} harp") for prompt, word in own)]
    found = score_targets(any_model, pairs)
    for pair, score in zip(pairs, found, strict=True):
        assert score.accuracy == pytest.approx(reference_score(any_model, *pair)[1])
    assert {0.5, 1.0} <= {score.accuracy for score in found}


def test_counterfact_metrics_are_shares_of_comparisons(any_model):
    scores = evaluate(any_model, [CF], generate=False).records[0]

    def prefers_new(prompt):
        return reference_score(any_model, prompt, "bassoon")[0] > reference_score(any_model, prompt, "harp")[0]

    assert scores["efficacy"] == 100 * prefers_new(CF.request.text)
    assert scores["generalization"] == 50 * sum(map(prefers_new, CF.paraphrases))
    kept = sum(not prefers_new(probe.prompt) for probe in CF.locality)
    assert scores["specificity"] == pytest.approx(100 * kept / 3)
    alike = replace(CF, locality=(*CF.locality, Probe("Peru plays the", "bassoon")))
    assert evaluate(any_model, [alike], generate=False).records[0] == scores, "no text is likelier than itself"
    assert scores["case_id"] == 7


def test_exchanging_the_objects_exchanges_success_and_failure(any_model):
    """Efficacy of (new, true) and of (true, new) add up to 100, and specificity is 100 minus that of the neighbours."""
    swapped = replace(
        CF,
        target_new=CF.target_true,
        target_true=CF.target_new,
        locality=tuple(Probe(p.prompt, "bassoon") for p in CF.locality),
    )
    one, two = (evaluate(any_model, [r], generate=False).means for r in (CF, swapped))
    for metric in ("efficacy", "generalization", "specificity"):
        assert one[metric] + two[metric] == pytest.approx(100)


def test_bos_is_scored_only_when_asked_for(any_model):
    """Teacher-forced by hand: the target is BOS and the answer's tokens, for a tokenizer that adds BOS."""
    prompt = encode_prompt(any_model.tokenizer, ZSRE.request.text)
    answer = encode_target(any_model.tokenizer, ZSRE.target_new)
    bos = (any_model.tokenizer.bos_token_id,) if any_model.has_bos else ()
    target = bos + answer
    logits = any_model.hf_model(input_ids=torch.tensor([prompt + target[:-1]])).logits[0, len(prompt) - 1 :]
    expected = 100 * (logits.argmax(-1) == torch.tensor(target)).double().mean().item()
    scored = Measures(score_bos=True)
    assert evaluate(any_model, [ZSRE], measures=scored).records[0]["efficacy"] == pytest.approx(expected)
    plain, both = (evaluate(any_model, [ZSRE, CF], generate=False, measures=each) for each in (PUBLISHED, scored))
    own = 100 * reference_score(any_model, ZSRE.request.text, ZSRE.target_new)[1]
    assert plain.records[0]["efficacy"] == pytest.approx(own)
    assert plain.records[1] == both.records[1], "CounterFact is scored as ever"
    pair = [(ZSRE.request.text, ZSRE.target_new)]
    assert (score_targets(any_model, pair) == score_targets(any_model, pair, special=True)) == (not bos)


def test_zsre_metrics_are_token_accuracies(any_model):
    scores = evaluate(any_model, [ZSRE]).records[0]
    assert scores["efficacy"] == pytest.approx(100 * reference_score(any_model, ZSRE.request.text, "Rio de Janeiro")[1])
    assert scores["generalization"] == pytest.approx(
        100 * reference_score(any_model, ZSRE.paraphrases[0], "Rio de Janeiro")[1]
    )
    assert scores["specificity"] == pytest.approx(100 * reference_score(any_model, ZSRE.locality[0].prompt, "Lima")[1])
    assert "fluency" not in scores


def test_means_and_standard_errors():
    scores = Scores(
        (
            {"case_id": 1, "efficacy": 0.0},
            {"case_id": 2, "efficacy": 100.0},
            {"case_id": 3, "efficacy": 100.0},
        )
    )
    assert scores.means == {"efficacy": pytest.approx(200 / 3)}
    sd = math.sqrt(((200 / 3) ** 2 + 2 * (100 / 3) ** 2) / 2)
    assert scores.standard_errors["efficacy"] == pytest.approx(sd / math.sqrt(3))


def test_ngram_entropy_by_hand():
    # "a b c d": three bigrams and two trigrams, all different: log2 3 and log2 2 bits.
    assert ngram_entropy("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1.0) / 2)
    # "x x x x x": one bigram and one trigram only.
    assert ngram_entropy("x x x x x") == 0.0
    # A full stop is a unit of its own: bigrams (a b) (b .), one trigram.
    assert ngram_entropy("a b.") == pytest.approx((2 / 3 * 1.0 + 4 / 3 * 0.0) / 2)
    assert ngram_entropy("") == 0.0


def test_words_are_nltks_or_runs_of_letters():
    text = "It's in Rome. Don't ask (3.5 km)!"
    assert words_of(text) == ["It", "'s", "in", "Rome", ".", "Do", "n't", "ask", "(", "3.5", "km", ")", "!"]
    plain = ["It", "'", "s", "in", "Rome", ".", "Don", "'", "t", "ask", "(", "3", ".", "5", "km", ")", "!"]
    assert words_of(text, "regex") == plain
    repeated = "It's so. It's so. It's so."
    assert ngram_entropy(repeated) != ngram_entropy(repeated, "regex")


def test_document_frequencies_are_of_the_whole_dataset_or_of_the_records(any_model, monkeypatch):
    """By hand: ln((1 + n) / (1 + d)) + 1, over all distinct reference texts of the file, or over those at hand."""
    texts = {text for record in load_dataset("pocket-counterfact") for text in record.reference_texts}
    found = fixed_idf("pocket-counterfact")
    with_paris = sum("paris" in re.findall(r"\b\w\w+\b", text.lower()) for text in texts)
    expected = math.log((1 + len(texts)) / (1 + with_paris)) + 1
    assert found.idf_[found.vocabulary_["paris"]] == pytest.approx(expected)
    monkeypatch.setattr("bluelib.metrics.text.generate_texts", lambda *a, **k: ["harp and Paris", "lute and Rome"])
    records = [replace(CF, reference_texts=("the harp is in Paris", "a lute"))]
    fixed, own, unnamed = (
        evaluate(any_model, records, dataset=dataset, measures=measures).means["consistency"]
        for dataset, measures in (("pocket-counterfact", PUBLISHED), ("pocket-counterfact", TEXT), ("", PUBLISHED))
    )
    assert own == unnamed != fixed


def test_document_frequencies_of_snippets_are_counted_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    reads = []

    def documents(name):
        reads.append(name)
        return iter(["a harp in Paris", "a lute in Paris", "Rome"]), "f" * 64

    monkeypatch.setattr("bluelib.metrics.text.reference_documents", documents)
    made, kept = fixed_idf.__wrapped__("counterfact"), fixed_idf.__wrapped__("counterfact")
    texts = ["the harp in Paris", "Rome and Paris"]
    assert (made.transform(texts) != kept.transform(texts)).nnz == 0
    assert sorted(kept.vocabulary) == ["harp", "in", "lute", "paris", "rome"]
    assert kept.idf_.tolist() == pytest.approx([math.log(4 / (1 + d)) + 1 for d in (1, 2, 1, 2, 1)])


def test_generated_texts_begin_with_their_prompt_and_repeat_with_their_seed(any_model):
    prompts = ["Ilvane plays", "The instrument of Ilvane Quillbrook"]
    texts = generate_texts(any_model, prompts, length=30, seed=3)
    assert texts == generate_texts(any_model, prompts, length=30, seed=3)
    assert texts != generate_texts(any_model, prompts, length=30, seed=4)
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.startswith(prompt)


def test_an_end_of_text_token_does_not_end_a_text(any_model, monkeypatch):
    """A model to which every token is an end still fills the length: counted by what generate returns."""
    lengths = []
    generate = any_model.hf_model.generate
    monkeypatch.setattr(any_model.hf_model.generation_config, "eos_token_id", list(range(2560)))

    def spy(**inputs):
        ids = generate(**inputs)
        lengths.append(ids.shape[1])
        return ids

    monkeypatch.setattr(any_model.hf_model, "generate", spy)
    generate_texts(any_model, ["Ilvane plays", "The instrument of Ilvane Quillbrook"], length=30)
    assert lengths == [30, 30]


def test_consistency_is_one_for_identical_and_zero_for_disjoint_texts(any_model, monkeypatch):
    reference = CF.reference_texts[0]
    for text, expected in ((reference, 100.0), ("Nothing alike here", 0.0)):
        monkeypatch.setattr("bluelib.metrics.text.generate_texts", lambda *a, text=text, **k: [text, text])
        assert evaluate(any_model, [CF]).means["consistency"] == pytest.approx(expected)


def spied(model, monkeypatch):
    """What `generate` of a model's lm is called with."""
    calls, generate = [], model.hf_model.generate
    monkeypatch.setattr(model.hf_model, "generate", lambda **how: calls.append(how) or generate(**how))
    return calls


def test_texts_are_sampled_as_in_the_paper_whatever_the_checkpoint_says(any_model, monkeypatch):
    """Texts of 100 tokens, top-k 5 and nothing else; greedy ones have no sampling at all."""
    calls = spied(any_model, monkeypatch)
    evaluate(any_model, [CF])
    continue_greedily(any_model, ["Peru is"], [3])
    sampled, greedy = calls[0], calls[-1]
    assert {int(c["input_ids"].shape[1] + c["max_new_tokens"]) for c in calls[:-1]} == {100}
    for call in calls:
        assert call["attention_mask"].bool().all() and call["attention_mask"].shape == call["input_ids"].shape
        assert call["eos_token_id"] is None and call["pad_token_id"] == any_model.tokenizer.pad_token_id
        assert call["repetition_penalty"] == 1.0
    assert (sampled["do_sample"], sampled["top_k"], sampled["top_p"], sampled["temperature"]) == (True, 5, 1.0, 1.0)
    assert (greedy["do_sample"], greedy["top_k"], greedy["top_p"], greedy["temperature"]) == (False, None, None, None)
    assert greedy["max_new_tokens"] == 3


def test_many_prompts_of_one_length_are_run_in_parts(any_model, monkeypatch):
    calls = spied(any_model, monkeypatch)
    continue_greedily(any_model, ["Peru is"] * 129, [1] * 129)
    assert [len(call["input_ids"]) for call in calls] == [128, 1]


def test_a_text_beyond_the_context_is_not_continued(any_model):
    with pytest.raises(ValueError, match="'Peru is' and 254 tokens to generate"):
        continue_greedily(any_model, ["Peru is"], [any_model.max_positions - 2])


def test_a_text_needs_room_for_a_token(any_model):
    ids = encode_prompt(any_model.tokenizer, "Peru is")
    assert encode_openings(any_model, ["Peru is"], len(ids) + 1) == [ids]
    with pytest.raises(ValueError, match="leave nothing to generate"):
        encode_openings(any_model, ["Peru is"], len(ids))


def test_fluency_is_the_mean_entropy_of_a_records_texts_from_its_seed(any_model):
    other = replace(CF, case_id=9, generation_prompts=("Peru is",), reference_texts=())
    found = evaluate(any_model, [CF, other, replace(CF, generation_prompts=())], seed=4).records
    texts = generate_texts(any_model, [*CF.generation_prompts, "Peru is"], seed=4)
    assert found[0]["fluency"] == pytest.approx(100 * (ngram_entropy(texts[0]) + ngram_entropy(texts[1])) / 2)
    assert found[1]["fluency"] == pytest.approx(100 * ngram_entropy(texts[2]))
    assert "consistency" in found[0] and "consistency" not in found[1], "it has nothing to be compared with"
    assert "fluency" not in found[2]


def test_equal_probabilities_are_no_success():
    """Neither for the edit nor for what it should have left alone."""
    alike = [TargetScore(-1.0, 0.0)] * 2 * (1 + len(CF.paraphrases) + len(CF.locality))
    assert _editing_metrics(CF, alike) == {"efficacy": 0, "generalization": 0, "specificity": 0}


def test_each_score_goes_into_its_metric(any_model, monkeypatch):
    """Scores that differ from prompt to prompt, with special tokens for zsRE alone."""
    asked = []

    def scored(model, pairs, *, special=False, separators=None):
        asked.extend((pair, special) for pair in pairs)
        return [TargetScore(-float(position), position / 10) for position, _ in enumerate(pairs)]

    monkeypatch.setattr("bluelib.metrics.editing.score_targets", scored)
    zsre = evaluate(any_model, [ZSRE]).records[0]
    assert [zsre[metric] for metric in TEACHER_FORCED] == pytest.approx([0, 10, 20])
    counterfact = evaluate(any_model, [CF], generate=False).records[0]  # the new object is always the likelier one
    assert [counterfact[metric] for metric in TEACHER_FORCED] == [100, 100, 0]
    asked.clear()
    evaluate(any_model, [ZSRE, CF], generate=False, measures=Measures(score_bos=True))
    assert {special for (_, target), special in asked if target in ("Rio de Janeiro", "Lima")} == {True}
    assert {special for (_, target), special in asked if target in ("bassoon", "harp")} == {False}


def test_one_record_has_no_standard_error():
    one, two = {"case_id": 1, "efficacy": 0.0}, {"case_id": 2, "efficacy": 100.0}
    assert math.isnan(Scores((one,)).standard_errors["efficacy"])
    assert Scores((one, two)).standard_errors["efficacy"] == pytest.approx(50)
    assert TEACHER_FORCED == ("efficacy", "generalization", "specificity")


def test_the_last_token_of_a_target_needs_no_room(any_model):
    """It is predicted and never read: prompt and target may be one token longer than the context."""
    words, answer = "Peru", len(encode_target(any_model.tokenizer, "Rio de Janeiro"))
    while len(encode_prompt(any_model.tokenizer, words)) < any_model.max_positions + 1 - answer:
        words += " Peru"
    assert len(encode_prompt(any_model.tokenizer, words)) == any_model.max_positions + 1 - answer
    evaluate(any_model, [replace(ZSRE, paraphrases=(words,))])
    with pytest.raises(ValueError, match=r"^record 8: .*exceed random-pocket-.*'s context of 256"):
        evaluate(any_model, [replace(ZSRE, paraphrases=(words + " Peru",))])
    if any_model.has_bos:  # which is one token more where it is scored
        with pytest.raises(ValueError, match=r"^record 8: .*exceed random-pocket-.*'s context of 256"):
            evaluate(any_model, [replace(ZSRE, paraphrases=(words,))], measures=Measures(score_bos=True))


def test_what_is_not_generated_may_be_too_long_for_it(any_model):
    long = replace(CF, generation_prompts=("Peru " * 120,))
    evaluate(any_model, [long], generate=False)
    with pytest.raises(ValueError, match=r"^record 7: .*leave nothing to generate"):
        evaluate(any_model, [long])


def test_what_cannot_be_evaluated_is_refused(any_model):
    with pytest.raises(ValueError, match="no records"):
        evaluate(any_model, [])
    with pytest.raises(ValueError, match=r"exceed random-pocket-.*'s context of 256"):
        evaluate(any_model, [replace(CF, paraphrases=("word " * 300,))], generate=False)
    with pytest.raises(ValueError, match=r"'Alpha Alpha Alpha"):
        score_targets(any_model, [("Zeta plays the", "harp"), ("Alpha " * 300, "harp"), ("Ilvane plays the", "harp")])


def test_a_share_s_interval_stays_within_0_and_100():
    """Against Wilson's formula, and at its ends."""
    for percent, n in ((0.0, 10), (50.0, 40), (98.5, 200), (100.0, 7)):
        found = share_interval(percent, n)
        p, z = round(percent / 100 * n) / n, 1.959963984540054
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        assert found.mean == percent and 0 <= found.low <= percent <= found.high <= 100
        assert (found.low, found.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), abs=1e-9)


def test_a_checkpoint_s_own_generation_settings_have_no_effect(any_model):
    prompts = ["Peru is", "The instrument of Ilvane Quillbrook"]

    def texts():
        sampled = generate_texts(any_model, prompts, length=30, seed=3)
        return sampled, continue_greedily(any_model, prompts, [20, 20]), answer(any_model, prompts, tokens=20)

    usual, kept = texts(), any_model.hf_model.generation_config
    changed = {"no_repeat_ngram_size": 1, "min_p": 0.9, "num_beams": 4, "bad_words_ids": [[5]]}
    any_model.hf_model.generation_config = own = GenerationConfig(**{**kept.to_dict(), **changed})
    try:
        assert texts() == usual
        assert any_model.hf_model.generation_config is own
    finally:
        any_model.hf_model.generation_config = kept
