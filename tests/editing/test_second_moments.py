"""Second moments: parts, continuation, corpora, and how much text they need."""

import json
import lzma
from dataclasses import replace

import pytest
import torch

from bluelib import get_editor, load_model
from bluelib.data.corpora import corpus_hash, count_tokens, token_sequences
from bluelib.editing import second_moments as statistics
from bluelib.editing.second_moments import check_text, enough_tokens, second_moments
from bluelib.editing.solvers import NullSpace, Ridge
from bluelib.models.model import Model
from bluelib.models.tracing import trace
from bluelib.pocket.text import PackedText
from bluelib.pocket.tokenizer import build_tokenizer
from bluelib.runs.statistics import describe_statistics
from bluelib.studies.convergence import convergence, rank, relative_change, write_convergence
from tests.support.folders import files
from tests.support.small import RECORDS, editor, random_model

TEXT = [
    f"{a} plays the {b} in {c}."
    for a in ("Ilvane", "Torrin", "Maribeth")
    for b in ("tuba", "harp", "kites")
    for c in ("Rome", "East Timor", "Peru is far away from here", "Oslo")
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(TEXT) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def model(small_world):
    return random_model("pocket-llama")


def test_they_are_the_mean_of_outer_products_over_the_text(model, text):
    found = second_moments(model, [1, 2], corpus=text, tokens=150)
    sequences, left = [], 150
    for line in TEXT:
        sequences.append(model.tokenizer(line).input_ids[:left])
        left -= len(sequences[-1])
        if not left:
            break
    for layer in (1, 2):
        total = 0
        for ids in sequences:
            with trace(inputs={0: model.value_projection(layer)}) as keys, torch.no_grad():
                model.hf_model(torch.tensor([ids]))
            total = total + keys[0][0].T.double() @ keys[0][0].double()
        torch.testing.assert_close(found[layer].matrix.double(), total / 150, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("moment", [1, 3, 5])
def test_an_interrupted_measurement_continues_to_the_same_bits(model, text, monkeypatch, tmp_path, moment):
    monkeypatch.setattr(statistics, "SHARD", 40)
    monkeypatch.setattr(statistics, "TOKEN_BUDGET", (64, 64))
    shard, calls, parts = statistics._shard, [], []
    monkeypatch.setattr(statistics, "_shard", lambda *arguments: parts.append(1) or shard(*arguments))
    whole = second_moments(model, [0, 2], corpus=text, tokens=300)
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(statistics, "WRITE_EVERY", -1.0)

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == moment + 1:
            raise KeyboardInterrupt
        return shard(*arguments)

    monkeypatch.setattr(statistics, "_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        second_moments(model, [0, 2], corpus=text, tokens=300)
    folder = tmp_path / "other" / "statistics"
    (unfinished,) = files(folder)
    assert "unfinished" in unfinished.name

    read = []
    monkeypatch.setattr(statistics, "_shard", lambda *arguments: read.append(1) or shard(*arguments))
    again = second_moments(model, [0, 2], corpus=text, tokens=300)
    for layer in (0, 2):
        assert torch.equal(again[layer].matrix, whole[layer].matrix)
    assert not unfinished.exists() and len(files(folder)) == 2
    assert len(parts) > 6 and len(read) == len(parts) - moment, "what was measured is not measured again"


def test_what_was_measured_of_other_layers_is_left_for_them(model, text, monkeypatch, tmp_path):
    """Layers 0 and 2 are wanted while layers 0 to 2 are unfinished: those go on later where they were."""
    monkeypatch.setattr(statistics, "SHARD", 40)
    monkeypatch.setattr(statistics, "WRITE_EVERY", -1.0)
    shard, read = statistics._shard, []

    def interrupted(*arguments):
        read.append(1)
        if len(read) == 4:
            raise KeyboardInterrupt
        return shard(*arguments)

    monkeypatch.setattr(statistics, "_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        second_moments(model, [0, 1, 2], corpus=text, tokens=300)
    other = second_moments(model, [0, 2], corpus=text, tokens=300)
    between = len(read)
    whole = second_moments(model, [0, 1, 2], corpus=text, tokens=300)
    assert between - 4 == len(read) - between + 3, "three shards were not read again"
    assert all(torch.equal(whole[layer].matrix, other[layer].matrix) for layer in (0, 2))
    assert not [path for path in (tmp_path / "statistics").glob("*unfinished*")]


def test_no_name_is_too_long_for_a_file(model, text, monkeypatch):
    """Of a text with a long name, and of all 80 layers of a large model."""
    long = text.with_name(f"{'long ' * 30}.txt")
    long.write_bytes(text.read_bytes())
    names = []
    monkeypatch.setattr(Model, "check_layers", lambda model, layers: tuple(layers))
    monkeypatch.setattr(statistics, "_measure", lambda *arguments: names.append(arguments[4].name) or {})
    with pytest.raises(FileNotFoundError):  # nothing was measured
        second_moments(model, range(80), corpus=long, tokens=10**9)
    assert names and len(f".{names[0]}.abcdefgh.tmp") < 255


def test_what_is_kept_is_of_one_model_as_loaded(model):
    """The same weights do not compute the same with another configuration, type or tokenizer."""
    key = model.cache_key
    again = random_model("pocket-llama")
    again.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4)
    again.hf_model.config._name_or_path = "elsewhere"
    assert again.cache_key == key
    lm, tokenizer = random_model("pocket-llama").hf_model, random_model("pocket-llama").tokenizer
    lm.config.rms_norm_eps *= 10
    assert Model.of("x", lm, tokenizer).revision == model.revision
    without_bos = random_model("pocket-llama").tokenizer
    without_bos.backend_tokenizer.post_processor = None
    keys = [key, Model.of("x", lm, tokenizer).cache_key, Model.of("x", model.hf_model, without_bos).cache_key]
    low = random_model("pocket-llama").hf_model.bfloat16()
    keys += [Model.of("x", low, tokenizer, model.revision).cache_key, replace(model, revision="f" * 40).cache_key]
    assert len(set(keys)) == 5


def test_a_text_counts_with_the_way_it_is_read(text):
    """JSON Lines under a name that no reader knows are a text of braces."""
    copy = text.with_suffix(".jsonl")
    copy.write_bytes(text.read_bytes())
    assert corpus_hash(str(copy)) != corpus_hash(str(text))


@pytest.mark.slow
def test_the_pocket_text_needs_a_token_to_separate_texts_with():
    rows = {}
    for bos, eos in (("<|begin_of_text|>", "<|endoftext|>"), (None, "<|endoftext|>"), (None, None)):
        tokenizer = build_tokenizer(bos=True)
        tokenizer.bos_token, tokenizer.eos_token = bos, eos
        if eos is None:
            with pytest.raises(ValueError, match="neither BOS nor EOS to put between texts"):
                PackedText(tokenizer, 64)
        else:
            rows[bos] = PackedText(tokenizer, 64).epoch(0)[0]
    assert rows[None].dtype == rows["<|begin_of_text|>"].dtype


def test_a_text_that_is_too_short_is_refused_with_its_length(model, text):
    length = sum(len(model.tokenizer(line).input_ids) for line in TEXT)
    with pytest.raises(ValueError, match=f"has {length} tokens; 9000 were asked for"):
        second_moments(model, [0], corpus=text, tokens=9000)


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "JSONL", "parquet", "csv", "saved"])
def test_a_local_dataset_gives_the_sequences_of_its_texts(model, text, tmp_path, kind, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    data = datasets.Dataset.from_dict({"text": TEXT, "title": ["?"] * len(TEXT)})
    path = tmp_path / f"data.{kind}"
    if kind.lower() in ("jsonl", "ndjson"):
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT), encoding="utf-8")
    else:
        {"parquet": data.to_parquet, "csv": data.to_csv, "saved": data.save_to_disk}[kind](str(path))
    assert list(token_sequences(model, str(path))) == list(token_sequences(model, str(text)))
    assert corpus_hash(str(path)) == corpus_hash(str(path)) != corpus_hash(str(text))


