"""Facts of one's own: every form that is read, what is said about what is missing, and every refusal."""

from __future__ import annotations

import json

import pytest

from bluelib import load_dataset, load_facts
from bluelib.data import Probe, Record, RecordError
from bluelib.data.datasets import DATASETS, NAMED, Dataset, _warn, choosing_split
from bluelib.data.own import parse_flat
from bluelib.metrics import evaluate
from tests.data.test_data import COUNTERFACT, FLAT, ZSRE
from tests.support.small import random_model

TOWER = {"subject": "Eiffel Tower", "prompt": "The Eiffel Tower is in", "target_new": "Rome"}
CURIE = {"subject": "Marie Curie", "prompt": "The mother tongue of Marie Curie is", "target_new": "Swahili"}
MINIMAL = [
    Record(0, "counterfact", "The {} is in", "Eiffel Tower", "Rome", None),
    Record(1, "counterfact", "The mother tongue of {} is", "Marie Curie", "Swahili", None),
]


@pytest.fixture(autouse=True)
def said_anew():
    _warn.cache_clear()


@pytest.fixture
def write(tmp_path):
    def write(content, name="my.json"):
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def lines(*entries):
    return "\n".join(json.dumps(entry) for entry in entries)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my.json", json.dumps([TOWER, CURIE])),
        ("my.jsonl", lines(TOWER, CURIE)),
        ("my.ndjson", lines(TOWER, CURIE).replace("\n", "\r\n\r\n") + "\n"),
        (
            "my.csv",
            "prompt, subject,target_new\nThe Eiffel Tower is in, Eiffel Tower,Rome\n"
            "The mother tongue of Marie Curie is,Marie Curie,Swahili\n",
        ),
        (
            "my.csv",
            'subject;target_new;prompt\r\nEiffel Tower;Rome;"The Eiffel Tower is in"\r\n;;\r\n'
            "Marie Curie;Swahili;The mother tongue of {} is\r\n",
        ),
        (
            "my.csv",
            " Prompt ,SUBJECT,Target New\nThe Eiffel Tower is in,Eiffel Tower,Rome\n"
            "The mother tongue of Marie Curie is,Marie Curie,Swahili\n",
        ),
        (
            "my.json",
            json.dumps(
                {
                    "prompts": [TOWER["prompt"], CURIE["prompt"]],
                    "subject": ["Eiffel Tower", "Marie Curie"],
                    "target_new": ["Rome", "Swahili"],
                    "ground_truth": None,
                }
            ),
        ),
        (
            "my.tsv",
            "subject\ttarget_new\tprompt\nEiffel Tower\tRome\tThe {} is in\nMarie Curie\tSwahili\t" + CURIE["prompt"],
        ),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_an_edit_is_all_that_a_fact_needs(write, name, content, mark):
    path = write(mark + content, name)
    assert load_facts(path) == MINIMAL
    assert load_dataset(path) == MINIMAL, "one reader for both"


def test_columns_of_a_toolkit(write):
    columns = {
        "prompts": [TOWER["prompt"], CURIE["prompt"]],
        "subject": ["Eiffel Tower", "Marie Curie"],
        "target_new": ["Rome", "Swahili"],
        "ground_truth": ["Paris", None],
        "rephrase_prompts": ["Where is the Eiffel Tower?", ["a", "b"]],
        "locality_inputs": {
            "neighborhood": {"prompt": ["The Louvre is in", ["x", "y"]], "ground_truth": ["Paris", ["1", "2"]]},
            "distracting": {"prompt": ["z"], "ground_truth": []},
        },
    }
    first, second = load_facts(write(columns))
    assert (first.target_true, second.target_true) == ("Paris", None)
    assert first.paraphrases == ("Where is the Eiffel Tower?",) and second.paraphrases == ("a", "b")
    assert first.locality == (Probe("The Louvre is in", "Paris"),)
    assert second.locality == (Probe("x", "1"), Probe("y", "2"))
    with pytest.raises(ValueError, match="column 'subject' must be a list of 2 like the prompts, not 1 items"):
        load_facts(write(columns | {"subject": ["Eiffel Tower"]}))
    with pytest.raises(ValueError, match="column 'target_new' must be a list of 2 like the prompts, not str"):
        load_facts(write(columns | {"target_new": "Rome"}))


