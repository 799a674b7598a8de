"""Records and arguments that nobody should send, and a CPU that must agree with itself."""

from __future__ import annotations

import ast
import copy
import json
import re
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.soak import soak
from bluelib import edit_sequence, evaluate, get_editor, load_dataset, load_model
from bluelib.data import Probe, Record, RecordError
from bluelib.data.benchmarks import parse_counterfact, parse_zsre
from bluelib.data.own import parse_flat
from bluelib.data.records import bare_end
from bluelib.editing.finetuning import FineTuning
from bluelib.editing.residuals import DIRECT
from bluelib.editing.second_moments import second_moments
from bluelib.editing.solvers import NullSpace, Ridge
from bluelib.editing.targets import TargetOptions, optimise_targets
from bluelib.models.generation import continue_greedily, generate_texts
from bluelib.models.model import weights_hash
from bluelib.models.prompts import Request, encode_prompt, fill, locate
from bluelib.models.representations import subject_keys
from bluelib.models.scoring import score_targets
from bluelib.pocket.tokenizer import build_tokenizer
from bluelib.runs.parameters import check_parameters
from tests.data.test_data import COUNTERFACT, FLAT, ZSRE
from tests.support.small import ARCHITECTURES, PREFIXES, RECORDS, TARGETS, editor

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

# Records.

CHUNKS = [
    "Ann",
    "Annette",
    "Zoë",
    "Zoe\u0308",
    " ",
    ".",
    "'s",
    "?",
    "{",
    "}",
    "{}",
    "}}",
    "{0}",
    "{subject.__class__}",
    "%s",
    "\\",
    '"',
    "\n",
    "\t",
    "\x00",
    "\x07",
    "\x1b[31m",
    "\u200b",
    "\u200d",
    "\u202e",
    "\ufeff",
    "\u0301",
    "🦦",
    "👩🏽‍🚀",
    "🇳🇴",
    "שלום",
    "مرحبا",
    "東京",
    "\ud800",
    "ﷺ",
    "𝔘",
    "<|endoftext|>",
    "é" * 40,
]
texts = st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=5).map("".join) | st.text(max_size=6)
wrong = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),  # JSON has no others
    st.lists(texts, max_size=2),
    st.just({"str": "x"}),
    st.just([[]]),
)
values = texts | wrong
subjects = texts | st.sampled_from(["Ann", "Ilvane Quillbrook", "Zoe", "東京"])