def test_a_dataset_without_texts_and_an_unknown_corpus_are_refused(model, tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    path = tmp_path / "data.jsonl"
    path.write_text('{"body": "x"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="needs a column 'text' of strings; it has body"):
        list(token_sequences(model, str(path)))
    packed = path.with_name("data.jsonl.xz")
    packed.write_bytes(lzma.compress(path.read_bytes()))
    with pytest.raises(ValueError, match="decompress it first; of compressed files only plain text is read"):
        list(token_sequences(model, str(packed)))
    with pytest.raises(ValueError, match="no corpus is called 'wikipaedia'"):
        list(token_sequences(model, "wikipaedia"))
    with pytest.raises(ValueError, match="no corpus is called 'wikipaedia'"):
        corpus_hash("wikipaedia")


def test_rank_and_relative_change():
    basis = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert rank(basis @ basis.T) == 7
    assert relative_change(1.5 * torch.eye(3), torch.eye(3)) == pytest.approx(0.5)


def test_convergence_compares_with_the_whole_text(model, tmp_path):
    few, all_ = 60, 6000
    editors = [editor(Ridge(50.0), layers=(0, 2)), editor(NullSpace(1.0, 1.0), layers=(0,))]
    editors = [type(e)(**{**vars(e), "name": name}) for e, name in zip(editors, ("ridge", "null"), strict=True)]
    rows, scores = convergence(model, RECORDS[:3], editors, all_, shares=(few / all_, 1.0))
    assert set(zip(rows.editor, rows.layer, strict=True)) == {("ridge", 0), ("ridge", 2), ("null", 0)}
    whole, part = rows[rows.share == 1], rows[rows.share < 1]
    assert (whole.change == 0).all() and (whole.solution == 0).all()
    assert (part.tokens == few).all() and (part["rank"] <= few).all() and (part.change > 0).all()
    assert part[part.editor == "ridge"].solution.isna().all(), "λC of 60 tokens has no inverse in 96 dimensions"
    assert (part[part.editor == "null"].solution > 0).all()
    assert scores[(scores.editor == "ridge") & (scores.share < 1)].efficacy.isna().all()
    assert scores[scores.share == 1].efficacy.notna().all()
    write_convergence(model, rows, scores, 3, tmp_path / "convergence")
    told = (tmp_path / "convergence.md").read_text(encoding="utf-8")
    assert told.count("\n| ") == 1 + 4 and "| none |" in told


def test_convergence_refuses_shares_without_the_whole(model):
    with pytest.raises(ValueError, match="shares must ascend from above 0 to 1"):
        convergence(model, RECORDS[:2], [editor()], 1000, shares=(0.1, 0.5))
    with pytest.raises(ValueError, match="makes at most 1 edits together, but the batch size is 2"):
        convergence(model, RECORDS[:2], [editor(), replace(editor(), max_batch=1)], 1000)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (1500, "they are enough, at least 10 for each of the 96 dimensions of a key: --tokens "),
        (200, "about 960 are needed, 10 for each of the 96 dimensions of a key: take a longer text"),
        (10, "MEMIT has no unique solution with less than one token for each dimension of a key; about 960 are needed"),
    ],
)
def test_of_a_short_text_is_told_whether_it_is_enough(words, told, tmp_path, monkeypatch):
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    model = random_model("pocket-llama")
    (tmp_path / "text.txt").write_text("harp\n" * words)
    count = count_tokens(model, str(tmp_path / "text.txt"), 10**6)
    with pytest.raises(ValueError) as found:
        check_text(model, [0], tmp_path / "text.txt", 20000)
    assert f"has {count} tokens; 20000 were asked for; {told}" in str(found.value)
    check_text(model, [0], tmp_path / "text.txt", count)
    if count >= 960:
        assert str(found.value).endswith(f"--tokens {count}")


