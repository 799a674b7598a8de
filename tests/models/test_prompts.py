"""The subject's last token, targets, padding: for all three tokenizers, with and without BOS."""

from __future__ import annotations

import pytest
import torch

from bluelib import load_model
from bluelib.models.model import Model
from bluelib.models.prompts import by_length, encode_prompt, encode_target, fill, locate, pad
from bluelib.pocket.tokenizer import build_tokenizer

TEMPLATES = [
    "{} plays the",
    "The mother tongue of {} is",
    "What is the instrument of {}",
    "In which city is {}?",
]
SUBJECTS = [
    "Eiffel Tower",
    "Zoë D'Astrelle",
    "Ilvane Ashby-Quorn",
    "Saint Kitts and Nevis",
    "St. John's",
    "東京 Żółw",
    "X",
]


@pytest.fixture(scope="module", params=[False, True], ids=["without BOS", "with BOS"])
def tokenizer(request):
    return build_tokenizer(bos=request.param)


@pytest.mark.parametrize("prefix", ["", "Badgerwick makes tea. "])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_subject_last_token(tokenizer, template, subject, prefix):
    """Decoding up to and including the token gives the text up to the subject's end; one token less does not."""
    place = locate(tokenizer, template, subject, prefix)
    text = prefix + fill(template, subject)
    upto = prefix + template[: template.index("{}")] + subject
    assert place.ids == encode_prompt(tokenizer, text)

    def decoded(n):
        return tokenizer.decode(place.ids[:n], skip_special_tokens=True)

    assert decoded(place.subject_last + 1) == upto
    assert decoded(place.subject_last) != upto
    assert (place.ids[0] == tokenizer.bos_token_id) == (tokenizer.bos_token != tokenizer.eos_token)


def test_a_subject_that_occurs_twice_is_found_where_the_template_puts_it(tokenizer):
    prefix = "Peru is far. "
    place = locate(tokenizer, "The neighbour of {} is not Peru but", "Peru", prefix)
    assert (
        tokenizer.decode(place.ids[: place.subject_last + 1], skip_special_tokens=True)
        == prefix + "The neighbour of Peru"
    )


def test_a_token_that_reaches_beyond_the_subject_still_counts(tokenizer):
    """Where the subject's end is merged with what follows, the token that holds its last character is meant."""
    place = locate(tokenizer, "In {}ce, people speak", "Fran")
    text = tokenizer.decode(place.ids[: place.subject_last + 1], skip_special_tokens=True)
    assert text == "In France", "the case: one token reaches beyond the subject"
    assert tokenizer.decode(place.ids[: place.subject_last], skip_special_tokens=True) == "In"


def test_targets_have_no_special_tokens(tokenizer):
    ids = encode_target(tokenizer, "East Timor")
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids) == " East Timor"
    assert encode_target(tokenizer, " East Timor ") == ids


def test_other_braces_are_left_alone(tokenizer):
    assert fill("a {x} {} {}", "S") == "a {x} S {}"
    with pytest.raises(ValueError, match=r"has no \{\}"):
        locate(tokenizer, "no subject here", "Peru")


def test_padding_is_on_the_right_whatever_the_tokenizer_says(tokenizer):
    tokenizer.padding_side = "left"
    batch = pad([[5, 6, 7], [8]], pad_id=0, device="cpu")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_batches_by_length_cover_everything_once_within_the_budget():
    lengths = [3, 9, 1, 4, 4, 50, 2]
    batches = list(by_length(lengths, token_budget=12))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12


def test_a_model_is_edited_if_its_bits_are_others_whatever_the_number_of_threads():
    model = load_model("pocket-llama")
    with torch.no_grad():
        for layer in range(model.n_layers):  # pocket weights are float16's, whose sums are exact
            model.weight(layer).copy_(
                torch.randn(model.weight(layer).shape, generator=torch.Generator().manual_seed(1))
            )
    model = Model.of(model.name, model.hf_model, model.tokenizer)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert model.changed_layers() == []
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        model.weight(1).neg_()
    assert model.changed_layers() == [1]