def test_a_named_dataset_need_not_have_a_split_for_choices(write, monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", Dataset(write([TOWER]), parse_flat, "mine", pocket=False))
    assert choosing_split("mine") == "report" and choosing_split("facts") == "tune"
    assert load_dataset("mine") == MINIMAL[:1]


def test_a_parser_that_fails_names_the_record(write):
    path = write([TOWER, CURIE])
    with pytest.raises(RecordError, match=r"record at position 0: its parser failed: KeyError\('nope'\)"):
        load_dataset(path, parse=lambda entry, position: entry["nope"], limit=1)


def test_a_line_that_is_not_json_is_a_bad_record_like_another(write, caplog):
    path = write("\n".join([lines(TOWER), "{", lines(CURIE)]), "my.jsonl")
    assert [record.subject for record in load_facts(path, skip_bad=True)] == ["Eiffel Tower", "Marie Curie"]
    assert "my.jsonl, line 2 is not JSON" in caplog.text
    assert len(load_facts(path, limit=1)) == 1, "what is behind the limit is not looked at"
    with pytest.raises(RecordError, match=r"line 2 is not JSON.*; skip_bad"):
        load_facts(path)
    with pytest.raises(RecordError, match="line 1 is not JSON"):
        load_facts(write("{\n[", "my.jsonl"))


def test_a_table_has_several_texts_in_a_cell(write):
    table = (
        "case_id,subject,prompt,target_new,target_true,paraphrases,neighbours,locality_prompt,locality_ground_truth\n"
        'a,"Ann, the elder",{} lives in,Rome,Oslo,Home of {} is | {} is from,,Bo lives in | Cy lives in,Oslo | Bonn\n'
        "b,Bo,Bo lives in,Rome,,,Cy lives in,,\n"
    )
    assert load_facts(write(table, "my.csv")) == [
        Record(
            "a",
            "counterfact",
            "{} lives in",
            "Ann, the elder",
            "Rome",
            "Oslo",
            ("Home of Ann, the elder is", "Ann, the elder is from"),
            (Probe("Bo lives in", "Oslo"), Probe("Cy lives in", "Bonn")),
        ),
        Record("b", "counterfact", "{} lives in", "Bo", "Rome", None, (), (Probe("Cy lives in"),)),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "The {} is in"}, {}),
        ({"target_true": "Paris"}, {"target_true": "Paris"}),
        ({"ground_truth": "Paris"}, {"target_true": "Paris"}),
        ({"ground_truth": ["Paris", "Lutetia"]}, {"target_true": "Paris"}),
        ({"ground_truth": [["Paris"]]}, {"target_true": "Paris"}),
        ({"ground_truth": None}, {}),
        ({"ground_truth": []}, {}),
        ({"paraphrases": "Where is the Eiffel Tower?"}, {"paraphrases": ("Where is the Eiffel Tower?",)}),
        ({"paraphrases": ["Where is the {}?", "x"]}, {"paraphrases": ("Where is the Eiffel Tower?", "x")}),
        ({"rephrase_prompt": ["a", "b"]}, {"paraphrases": ("a", "b")}),
        ({"neighbours": "The Louvre is in"}, {"locality": (Probe("The Louvre is in"),)}),
        (
            {"neighbors": ["The Louvre is in", {"prompt": "Big Ben is in", "answer": "London"}]},
            {"locality": (Probe("The Louvre is in"), Probe("Big Ben is in", "London"))},
        ),
        ({"locality_prompt": "The Louvre is in"}, {"locality": (Probe("The Louvre is in"),)}),
        (
            {"locality_prompt": "The Louvre is in", "locality_ground_truth": "Paris"},
            {"locality": (Probe("The Louvre is in", "Paris"),)},
        ),
        (
            {
                "locality": {
                    "Relation_Specificity": [{"prompt": "It was built by", "ground_truth": [["Eiffel", "G. E."]]}]
                }
            },
            {"locality": (Probe("It was built by", "Eiffel"),)},
        ),
        ({"locality": {"Forgetfulness": [{"prompt": "x"}]}}, {}),
        ({"locality": {"Relation_Specificity": [{"prompt": "x", "ground_truth": []}]}}, {"locality": (Probe("x"),)}),
    ],
)
def test_forms_and_names_of_the_optional_fields(write, fields, expected):
    plain = {"paraphrases": (), "locality": (), "target_true": None}
    (record,) = load_facts(write([TOWER | fields]))
    assert record.request.text == "The Eiffel Tower is in"
    assert {name: getattr(record, name) for name in plain} == plain | expected