def drawn(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def put(entry, path, value):
    """The entry with a field set, or with it left out for ``...``."""
    entry = copy.deepcopy(entry)
    *parents, last = path.split(".")
    place = entry
    for key in parents:
        place = place.get(key)
        if not isinstance(place, dict):
            return entry
    if value is ...:
        place.pop(last, None)
    else:
        place[last] = value
    return entry


def paths(entry):
    return [
        path
        for key, value in entry.items()
        for path in ([key, *(f"{key}.{p}" for p in paths(value))] if isinstance(value, dict) else [key])
    ]


@st.composite
def entries(draw):
    """A record of one of the three forms: texts as nobody writes them, then up to two fields that are something else."""
    entry = copy.deepcopy(draw(st.sampled_from([COUNTERFACT, ZSRE, FLAT])))
    subject, before, after = draw(subjects), draw(texts), draw(texts)
    if "requested_rewrite" in entry:
        prompt = draw(st.sampled_from([before + "{}" + after, before + after]))
        entry["requested_rewrite"] |= {
            "subject": subject,
            "prompt": prompt,
            "target_new": {"str": draw(texts), "id": "Q"},
        }
    else:
        entry |= {"subject": subject, "src" if "src" in entry else "prompt": before + subject + after}
        entry |= {"answers": [draw(texts)]} if "src" in entry else {"target_new": draw(texts)}
    others = st.lists(st.sampled_from([*paths(entry), "case_id", "split", "surplus"]), max_size=2)
    for path in draw(st.just([]) | others):
        entry = put(entry, path, draw(st.just(...) | values))
    return entry


def written(entry):
    """The text to run, its subject, the target and the true object, as they stand in a raw record."""
    if "requested_rewrite" in entry:
        rewrite = entry["requested_rewrite"]
        text = rewrite["subject"].join(rewrite["prompt"].split("{}"))
        return text, rewrite["subject"], rewrite["target_new"]["str"], rewrite.get("target_true", {}).get("str")
    if "src" in entry:
        return entry["src"], entry["subject"], entry["answers"][0], None
    true = entry.get("ground_truth")
    while isinstance(true, list):  # the first of several
        true = true[0] if true else None
    return entry["prompt"], entry["subject"], entry["target_new"], true


tokenizers = {bos: build_tokenizer(bos=bos) for bos in (False, True)}


def last_byte(tokenizer, ids, text, end):
    """The token that holds the last byte of ``text[:end]``: a byte-level token has a character for each of its bytes."""
    left, special = len(text[:end].encode()), len(ids) - len(tokenizer(text, add_special_tokens=False).input_ids)
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        left -= len(token) if index >= special else 0
        if left <= 0 and index >= special:
            return index
    raise AssertionError("the text has fewer bytes")


FIELDS = sorted(
    {key for form in (COUNTERFACT, ZSRE, FLAT) for path in paths(form) for key in path.split(".")}
    | {"split", "target", "locality", "paraphrases"}
)


def accepted_or_refused(path, entry):
    """What the property is: the record as written, with its subject's last token found, or its id and a field named."""
    first = put(COUNTERFACT, "case_id", "the first")
    path.write_text(json.dumps([first, entry]), encoding="utf-8")
    try:
        _, record = load_dataset(path, parse=parser(entry))
    except ValueError as error:
        where = [f"record {entry.get('case_id', 1)}:", "at position 1:", f"record {entry.get('case_id', 1)} "]
        assert any(str(place) in str(error) for place in where), error
        assert any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in FIELDS), error
        return None
    text, subject, target, true = written(entry)
    text = text if record.prompt != text else fill(text, subject)  # the flat form's prompt may be a template already
    subject = bare_end(subject) if record.prompt.endswith("{}") else subject
    assert record.request == Request(record.prompt, subject, target)
    assert bare_end(record.request.text) == bare_end(text)  # a space at the end belongs to the target
    assert bare_end(record.request.text) == record.request.text
    text = record.request.text
    assert record.target_true == true
    at = record.prompt.index("{}")
    assert text[at : at + len(subject)] == subject
    for tokenizer in tokenizers.values():
        for prefix in ("", "東京 Ann. "):
            place = locate(tokenizer, record.prompt, record.subject, prefix)
            end = len(prefix) + at + len(subject.rstrip())
            assert place.subject_last == last_byte(tokenizer, place.ids, prefix + text, end)
    return record


def parser(entry):
    """Of a file that begins with a CounterFact record and goes on with this one, which may be in another form."""
    forms = {"pararel_idx": parse_counterfact, "locality_prompt": parse_flat}
    second = next((parse for key, parse in forms.items() if key in entry), parse_zsre)
    return lambda raw, position: (second if position else parse_counterfact)(raw, position)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("records") / "records.json"


@given(entry=entries())
@drawn(400)
def test_any_record_is_taken_as_written_or_refused_by_id_and_field(file, entry):
    accepted_or_refused(file, entry)


