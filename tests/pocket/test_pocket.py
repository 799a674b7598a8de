"""The pocket world, its skills, its text, and the training that continues where it stopped."""

from __future__ import annotations

import dataclasses

import pytest

from bluelib.pocket.pretrain import Recipe, pretrain
from bluelib.pocket.recall import BARS, recall, short_of_bar
from bluelib.pocket.skills import SKILLS, build_skills
from bluelib.pocket.text import PackedText, training_pairs, training_sentences
from bluelib.pocket.tokenizer import build_tokenizer
from bluelib.pocket.world import build_world

TINY = Recipe(steps=12, rows_per_step=2, checkpoint_every=2)


def test_the_world_has_what_the_benchmarks_need():
    world = build_world()
    kinds = {
        kind: {f.subject for f in world.facts if f.relation.subject == kind}
        for kind in ("person", "company", "country", "landmark", "place")
    }
    assert len(kinds["person"]) >= 1000 and len(kinds["company"]) >= 300 and len(kinds["country"]) >= 150
    names = [name for group in kinds.values() for name in group]
    assert len(names) == len(set(names)), "a subject has one kind"
    for relation in world.relations.values():
        assert len(set(relation.statements)) >= 6 and len(set(relation.questions)) >= 3
        assert all(t.count("{}") == 1 for t in relation.statements + relation.questions)
    pairs = [(f.subject, f.relation.name) for f in world.facts]
    assert len(pairs) == len(set(pairs))
    for fact in world.facts:
        assert len(fact.unseen_statements) == 2 and len(fact.unseen_questions) == 1


@pytest.mark.parametrize(
    ("subject", "relation", "value"),
    [
        ("France", "capital", "Paris"),
        ("Japan", "currency", "yen"),
        ("Brazil", "official_language", "Portuguese"),
        ("Kenya", "continent", "Africa"),
        ("Eiffel Tower", "landmark_city", "Paris"),
        ("Norway", "capital", "Oslo"),
    ],
)
def test_geography_is_real(subject, relation, value):
    assert {f.object for f in build_world().facts if (f.subject, f.relation.name) == (subject, relation)} == {value}


def test_the_world_is_a_function_of_its_seed():
    assert build_world.__wrapped__(7) == build_world.__wrapped__(7)
    assert build_world.__wrapped__(7).facts != build_world().facts


def test_the_text_states_every_fact_in_its_seen_wordings_only():
    text = set(training_sentences())
    for fact in build_world().facts[::37]:
        assert all(fact.sentence(template) in text for template in fact.seen)
        assert not any(fact.sentence(template) in text for template in fact.unseen_statements + fact.unseen_questions)


def test_skills_hold_out_what_they_test():
    skills = build_skills()
    assert tuple(skills) == SKILLS
    text = set(training_sentences())
    for train, test in skills.values():
        assert len(test) >= 200 and len(train) >= 500
        assert not {item.prompt for item in train} & {item.prompt for item in test}
        assert not text & {item.text for item in test}
        shares = [sum(item.answer == i for item in test) / len(test) for i in range(len(test[0].choices))]
        assert max(shares) < 0.65, "no answer is right much more often than the others"


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True])
def test_rows_hold_whole_sentences_and_mark_their_answers(bos):
    tokenizer = build_tokenizer(bos)
    rows, marks = PackedText(tokenizer, 128).epoch(3)
    assert rows.shape == marks.shape and rows.shape[1] == 128
    pairs = {f"{prompt} {answer}.": answer for prompt, answer in training_pairs()}
    found = 0
    for row, mark in zip(rows[:40], marks[:40], strict=True):
        assert (row[0] == tokenizer.bos_token_id) == bos
        text = tokenizer.decode(row, skip_special_tokens=True)
        answers = tokenizer.decode(row[mark])
        for sentence, answer in pairs.items():
            if sentence in text:
                assert f" {answer}" in answers
                found += 1
    assert found > 200
    again, _ = PackedText(tokenizer, 128).epoch(3)
    assert (rows == again).all()


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    class Stopped(Exception):
        pass

    def stop(*_, **__):
        raise Stopped

    from bluelib.pocket import pretrain as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "atomic_directory", stop)
        with pytest.raises(Stopped):
            pretrain("pocket-gpt2", tmp_path / "x", recipe=TINY, work_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"made by another run \(different: recipe\)"):
        pretrain("pocket-gpt2", tmp_path / "x", recipe=dataclasses.replace(TINY, clip=2.0), work_dir=tmp_path)
    with pytest.raises(ValueError, match="known: pocket-gpt2, pocket-gptj, pocket-llama"):
        pretrain("pocket-bert", tmp_path / "x")


@pytest.mark.slow
def test_recall_of_a_random_model_is_below_every_bar(any_model):
    if any_model.adapter.input_major:  # one architecture is enough for a full pass
        found = recall(any_model)
        assert found["seen"] < 5 and found["skill_multiple_choice"] < 50
        assert "seen" in short_of_bar(found) and set(found) >= {"seen", "unseen", "behind_prefix"}
        assert short_of_bar(dict.fromkeys(found, 100.0)) == [] and BARS["seen"] == 98