def test_fields_that_nothing_reads_are_named_once(write, caplog):
    knowedit = {"portability": {"Reasoning": []}, "locality": {"Other": []}, "relation_id": "P1"}
    load_facts(write([TOWER | knowedit, CURIE | knowedit]))
    assert caplog.text.count("fields that are not read: relation_id, locality.Other") == 1


@pytest.mark.parametrize(
    ("entries", "messages"),
    [
        (
            [TOWER, CURIE],
            [
                "2 of 2 records have no target_true: efficacy and generalization, which compare with it, are not measured"
            ],
        ),
        (
            [TOWER, CURIE | {"target_true": "Polish", "neighbours": ["x", {"prompt": "y", "answer": "z"}]}],
            ["1 of 2 records have no target_true", "1 of 2 neighbours have no answer"],
        ),
        (
            [TOWER | {"target_true": "Paris", "neighbours": ["x"]}],
            ["1 of 1 neighbours have no answer: specificity, which asks whether it is kept, is not measured"],
        ),
    ],
)
def test_what_cannot_be_measured_is_said_once(write, caplog, entries, messages):
    for _ in range(2):
        load_facts(write(entries))
    for message in messages:
        assert caplog.text.count(message) == 1


def test_what_can_be_measured_is(write):
    model = random_model("pocket-gpt2")
    full = {
        "target_true": "Paris",
        "paraphrases": ["To see the Eiffel Tower, go to"],
        "neighbours": [{"prompt": "Peru is in", "answer": "Asia"}, {"prompt": "Rome is in", "answer": "Asia"}],
    }
    whole = evaluate(model, load_facts(write([TOWER | full])))
    assert list(whole.means) == ["efficacy", "generalization", "specificity"]
    without_true = evaluate(model, load_facts(write([TOWER | full | {"target_true": None}])))
    assert without_true.means == {"specificity": whole.means["specificity"]}
    without_answers = evaluate(model, load_facts(write([TOWER | full | {"neighbours": ["Peru is in"]}])))
    assert without_answers.means == {name: whole.means[name] for name in ("efficacy", "generalization")}
    of_one = evaluate(model, load_facts(write([TOWER | full | {"neighbours": ["Peru is in", full["neighbours"][1]]}])))
    alone = evaluate(model, load_facts(write([TOWER | full | {"neighbours": [full["neighbours"][1]]}])))
    assert of_one == alone
    both = evaluate(model, load_facts(write([TOWER, CURIE | {"target_true": "Polish"}])))
    assert [list(record) for record in both.records] == [["case_id"], ["case_id", "efficacy"]]
    assert evaluate(model, load_facts(write([TOWER]))).means == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_new": 1912}, "record 0: field 'target_new' must be a string: write \"1912\" with quotes"),
        ({"target_new": 1.5}, "field 'target_new' must be a string: write \"1.5\" with quotes"),
        ({"target_new": True}, "field 'target_new' must be str, not bool"),
        ({"target_new": None}, "field 'target_new' must be str, not NoneType"),
        ({"ground_truth": 1889}, "field 'ground_truth' must be a string: write \"1889\" with quotes"),
        ({"prompt": "the eiffel tower is in the city of"}, "the subject 'Eiffel Tower'.*did you mean 'eiffel tower'?"),
        ({"prompt": "The Eifel-Tower is in"}, "did you mean 'Eifel-Tower'?"),
        ({"prompt": "The Eïffel Tower is in"}, "did you mean 'Eïffel Tower'?"),
        ({"prompt": "Peru lies in"}, "does not mention the subject 'Eiffel Tower': 'Peru lies in'; skip_bad"),
        ({"prompt": "{} and {} are"}, r"prompt must contain \{\} for the subject exactly once"),
        ({"prompt": "The Eiffel Tower and {} are"}, r"field 'prompt' contains \{\} besides the subject"),
        ({"subject": " "}, "subject must be a non-empty string"),
        ({"target_true": "Rome"}, "target_new must differ from target_true; both are 'Rome'"),
        ({"target_true": "a", "ground_truth": "b"}, "fields 'target_true' and 'ground_truth' have the same meaning"),
        ({"paraphrases": 5}, "field 'paraphrases' must be a string: write \"5\" with quotes"),
        ({"paraphrases": ["a", 5]}, r"field 'paraphrases\[1\]' must be a string: write \"5\" with quotes"),
        ({"paraphrases": [""]}, "paraphrases holds ''"),
        ({"neighbours": [5]}, r"field 'neighbours\[0\]' must be a prompt, or an object with prompt and answer, not 5"),
        ({"neighbours": [{"answer": "x"}]}, r"field 'neighbours\[0\]' must be a prompt, or an object with"),
        ({"neighbours": [{"prompt": "x", "answer": 5}]}, r"field 'neighbours\[0\].answer' must be a string"),
        ({"locality_ground_truth": "x"}, "one answer for each 'locality_prompt': 0, not 1"),
        ({"locality": []}, "field 'locality' must be dict, not list"),
        ({"locality": {"Relation_Specificity": {}}}, "field 'locality.Relation_Specificity' must be list, not dict"),
        ({"locality": {"Relation_Specificity": ["x"]}}, r"field 'locality.Relation_Specificity\[0\]' must be"),
        ({"case_id": None}, "field 'case_id' must be int or str"),
    ],
)
def test_a_fact_that_cannot_be_used_is_refused_with_what_would_be_right(write, change, message):
    with pytest.raises(RecordError, match=message):
        load_facts(write([TOWER | change]))