@pytest.mark.long
@given(entry=entries())
@drawn(10_000)
def test_ten_thousand_records_are_taken_as_written_or_refused_by_id_and_field(file, entry):
    accepted_or_refused(file, entry)


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Ann", "Where does Ann meet Annette?", "Where does {} meet Annette?"),
        ("Ann", "Ann and Ann of", "Ann and {} of"),
        ("Ann", "Annette's sister is", "{}ette's sister is"),
        ("Ann", "Jo-Ann meets JoAnn in", "Jo-{} meets JoAnn in"),
        ("Zoe", "Zoe\u0308 and Zoe met Zoe\u0308 in", "Zoe\u0308 and {} met Zoe\u0308 in"),
        ("東京", "東京は東京都の", "東京は{}都の"),
        ("aa", "aaa lives in", "a{} lives in"),
        ("{}", "{} is a pair of", "{} is a pair of"),
        ("Ann", "{Ann} lives in", "{{}} lives in"),
        ("🦦", "🦦\u200d🦦 and", "🦦\u200d{} and"),
    ],
)
def test_a_full_prompt_is_cut_at_its_last_mention_of_the_subject_as_such(file, subject, prompt, template):
    record = accepted_or_refused(file, FLAT | {"subject": subject, "prompt": prompt})
    assert record.prompt == template


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [("Zoe", "Zoe\u0308 lives in"), ("Zoë", "Zoe\u0308 lives in"), ("❤", "❤\ufe0f means"), ("Ann", "In {}, Ann is")],
)
def test_a_full_prompt_that_mentions_another_subject_or_holds_braces_is_refused(file, subject, prompt):
    assert accepted_or_refused(file, FLAT | {"subject": subject, "prompt": prompt}) is None
    assert accepted_or_refused(file, ZSRE | {"subject": subject, "src": prompt}) is None
    with pytest.raises(RecordError, match="record 1: field 'src' "):
        load_dataset(file, parse=parser(ZSRE))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "requested_rewrite.prompt",
            "{} and {} are",
            r"record 12: prompt must contain \{\} for the subject exactly once",
        ),
        ("requested_rewrite.prompt", "\u200b", "record 12: prompt must be a text with a visible character"),
        ("requested_rewrite.subject", "\u200b\u202e", "record 12: subject must be a text with a visible character"),
        ("requested_rewrite.subject", "\ud800", "record 12: subject must be a text without lone surrogates"),
        (
            "requested_rewrite.target_new.str",
            "Polish ",
            "record 12: target_new must differ from target_true",
        ),
        ("requested_rewrite.target_new.str", "\x00", "record 12: target_new must be a text with a visible character"),
        ("paraphrase_prompts", ["good", " \n"], r"record 12: paraphrases holds ' \\n'"),
        ("neighborhood_prompts", [["nested"]], r"record 12: locality holds \['nested'\]"),
        ("case_id", True, "at position 1: field 'case_id' must be int or str, not bool"),
        ("case_id", None, "at position 1: field 'case_id' must be int or str, not NoneType"),
        ("case_id", " ", "at position 1: field 'case_id' must be a non-empty string"),
        ("case_id", "the first", "record the first: field 'case_id' at position 1 must differ from that at position 0"),
        ("split", "test", "at position 1: field 'split' must be one of tune, report, not 'test'"),
    ],
)
def test_what_a_record_is_refused_for(file, path, value, message):
    file.write_text(json.dumps([put(COUNTERFACT, "case_id", "the first"), put(COUNTERFACT, path, value)]))
    with pytest.raises(RecordError, match=message):
        load_dataset(file)


def test_ids_of_zsre_are_checked_though_it_need_not_have_any(file):
    for case_id in (None, [1], 2.5, True):
        file.write_text(json.dumps([ZSRE, ZSRE | {"case_id": case_id}]))
        with pytest.raises(RecordError, match="at position 1: field 'case_id' must be int or str"):
            load_dataset(file)
    file.write_text(json.dumps([ZSRE | {"case_id": 1}, ZSRE]))
    with pytest.raises(
        RecordError, match="record 1: field 'case_id' at position 1 must differ from that at position 0"
    ):
        load_dataset(file)


