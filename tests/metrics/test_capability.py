"""General capability by the LM Evaluation Harness: it measures what the library measures, and disturbs nothing."""

from __future__ import annotations

import random
import socket
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bluelib import load_model
from bluelib.metrics import capability as module
from bluelib.metrics.capability import PAPER_TASKS, POCKET_TASKS, capability, find_tasks, load_tasks
from bluelib.metrics.intervals import interval, stratified_interval
from bluelib.models.model import weights_hash
from bluelib.models.prompts import encode_target
from bluelib.models.scoring import score_targets
from bluelib.pocket.recall import skill_accuracy
from bluelib.pocket.skills import build_skills
from bluelib.studies.capability import MEAN, capability_along_sequence, capability_difference, capability_scores
from tests.support.small import ARCHITECTURES, QUICK_FIRST, RECORDS, SUBJECTS, editor, random_model

LIMIT = 12
ITEMS = {f"pocket_{skill}": held_out[:LIMIT] for skill, (_, held_out) in build_skills().items()}


@pytest.fixture(scope="module")
def tasks():
    return load_tasks(POCKET_TASKS)


def damage(model, size):
    """Add noise of ``size`` standard deviations to every value projection."""
    torch.manual_seed(0)
    for layer in range(model.n_layers):
        weight = model.weight(layer)
        weight.add_(size * weight.std() * torch.randn(weight.shape))


def log_prob_sums(model, item):
    scores = score_targets(model, [(item.prompt, choice) for choice in item.choices])
    return [
        score.log_prob * len(encode_target(model.tokenizer, choice))
        for score, choice in zip(scores, item.choices, strict=True)
    ]


@pytest.mark.parametrize("name", QUICK_FIRST)
def test_the_harness_and_skill_accuracy_agree(name, tasks):
    """Undamaged in accuracy, although one sums over tokens and the other averages; damaged item by item."""
    model = load_model(name)
    scores = capability(model, tasks, limit=LIMIT).scores.query("metric == 'acc'").set_index("task").value
    assert scores.to_dict() == {task: skill_accuracy(model, items) for task, items in ITEMS.items()}
    damage(model, 2.0)
    found = capability(model, tasks, limit=LIMIT).items
    assert 0 < found.accuracy.mean() < 100
    assert found.prompt.tolist() == [item.prompt for items in ITEMS.values() for item in items]
    for task, items in ITEMS.items():
        sums = [log_prob_sums(model, item) for item in items]
        right = [100.0 * (s.index(max(s)) == item.answer) for s, item in zip(sums, items, strict=True)]
        assert found[found.task == task].accuracy.tolist() == right, task


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_harness_feeds_the_same_tokens(name):
    """The same log-probabilities, so the same BOS (or none) and the same space between prompt and choice."""
    model = load_model(name)
    pairs = [(item.prompt, choice) for items in ITEMS.values() for item in items[:3] for choice in item.choices]
    lm = HFLM(pretrained=model.hf_model, tokenizer=model.tokenizer, batch_size=16)
    requests = [Instance("loglikelihood", {}, (prompt, f" {choice}"), 0) for prompt, choice in pairs]
    theirs = [log_prob for log_prob, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    ours = [value for items in ITEMS.values() for item in items[:3] for value in log_prob_sums(model, item)]
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)


def test_no_choice_begins_another():
    """So that ``acc``, a sum over tokens, favours no choice for being a part of another one."""
    for items in ITEMS.values():
        for item in items:
            assert not any(a != b and b.startswith(a) for a in item.choices for b in item.choices), item