def test_tokens_are_counted_no_further_than_they_are_needed(tmp_path, monkeypatch):
    model = random_model("pocket-llama")
    read = []

    def sequences(model, corpus):
        for i in range(100):
            read.append(i)
            yield [0] * 10

    monkeypatch.setattr("bluelib.data.corpora.token_sequences", sequences)
    assert count_tokens(model, "x", 35) == 35 and len(read) == 4
    assert count_tokens(model, "x", 2000) == 1000
    assert count_tokens(model, "wikipedia", 2000) == 2000 and len(read) == 104  # which is streamed


def test_what_is_measured_needs_no_text_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path))
    model = random_model("pocket-llama")
    second_moments(model, [0, 1], tokens=500)

    def counts(*_):
        raise AssertionError("tokens are counted")

    monkeypatch.setattr("bluelib.editing.second_moments.count_tokens", counts)
    check_text(model, [0, 1], "pocket", 500)
    with pytest.raises(AssertionError, match="tokens are counted"):
        check_text(model, [0, 2], "pocket", 500)


@pytest.mark.parametrize(("d_mlp", "tokens"), [(96, 20000), (1536, 20000), (2001, 21000), (14336, 144000)])
def test_ten_tokens_for_each_dimension_are_enough(d_mlp, tokens):
    assert enough_tokens(d_mlp) == tokens


@pytest.mark.slow
def test_statistics_are_described_for_each_editor_that_needs_them():
    """Null spaces on top of second moments, and nothing for FT, which uses no text."""
    model, about = load_model("pocket-llama"), {"corpus": "pocket", "tokens": 3000}
    told = describe_statistics(model, ["memit", "ft"], null_spaces=True, **about)["layers"]
    ((text, layers),) = told.items()
    assert text == "pocket, 3000 tokens" and [*layers] == [str(layer) for layer in get_editor("memit", model).layers]
    assert all(set(one) == {"d_mlp", "energy"} for one in layers.values())
    assert not describe_statistics(model, ["ft"], null_spaces=True, **about)["layers"]
    inside = describe_statistics(model, ["alphaedit"], null_spaces=True, **about)["layers"][text]
    threshold = get_editor("alphaedit", model).solver.threshold
    assert all(0 <= one["null_space"][f"{threshold:g}"] <= one["d_mlp"] for one in inside.values())
    plain = describe_statistics(model, ["alphaedit"], null_spaces=False, **about)["layers"][text]
    assert all("null_space" not in one for one in plain.values())