@pytest.mark.parametrize("entry", [COUNTERFACT, ZSRE, FLAT], ids=["CounterFact", "zsRE", "flat"])
def test_fields_in_surplus_and_empty_lists_are_no_hindrance(file, entry):
    plain = accepted_or_refused(file, entry)
    assert accepted_or_refused(file, entry | {"surplus": [None], "loc_prompt": 5}) == plain
    if "requested_rewrite" in entry:
        lists = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
        record = accepted_or_refused(file, entry | {key: [] for key in lists})
        assert record == replace(plain, paraphrases=(), locality=(), attribute_prompts=(), generation_prompts=())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b" \n", "is not JSON"),
        (
            "\n".join([json.dumps(COUNTERFACT)] * 2).encode(),
            "is not JSON: Extra data.*JSON Lines are read from a file that ends in .jsonl",
        ),
        (json.dumps([COUNTERFACT]).encode("utf-16"), "must be in UTF-8"),
        (json.dumps([ZSRE | {"alt": "Zoë"}], ensure_ascii=False).encode("latin-1"), "must be in UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "is not JSON: Exceeds the limit"),
        (b"null", "must hold a JSON list of records"),
        (b"[[]]", "record at position 0 must be an object, not list"),
        (
            json.dumps([FLAT]).replace('"tuba"', '"tuba", "target_new": "lute"').encode(),
            "record 3: field 'target_new' appears twice",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_by_its_name(file, content, message):
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}.* ?{message}"):
        load_dataset(file)


@pytest.mark.parametrize("entry", [COUNTERFACT, ZSRE, FLAT], ids=["CounterFact", "zsRE", "flat"])
def test_a_byte_order_mark_is_passed_over(file, entry):
    file.write_text(json.dumps([entry]), encoding="utf-8")
    plain = load_dataset(file)
    file.write_text(json.dumps([entry]), encoding="utf-8-sig")
    assert load_dataset(file) == plain


@pytest.mark.slow
@pytest.mark.parametrize("entry", [COUNTERFACT, ZSRE, FLAT], ids=["CounterFact", "zsRE", "flat"])
def test_a_hundred_thousand_records_are_loaded_in_little_memory(file, entry):
    file.write_text(json.dumps([entry | {"case_id": i} for i in range(100_000)]), encoding="utf-8")
    before = psutil.Process().memory_info().rss
    records = load_dataset(file)
    assert [record.case_id for record in records] == list(range(100_000))
    grown = psutil.Process().memory_info().rss - before
    assert grown < 15 * file.stat().st_size, f"{grown / 2**20:.0f} MB"
    del records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "trivia"}, "record 0: kind must be counterfact or zsre, not 'trivia'"),
        ({"paraphrases": "text"}, "record 0: paraphrases must be a tuple, not 'text'"),
        ({"locality": (Probe("", "x"),)}, "record 0: locality holds ''"),
        ({"prompt": "nothing"}, r"record 0: prompt must contain \{\}"),
        ({"target_true": ""}, "record 0: target_true must be a non-empty string, not ''"),
        ({"kind": "zsre", "target_true": 5}, "record 0: target_true must be a non-empty string, not 5"),
    ],
)
def test_a_record_made_by_hand_is_checked_too(change, message):
    with pytest.raises(RecordError, match=message):
        replace(RECORDS[0], **change)


HOSTILE = st.builds(
    lambda subject, before, after, target: (before + "{}" + after, subject, target), subjects, texts, texts, texts
)


def edited_or_refused(model, method, prompt, subject, target):
    """An accepted record's edit is finite and reaches the model; a refused one leaves it as it was."""
    try:
        record = Record("x1", "zsre", prompt, subject, target, None)
    except RecordError as error:
        assert str(error).startswith("record x1: ")
        return None
    before = weights_hash(model.hf_model)
    try:
        run = edit_sequence(model, [record], method, batch_size=1, progress=False)
    except ValueError as error:
        assert str(error).startswith("record x1: ")
        assert weights_hash(model.hf_model) == before
        return False
    assert all(torch.isfinite(model.weight(layer)).all() for layer in method.layers)
    assert all(0 < change < float("inf") for change in run.weight_change().values())
    run.revert()
    return True


@pytest.fixture
def method(small_world):
    return replace(editor(residual=DIRECT, layers=(0, 2)), targets=replace(TARGETS, steps=2))


@given(edit=HOSTILE)
@example(edit=("{} plays the", "Ann " * 2500, "tuba"))
@example(edit=("{} plays the", "Ann", "tuba " * 300))
@example(edit=("{}", "🦦", "<|endoftext|>"))
@drawn(6)
def test_an_accepted_record_is_edited_and_a_refused_one_costs_nothing(any_model, method, edit):
    edited_or_refused(any_model, method, *edit)


def test_of_such_records_some_are_edited_and_some_are_not(any_model, method):
    """Otherwise the test above would say nothing."""
    assert edited_or_refused(any_model, method, "{} plays the", "Ann", "tuba") is True
    assert edited_or_refused(any_model, method, "{} plays the", "Ann " * 2500, "tuba") is False
    assert edited_or_refused(any_model, method, "no place", "Ann", "tuba") is None


@pytest.mark.long
@given(edit=HOSTILE)
@drawn(200)
def test_two_hundred_accepted_records_are_edited(any_model, method, edit):
    edited_or_refused(any_model, method, *edit)


# Limits.

LONG = "Peru is far and " * 80  # more than the pocket models' 256 tokens


def long_by_prefix(model):
    """A record that fits into the context alone, but not behind a context prefix."""
    record = replace(RECORDS[0], case_id="long", prompt="{} is")
    while len(encode_prompt(model.tokenizer, record.request.text)) < model.max_positions - 3:
        record = replace(record, prompt=record.prompt + " far")
    return record