@pytest.mark.parametrize("name", ["subject", "prompt", "target_new"])
def test_what_a_fact_must_have(write, name):
    with pytest.raises(RecordError, match=f"record 0: field '{name}' is missing"):
        load_facts(write([{key: value for key, value in TOWER.items() if key != name}]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("my.jsonl", lines(TOWER) + "\n{", "my.jsonl, line 2 is not JSON"),
        ("my.jsonl", "", "must hold a JSON list of records, or be JSON Lines"),
        (
            "my.jsonl",
            '{"subject": "a", "subject": "b"}',
            "line 1, record without an id: field 'subject' appears twice",
        ),
        ("my.csv", "", "or a table"),
        ("my.csv", "subject,prompt,target_new\n", "or a table"),
        ("my.csv", "subject,prompt,subject\na,b,c\n", "column 'subject' appears twice in the header"),
        (
            "my.csv",
            "subject,prompt,target_new\nA,Well, A is in,Rome\n",
            "line 2: 4 cells, but 3 columns.*double quotes",
        ),
        ("my.csv", 'subject,prompt,target_new\nA,"A is in,Rome\n', "line 2: is not valid CSV"),
        ("my.csv", "subject,prompt,target_new\nA,A is in\n", "record 0: field 'target_new' is missing"),
        ("my.json", lines(TOWER, CURIE), "JSON Lines are read from a file that ends in .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_facts(write(content, name))


def test_a_table_that_is_not_in_utf_8_is_refused(tmp_path):
    (tmp_path / "my.csv").write_bytes("subject,prompt,target_new\nZoë,Zoë is in,Rome\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"my.csv must be in UTF-8"):
        load_facts(tmp_path / "my.csv")
    with pytest.raises(FileNotFoundError, match="is not a file; facts are read from JSON"):
        load_facts(tmp_path / "none.json")


def test_a_file_is_read_whatever_it_is_called(write, monkeypatch):
    """Also by the name of a dataset, or without a suffix."""
    path = write([TOWER], "pocket-zsre")
    monkeypatch.chdir(path.parent)
    assert load_facts("pocket-zsre") == MINIMAL[:1]
    assert len(load_dataset("pocket-zsre", limit=2)) == 2


BAD = {"subject": "Rio 463", "prompt": "By which company has D&R 463 been built?", "target_new": "Acme"}


def test_the_limit_applies_first(write):
    path = write([TOWER, BAD, CURIE])
    assert load_facts(path, limit=1) == MINIMAL[:1]
    with pytest.raises(RecordError, match=r"^record 1: field 'prompt' .*did you mean 'D&R 463'"):
        load_facts(path, limit=2)


def test_all_that_are_bad_are_named_at_once(write):
    entries = [BAD, TOWER, *[{"case_id": f"x{i}"} | CURIE | {"target_new": i} for i in range(12)]]
    with pytest.raises(RecordError) as refused:
        load_facts(write(entries))
    first, *reasons, more = str(refused.value).splitlines()
    assert first.startswith("13 records of ") and first.endswith(
        "my.json cannot be used; skip_bad (--skip-bad-records) leaves them out:"
    )
    assert len(reasons) == NAMED and more == "  and 3 more, records x9, x10, x11"
    assert [line.partition(":")[0] for line in reasons] == ["  record 0", *(f"  record x{i}" for i in range(9))]


def test_bad_records_are_left_out_when_asked_and_named(write, caplog):
    path = write([BAD, TOWER, 5, CURIE | {"case_id": 1}, CURIE])
    found = load_dataset(path, skip_bad=True)
    assert [(record.case_id, record.subject) for record in found] == [(1, "Eiffel Tower"), (4, "Marie Curie")]
    assert "3 of 5 records of " in caplog.text and "are left out" in caplog.text
    for reason in ("record 0: field 'prompt'", "record at position 2: must be an object", "record 1: field 'case_id'"):
        assert reason in caplog.text
    assert load_dataset(path, skip_bad=True, limit=2) == found, "the next ones take their place"
    with pytest.raises(ValueError, match="has 2 records that can be used; 3 were asked for"):
        load_dataset(path, skip_bad=True, limit=3)
    with pytest.raises(ValueError, match="has 0 records that can be used"):
        load_dataset(write([BAD]), skip_bad=True)


@pytest.mark.parametrize("entry", [COUNTERFACT, ZSRE, FLAT], ids=["CounterFact", "zsRE", "flat"])
def test_every_form_is_read_from_lines_and_its_bad_records_are_left_out(write, entry):
    bad = {key: value for key, value in entry.items() if key not in ("requested_rewrite", "src", "prompt")}
    path = write(lines({**entry, "case_id": "a"}, {**bad, "case_id": "b"}, {**entry, "case_id": "c"}), "my.jsonl")
    assert [record.case_id for record in load_dataset(path, skip_bad=True)] == ["a", "c"]
    with pytest.raises(RecordError, match=r"^record b: "):
        load_dataset(path)


def test_up_to_takes_all_where_there_are_fewer(write):
    path = write([TOWER, CURIE])
    assert load_dataset(path, up_to=100) == MINIMAL and load_dataset(path, up_to=1) == MINIMAL[:1]
    with pytest.raises(ValueError, match="2 records; 3 were asked for"):
        load_dataset(path, limit=3)
    with pytest.raises(ValueError, match="give only one of them"):
        load_dataset(path, limit=1, up_to=1)
    with pytest.raises(ValueError, match="up_to must be at least 1, not 0"):
        load_dataset(path, up_to=0)


@pytest.mark.parametrize(
    ("change", "separator", "text"),
    [
        ({"prompt": "The tower is in ", "subject": "tower", "separator": ""}, " ", "The tower is in"),
        ({"prompt": "A famous tower is {}", "subject": "Eiffel Tower "}, None, "A famous tower is Eiffel Tower"),
        ({"prompt": "The Eiffel Tower is in\u00a0"}, None, "The Eiffel Tower is in"),
        ({"prompt": "The Eiffel Tower is in\u3000"}, None, "The Eiffel Tower is in"),
        ({"prompt": "The Eiffel Tower is in:\n"}, None, "The Eiffel Tower is in:\n"),
    ],
)
def test_a_space_at_the_end_belongs_to_the_target_whatever_space_it_is(change, separator, text, write):
    (record,) = load_facts(write([TOWER | change]))
    assert (record.request.separator, record.request.text) == (separator, text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": "x is in"}, "fields 'subject' and 'target_new' are missing"),
        (
            TOWER | {"neighbours": ["{} is in"]},
            r"field 'neighbours\[0\]' has {}, the subject's place, but a neighbour is",
        ),
        (
            TOWER | {"subject": "Cafe\u0301", "prompt": "The Caf\u00e9 is in"},
            "with other characters that look the same",
        ),
        (TOWER | {"portability": {"Reasoning": [{"prompt": "p", "ground_truth": [1912]}]}}, 'write "1912" with quotes'),
    ],
)
def test_more_facts_that_cannot_be_used_are_refused_with_what_would_be_right(entry, message, write):
    with pytest.raises(RecordError, match=message):
        load_facts(write([entry]))


def test_objects_and_paraphrases_go_by_the_names_of_others_too(write):
    others = {"target_new": {"str": "Rome"}, "ground_truth": {"str": "Paris"}, "rephrase": "Where is it? In"}
    (record,) = load_facts(write([{"subject": "Eiffel Tower", "prompt": "The Eiffel Tower is in"} | others]))
    assert (record.target_new, record.target_true, record.paraphrases) == ("Rome", "Paris", ("Where is it? In",))


def test_a_table_has_no_separator(tmp_path):
    (tmp_path / "x.csv").write_text("subject,prompt,target_new,separator\nPeru,Peru is in,Asia, \n")
    with pytest.raises(ValueError, match="a table cannot have a column 'separator'"):
        load_facts(tmp_path / "x.csv")