def test_scores_with_standard_errors_and_the_harness_s_other_metrics(tasks):
    model = load_model("pocket-gpt2")
    damage(model, 2.0)
    found = capability(model, tasks, limit=LIMIT)
    scores = found.scores.set_index(["task", "metric"])
    assert (scores.n == LIMIT).all()
    for task, items in found.items.groupby("task"):
        right = items.accuracy / 100
        assert scores.value[task, "acc"] == pytest.approx(100 * right.mean())
        error = 100 * np.sqrt(right.mean() * (1 - right.mean()) / (LIMIT - 1))
        assert scores.standard_error[task, "acc"] == pytest.approx(error)
    others = scores[scores.index.get_level_values("metric") != "acc"]
    assert list(others.index) == [("pocket_paraphrase", "f1"), ("pocket_acceptability", "mcc")]
    assert others.value.between(-100, 100).all() and others.standard_error.isna().all()
    assert set(found.items.chance) == {50, 100 / 3, 25}


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_the_model_and_the_random_numbers_are_left_alone(tasks, capfd):
    model = load_model("pocket-llama")
    before = (
        weights_hash(model.hf_model),
        model.tokenizer.special_tokens_map,
        model.tokenizer.padding_side,
        random_states(),
    )
    capability(model, tasks, limit=2)
    after = (
        weights_hash(model.hf_model),
        model.tokenizer.special_tokens_map,
        model.tokenizer.padding_side,
        random_states(),
    )
    assert before == after
    assert not any(parameter.requires_grad for parameter in model.hf_model.parameters()) and not model.hf_model.training
    output = capfd.readouterr()
    assert output.out == output.err == "", "quiet"


def test_names_limits_and_groups(tasks):
    model = load_model("pocket-llama")
    by_name = capability(model, ["pocket_skills"], limit=3)
    loaded = capability(model, tasks, limit=3)
    columns = ["task", "item", "accuracy"]
    pd.testing.assert_frame_equal(
        by_name.items[columns].sort_values("item", ignore_index=True),
        loaded.items[columns].sort_values("item", ignore_index=True),
    )
    assert len(loaded.items) == 18 and loaded.items.item.is_unique
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        capability(model, tasks, limit=0)


def only_here(monkeypatch, folder=None):
    """Only the pocket tasks, or those of a folder, so that the harness's thousands need not be read."""
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager",
        lambda include_path, include_defaults=True: TaskManager(
            include_path=folder or include_path, include_defaults=False
        ),
    )


def test_what_cannot_be_evaluated_is_refused(monkeypatch, tmp_path):
    only_here(monkeypatch)
    message = (
        r"no task is called pocket_sums; known: pocket_sentiment, .*lm-eval 0.* such as sst2, mrpc, cola, rte, mmlu"
    )
    with pytest.raises(ValueError, match=message):
        find_tasks(["pocket_nli", "pocket_sums"])
    for names in ([], ["pocket_nli", "pocket_nli"]):
        with pytest.raises(ValueError, match="one or more different names"):
            find_tasks(names)
    (tmp_path / "tale.yaml").write_text(
        "task: tale\ncustom_dataset: !function bluelib.metrics.capability.skill_documents\n"
        "dataset_kwargs: {skill: nli}\ntest_split: test\ndoc_to_text: prompt\ndoc_to_target: answer\n"
    )
    only_here(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="task tale is scored as generate_until; only multiple_choice"):
        load_tasks(["tale"])


#: Two items of each benchmark's file, as its authors distribute it, and what a model is asked, with the right choice first.
FILES = {
    "sst2": ("sst2_dev.tsv", 'sentence\tlabel\nno "fun , \t0\nbright .\t1\n'),
    "cola": ("cola_in_domain_dev.tsv", "gj04\t1\t\tThey left.\ngj04\t0\t*\tThey lefted.\n"),
    "rte": (
        "rte_train.tsv",
        'index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n1\tIt is "hot.\tIt snows.\tnot_entailment\n',
    ),
    "mmlu_redux": (
        "mmlu_redux_5700.jsonl",
        '{"subject": "a", "question": "Is 1 = 1? ", "choices": ["no", "yes", "w", "z"], "answer": 1, "error_type": "ok"}\n'
        '{"subject": "a", "question": "Bad?", "choices": ["a", "b", "c", "d"], "answer": 0, "error_type": "wrong_groundtruth"}\n',
    ),
}
ASKED = {
    "sst2": {
        'no "fun , \nQuestion: Is this sentence positive or negative?\nAnswer:': "negative",
        "bright .\nQuestion: Is this sentence positive or negative?\nAnswer:": "positive",
    },
    "cola": {
        "They left.\nQuestion: Does this sentence make sense?\nAnswer:": "yes",
        "They lefted.\nQuestion: Does this sentence make sense?\nAnswer:": "no",
    },
    "rte": {
        "It rains.\nQuestion: It is wet. True or False?\nAnswer:": "True",
        'It is "hot.\nQuestion: It snows. True or False?\nAnswer:': "False",
    },
    "mmlu_redux": {"Is 1 = 1?\nA. no\nB. yes\nC. w\nD. z\nAnswer:": "B"},
}