def test_what_is_longer_than_the_context_is_refused_before_any_work(any_model, small_world, monkeypatch):
    fits = long_by_prefix(any_model)
    score_targets(any_model, [(fits.request.text, "tuba")])
    before = weights_hash(any_model.hf_model)
    monkeypatch.setattr(type(any_model.hf_model.base_model), "forward", None)  # nothing may run
    whole = "exceed random-pocket-.*'s context of 256"
    for record in (
        fits,
        replace(fits, prompt=LONG + "{} is"),
        replace(fits, prompt="{} is", subject=LONG),
        replace(fits, prompt="{} is", target_new=LONG),
    ):
        with pytest.raises(ValueError, match=f"record long: context prefix, prompt and target_new: .*{whole}"):
            edit_sequence(any_model, [*RECORDS, record], editor(), batch_size=2)
        with pytest.raises(ValueError, match=f"with a context prefix and its target: .*{whole}"):
            optimise_targets(any_model, [record.request], 1, PREFIXES, TARGETS)
    assert weights_hash(any_model.hf_model) == before
    ft = FineTuning("ft", (1,), 2)
    with pytest.raises(ValueError, match=f"record long: .*{whole}"):
        edit_sequence(any_model, [replace(fits, target_new=LONG)], ft, batch_size=1)
    for change in ({"paraphrases": (LONG,)}, {"locality": (Probe(LONG, "x"),)}, {"target_new": LONG}):
        with pytest.raises(ValueError, match=f"record 0: .*with its target: .*{whole}"):
            evaluate(any_model, [replace(RECORDS[0], **change)])
    with pytest.raises(ValueError, match=r"record 0: .*tokens leave nothing to generate of a text of 100"):
        evaluate(any_model, [replace(RECORDS[0], generation_prompts=(LONG,))])
    with pytest.raises(ValueError, match="leave nothing to generate"):
        generate_texts(any_model, ["Peru", LONG])
    with pytest.raises(ValueError, match=r"length must be between 1 and random-pocket-.*'s context, 256; it is 300"):
        generate_texts(any_model, ["Peru"], length=300)
    with pytest.raises(ValueError, match=f"'Peru' and 300 tokens to generate: .*{whole}"):
        continue_greedily(any_model, ["Peru"], [300])
    with pytest.raises(ValueError, match=whole):
        subject_keys(any_model, [Request("{} is", LONG, "x")], 1, ("",))


@pytest.mark.parametrize("size", [0, -1, 6, True, 2.5, "3", None])
def test_a_batch_size_that_is_none_is_refused(any_model, size):
    what = (
        "between 1 and the number of records, 5; it is"
        if isinstance(size, int) and size is not True
        else "a whole number, not"
    )
    with pytest.raises(ValueError, match=f"batch_size must be {what} {size!r}"):
        edit_sequence(any_model, RECORDS, editor(), batch_size=size)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "0"])
def test_a_seed_that_is_none_is_refused(any_model, seed):
    for call in (
        partial(evaluate, any_model, RECORDS),
        partial(load_dataset, "pocket-zsre"),
    ):
        with pytest.raises(ValueError, match="seed must be"):
            call(seed=seed)


def test_more_records_than_there_are_are_refused():
    with pytest.raises(ValueError, match="pocket-zsre has 400 records in split tune; 401 were asked for"):
        load_dataset("pocket-zsre", split="tune", limit=401)
    for limit in (0, -3, True, 2.5, "3"):
        with pytest.raises(ValueError, match="limit must be"):
            load_dataset("pocket-zsre", limit=limit)
    for split in ("test", 5, True):
        with pytest.raises(ValueError, match="is not one of tune, report"):
            load_dataset("pocket-zsre", split=split)