@pytest.mark.parametrize("name", FILES)
def test_benchmarks_are_read_from_files(name, tmp_path, monkeypatch):
    task_file = str(module.ASSETS.parent.parent / "workflow" / "tasks" / f"{name}.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    file, text = FILES[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_text(text, encoding="utf-8")
    loaded = load_tasks([task_file])
    (task,) = loaded.parts[name].values()
    documents = list(task.validation_docs())
    asked = {task.doc_to_text(d): task.doc_to_choice(d)[int(task.doc_to_target(d))] for d in documents}
    assert asked == ASKED[name]
    found = capability(load_model("pocket-llama"), loaded)
    assert found.items.task.tolist() == [name] * len(documents)
    assert set(found.items.prompt) == set(ASKED[name])


def test_a_task_file_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"there is no task file nowhere/sst2\.yaml"):
        load_tasks(["pocket_nli", "nowhere/sst2.yaml"])


def test_two_tasks_of_one_name_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "task: pocket_nli\ncustom_dataset: !function bluelib.metrics.capability.skill_documents\n"
        "dataset_kwargs: {skill: nli}\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: prompt\ndoc_to_choice: choices\ndoc_to_target: answer\n"
    )
    with pytest.raises(ValueError, match="brings a second task called pocket_nli; name one of the two"):
        load_tasks(["pocket_nli", str(tmp_path / "mine.yaml")])


def test_a_group_s_items_count_together(monkeypatch, tmp_path):
    for name in (*POCKET_TASKS[:2], "_template_yaml"):
        path = module.ASSETS / "tasks" / (name if name.startswith("_") else f"{name}.yaml")
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "both.yaml").write_text(f"group: both\ntask: [{', '.join(POCKET_TASKS[:2])}]\n")
    only_here(monkeypatch, tmp_path)
    found = capability(load_model("pocket-llama"), ["both"], limit=4)
    assert found.scores[["task", "metric", "n"]].values.tolist() == [["both", "acc", 8]]
    assert found.items.item.str.startswith("pocket_").all() and found.items.item.is_unique


def test_the_harness_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'lm-eval>=0.4.13'"):
        find_tasks(["pocket_nli"])


@pytest.mark.slow
def test_the_paper_s_tasks_are_known_to_the_harness(monkeypatch):
    """By name only: nothing is loaded, and no connection is made."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection, or a data set, was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    index = find_tasks(PAPER_TASKS).task_index
    assert {name: index[name].kind.name for name in PAPER_TASKS} == dict.fromkeys(PAPER_TASKS, "TASK") | {
        "mmlu": "GROUP"
    }
    single = [index[name] for name in PAPER_TASKS if name != "mmlu"] + [index["mmlu_anatomy"]]
    assert {entry.cfg["output_type"] for entry in single} == {"multiple_choice"}
    assert set(POCKET_TASKS) <= set(index), "pocket tasks and the paper's can be asked for together"


def test_along_a_sequence(small_world):
    model = random_model("pocket-llama")
    before = weights_hash(model.hf_model)
    tasks = load_tasks(["pocket_nli", "pocket_multiple_choice"])
    editors = [replace(editor(), name="one"), replace(editor(layers=(1, 2)), name="other")]
    how = {"tasks": tasks, "every": 2, "batch_size": 1, "limit": 4, "progress": False}
    along = capability_along_sequence(model, RECORDS, editors, **how)
    assert weights_hash(model.hf_model) == before
    assert sorted(along.edits.unique()) == [0, 2, 4, 5] and list(along.editor.unique()) == ["one", "other"]
    assert len(along) == 2 * 4 * 8
    start = [along[(along.editor == name) & (along.edits == 0)].accuracy.tolist() for name in ("one", "other")]
    assert start[0] == start[1] == capability(model, tasks, limit=4).items.accuracy.tolist()
    prompts = [item.prompt for name in ("nli", "multiple_choice") for item in build_skills()[name][1][:4]]
    assert along.names_edit.tolist() == [any(s in prompt for s in SUBJECTS) for prompt in prompts] * 8
    with pytest.raises(ValueError, match="every must be at least 1, not"):
        capability_along_sequence(model, RECORDS, editors, **{**how, "every": 0})
    scores = capability_scores(along)
    assert set(scores.task) == {"pocket_nli", "pocket_multiple_choice", MEAN} and len(scores) == 2 * 4 * 3
    with pytest.raises(ValueError, match="not evaluated"):
        capability_difference(along, ("one", 5), ("one", 3))


def toy(values):
    """Six items of two tasks, four and two, with an accuracy each for the editors a and b."""
    names = [("s", f"s/{i}") for i in range(4)] + [("t", f"t/{i}") for i in range(2)]
    return pd.DataFrame(
        [
            {"editor": name, "edits": 9, "task": task, "item": item, "accuracy": accuracy}
            for name, accuracies in values.items()
            for (task, item), accuracy in zip(names, accuracies, strict=True)
        ]
    )


def test_differences_are_paired_and_the_mean_is_over_tasks():
    along = toy({"a": [100, 100, 0, 100, 100, 0], "b": [100, 0, 0, 0, 100, 100]})
    found = capability_difference(along, ("a", 9), ("b", 9)).set_index("task")
    assert found["mean"].to_dict() == pytest.approx({"s": 50, "t": -50, MEAN: 0})
    assert found.n.to_dict() == {"s": 4, "t": 2, MEAN: 6}
    same = capability_difference(along, ("a", 9), ("a", 9))
    assert (same[["mean", "low", "high"]] == 0).all(axis=None), "without a difference, no doubt"
    scores = capability_scores(along).set_index(["editor", "task"])["mean"]
    assert scores["a", MEAN] == pytest.approx(62.5) and scores["b", MEAN] == pytest.approx((25 + 100) / 2)


def test_the_interval_is_that_of_the_differences():
    """As many right answers lost, on the same items or on others: only pairing tells them apart."""
    rng = np.random.default_rng(0)
    base = rng.permutation([100.0] * 30 + [0.0] * 30)
    worse = np.where(np.arange(60) % 6 == 0, 0.0, base)
    frame = lambda name, values: pd.DataFrame(  # noqa: E731
        {"editor": name, "edits": 1, "task": "s", "item": range(60), "accuracy": values}
    )
    close, far = (
        capability_difference(pd.concat([frame("a", base), frame("b", values)]), ("b", 1), ("a", 1)).iloc[0]
        for values in (worse, rng.permutation(worse))
    )
    assert close["mean"] == pytest.approx(far["mean"]) and close["mean"] < 0
    assert close.high - close.low < far.high - far.low


def test_the_mean_over_tasks_has_its_own_interval():
    even = [[0.0, 100.0] * 50, [100.0, 0.0] * 50]
    found = stratified_interval(even)
    assert found.mean == 50 and found.high - found.low == pytest.approx(2 * 1.96 * 50 / np.sqrt(200), rel=0.1)
    assert stratified_interval([[100.0] * 9, [100.0] * 4]) == (100, 100, 100), "tasks of other sizes add no doubt"
    apart = stratified_interval([[100.0] * 9, [0.0] * 40])
    assert apart == (50, 50, 50), "nor do tasks of other difficulty"
    half = stratified_interval([*even[:1], [100.0] * 7])
    alone = interval(even[0])
    assert half.mean == 75 and half.high - half.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)
    with pytest.raises(ValueError, match="no values"):
        stratified_interval([[1.0], []])


def test_damage_is_seen(any_model, tasks):
    """Of the random model another choice becomes the most probable somewhere."""
    start = capability(any_model, tasks, limit=6).items.accuracy
    with any_model.preserved(range(any_model.n_layers)):
        damage(any_model, 2.0)
        assert (capability(any_model, tasks, limit=6).items.accuracy != start).any()
    assert (capability(any_model, tasks, limit=6).items.accuracy == start).all()