@pytest.mark.parametrize("layers", [[], [1, 1], [0, 10], [-1, 2], ["1"], [1.0], [True, 2], "12", 3.5, [[1]]])
def test_layers_that_are_none_are_refused(any_model, layers):
    with pytest.raises(ValueError, match=r"not distinct layers of random-pocket-.*, which has 0 to 3"):
        get_editor("memit", any_model, layers=layers, mom2_update_weight=1)
    with pytest.raises(ValueError, match=r"not distinct layers"):
        second_moments(any_model, layers)
    if isinstance(layers, list):
        with pytest.raises(ValueError, match="layer"):
            edit_sequence(any_model, RECORDS, editor(layers=tuple(layers)), batch_size=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (partial(Ridge, value), "λ must be positive")
            for value in (0, -1, float("nan"), float("inf"), "1", True, None)
        ),
        *((partial(NullSpace, value, 1.0), "threshold must be positive") for value in (0, -1, float("nan"), "1")),
        *((partial(NullSpace, 1.0, value), "L2 must be positive") for value in (0, -1, float("inf"), None)),
        *((partial(TargetOptions, steps=value), "steps must be") for value in (0, -1, 2.5, True, "3")),
        *(
            (partial(TargetOptions, **{name: value}), f"{name} must be positive")
            for name in ("learning_rate", "clamp")
            for value in (0, -1, float("nan"), "1")
        ),
        *(
            (partial(TargetOptions, **{name: value}), f"{name} must be 0 or positive")
            for name in ("weight_decay", "kl_factor", "early_stop")
            for value in (-1, float("nan"), "1")
        ),
        *((partial(replace, editor(), tokens=value), "tokens must be") for value in (0, -5, 1e5, True)),
        *((partial(replace, editor(), token_budget=value), "token_budget must be") for value in (0, -5, 1.5)),
        (partial(FineTuning, "ft", (1,), 0), "steps must be at least 1, not 0"),
        (partial(FineTuning, "ft", (1,), 5, -1.0), "learning_rate must be positive"),
        (partial(FineTuning, "ft", (1,), 5, 1.0, 0.0), "norm_constraint must be positive"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_that_are_unknown_are_refused_with_the_known_ones(any_model):
    settings = {"layers": [0, 1], "mom2_update_weight": 1.0}
    for call, message in (
        (partial(get_editor, "memitt", any_model), "no editor is called 'memitt'; did you mean 'memit'"),
        (
            partial(get_editor, "memit", any_model, corpus="pockett", **settings),
            "no corpus is called 'pockett'; known: pocket, pocket-others",
        ),
        (partial(load_model, "pocket-bert"), "known: pocket-gpt2, pocket-gptj, pocket-llama"),
        (partial(load_model, "pocket-llama", device="gpu0"), "neither auto nor a torch device"),
        (partial(load_model, "pocket-llama", dtype="int8"), "one of float32, bfloat16, float16"),
        (partial(load_dataset, "pocket-trivia"), "known: pocket-counterfact, pocket-zsre"),
        (
            partial(edit_sequence, any_model, RECORDS, editor(), batch_size=1, on_conflict="first"),
            "one of last, keep, refuse",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# Parameters of notebooks.


@lru_cache
def checked_parameters(path):
    """A notebook's parameters with their defaults, the known ones, and its call of ``check_parameters``."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    (first,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    defaults: dict = {}
    exec(cells[first].source, defaults)
    defaults.pop("__builtins__")
    check = ast.parse(cells[first + 1].source).body[0]
    known = eval(compile(ast.Expression(check.value.args[1]), path.name, "eval"))
    return defaults, known, compile(ast.Module([check], []), path.name, "exec")


BAD_VALUES = {
    "editor": "memitt",
    "editors": ["memit", "memitt"],
    "batch_editors": [3],
    "edits": 0,
    "batch_size": -1,
    "seed": -1,
    "corpus": "no/such/text",
    "samples": 0,
    "window": -1,
    "noise": float("nan"),
    "sequences": 0,
    "largest": 0,
    "every": 0,
    "tasks": [1],
    "limit": -4,
    "facts": 3,
    "live_edits": 0,
    "projection": "umap",
    "sizes": [5, 0],
    "sentences": 99,
    "long_dataset": "no/such/file.json",
    "models": [None],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_refuses_every_wrong_parameter(path):
    """Its check is run as it stands in its cell, on what papermill would make of the parameters."""
    defaults, known, check = checked_parameters(path)
    given = {"check_parameters": check_parameters, **defaults}
    exec(check, dict(given))
    listing = re.escape(next(iter(known)))
    with pytest.raises(ValueError, match=f"unknown parameter: modle; known: {listing}"):
        exec(check, given | {"modle": 3})
    for name, kind in known.items():
        for value in ("3", 3, 2.5, True, None, ["3"]):
            if type(value) is not kind:
                with pytest.raises(
                    ValueError, match=f"parameter {name} must be {kind.__name__}, not .*; known: {listing}"
                ):
                    exec(check, given | {name: value})
    for name in known.keys() & BAD_VALUES.keys():
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            exec(check, given | {name: BAD_VALUES[name]})
        assert any(word in str(refused.value) for word in (name, "editor", "corpus", "sizes", "sentences", "file.json"))
    if "batch_size" in known:
        with pytest.raises(ValueError, match="batch_size must be between 1 and the number of edits, 3; it is 4"):
            exec(check, given | {"edits": 3, "batch_size": 4})


@pytest.mark.slow
def test_papermill_stops_at_a_value_out_of_its_range(tmp_path):
    notebook = next(path for path in NOTEBOOKS if path.name.startswith("07"))
    with pytest.raises(papermill.PapermillExecutionError, match="projection must be one of pca, tsne, not 'umap'"):
        papermill.execute_notebook(
            str(notebook), str(tmp_path / "out.ipynb"), {"projection": "umap"}, cwd=str(tmp_path), progress_bar=False
        )
    ran = [cell for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if cell.get("execution_count")]
    assert ran[-1].source.startswith("check_parameters(")


# The CPU against itself.

#: ‖Δ − Δ′‖ / ‖Δ‖ over all edited layers together, in float32. RECT keeps the entries above a threshold, so that one
#: that lies at it is in or out, whole, by a rounding.
TOLERANCE = {"memit": 1e-4, "memit_blue": 1e-4, "alphaedit_blue": 1e-4, "rect": 3e-2}


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLUELIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


def edit_and_score(model, method, records, asked):
    """Δ of all layers in one vector, and the scores of ``asked``; the model is put back."""
    before = {layer: model.weight(layer).clone() for layer in method.layers}
    run = edit_sequence(model, records, method, batch_size=len(records), progress=False)
    delta = torch.cat([(model.weight(layer) - old).flatten() for layer, old in before.items()])
    scores = evaluate(model, asked, generate=False).records
    run.revert()
    return delta, scores


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "memit_blue" else pytest.mark.long) for name in TOLERANCE],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cpu_agrees_with_itself(architecture, name, own_cache, two_threads):
    """Edits in another order, in other micro-batches, with another padding side, on two threads; float32."""
    model = load_model(architecture)
    records = load_dataset("pocket-counterfact", split="report", limit=4)
    method = get_editor(name, model, tokens=20_000, steps=10)
    delta, scores = edit_and_score(model, method, records, records)
    assert delta.norm() > 0.01

    def agree(edits=records, method=method):
        other, found = edit_and_score(model, method, edits, records)
        assert found == scores
        assert (other - delta).norm() <= TOLERANCE[name] * delta.norm()

    agree([records[i] for i in (2, 0, 3, 1)])
    agree(method=replace(method, token_budget=40))
    model.tokenizer.padding_side = "left"
    assert torch.equal(edit_and_score(model, method, records, records)[0], delta), "batches are padded by the library"
    two_threads()
    agree()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_do_not_depend_on_what_is_scored_beside_them(architecture, two_threads):
    """One record at a time, in another order, on two threads: accuracies alike, log-probabilities within 1e-4."""
    model = load_model(architecture)
    records = load_dataset("pocket-zsre", split="report", limit=6)
    pairs = [(r.request.text, target) for r in records for target in (r.target_new, r.target_true)]
    together = score_targets(model, pairs)
    backwards = score_targets(model, pairs[::-1])[::-1]
    single = [score_targets(model, [pair])[0] for pair in pairs]
    whole = evaluate(model, records, generate=False).records
    assert whole == tuple(evaluate(model, [record], generate=False).records[0] for record in records)
    two_threads()
    for other in (backwards, single, score_targets(model, pairs)):
        assert [score.accuracy for score in other] == [score.accuracy for score in together]
        worst = max(abs(a.log_prob - b.log_prob) for a, b in zip(other, together, strict=True))
        assert worst < 1e-4
    assert evaluate(model, records, generate=False).records == whole


@pytest.mark.long
@pytest.mark.parametrize("name", ["memit_blue", "alphaedit_blue"])
def test_memory_does_not_grow_along_a_sequence(name, own_cache):
    """200 batches of one edit: after the first 50, the process grows by less than 30 MB."""
    model = load_model("pocket-llama")
    records = load_dataset("pocket-counterfact", limit=200)
    rows = soak(model, get_editor(name, model, tokens=20_000, steps=5), records, batch_size=1, every=50)
    assert [row["edits"] for row in rows] == [50, 100, 150, 200]
    assert rows[-1]["resident_mb"] - rows[0]["resident_mb"] < 30
