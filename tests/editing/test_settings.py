"""Settings files: which one belongs to a model, however its path is written, and what is written into one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from bluelib import get_editor
from bluelib.editing.named import check_corpus_of
from bluelib.editing.settings import (
    critical_layers,
    find_settings,
    is_shipped,
    set_editor,
    settings_file,
    settings_in,
    settings_text,
    user_folder,
    write_settings,
)
from bluelib.io.paths import stem_of
from bluelib.models.known import pocket_models
from tests.support.small import random_model

CONFIG = {
    "models": ["mine"],
    "critical_layers": [1, 2],
    "statistics": {"corpus": "pocket", "tokens": 3000},
    "targets": {"steps": 3},
    "editors": {"memit": {"mom2_update_weight": 7}, "ft": {"layers": [1], "steps": 2, "learning_rate": 0.1}},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of settings, another one behind it, and a model's folder; the test is somewhere else."""
    for name in ("own", "user", "models/model", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path / "own"))
    monkeypatch.setenv("BLUELIB_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_model_is_found_however_its_path_is_written(home, suffix, monkeypatch):
    folder = home / "models" / "model"
    write_settings(home / "own" / f"x{suffix}", {**CONFIG, "models": [str(folder)]})
    (home / "link").symlink_to(folder)
    for name in (folder, f"{folder}/", "../models/model", "../models/../models/model/", home / "link"):
        assert critical_layers(str(name)) == (1, 2), name
    monkeypatch.chdir(home / "models")
    assert all(critical_layers(name) == (1, 2) for name in ("model", "./model", "model/", "../link"))
    assert settings_file("model") == home / "own" / f"x{suffix}"
    assert find_settings("other") is None and find_settings(str(home / "models")) is None


def test_a_relative_path_in_the_file_is_a_model_s_too(home):
    write_settings(home / "own" / "x.yaml", {**CONFIG, "models": ["../models/model/"]})
    assert critical_layers(str(home / "models" / "model")) == (1, 2)


def test_a_copy_is_found_by_its_weights(home):
    model, other = random_model("pocket-llama"), random_model("pocket-llama", seed=1)
    write_settings(home / "own" / "x.yaml", {**CONFIG, "models": ["somewhere"], "revision": model.revision})
    assert critical_layers(model) == (1, 2)
    assert get_editor("memit", model).solver.weight == 7
    assert find_settings(other) is None and find_settings(model.name) is None


def test_a_name_goes_before_a_path_and_a_path_before_weights(home):
    model = replace(random_model("pocket-llama"), name=str(home / "models" / "model"))
    by_weights = {**CONFIG, "critical_layers": [0], "models": ["z"], "revision": model.revision}
    write_settings(home / "own" / "z.yaml", by_weights)
    assert critical_layers(model) == (0,)
    write_settings(home / "own" / "b.yaml", {**CONFIG, "critical_layers": [1], "models": [f"{model.name}/"]})
    assert critical_layers(model) == (1,)
    write_settings(home / "own" / "a.yaml", {**CONFIG, "critical_layers": [2], "models": [model.name]})
    assert critical_layers(model) == (2,)


def test_of_several_folders_the_named_one_goes_first(home, monkeypatch):
    assert is_shipped(settings_file("pocket-llama"))
    write_settings(home / "user" / "x.yaml", {**CONFIG, "models": ["pocket-llama"]})
    assert settings_file("pocket-llama") == home / "user" / "x.yaml"
    write_settings(home / "own" / "x.yaml", {**CONFIG, "models": ["pocket-llama"], "critical_layers": [3]})
    assert critical_layers("pocket-llama") == (3,)
    assert user_folder() == home / "own"
    monkeypatch.delenv("BLUELIB_CONFIGS")
    assert user_folder() == home / "user" and critical_layers("pocket-llama") == (1, 2)
    monkeypatch.setenv("BLUELIB_CONFIG_HOME", str(home / "nowhere"))  # which is made when something is written
    assert critical_layers("pocket-llama") == (0, 1, 2, 3, 4)


def test_without_settings_the_commands_and_the_folder_are_named(home):
    model = random_model("pocket-llama")
    for fails in (lambda: critical_layers(model), lambda: get_editor("memit", model)):
        with pytest.raises(ValueError) as found:
            fails()
        for part in (f"blue locate {model.name}", f"blue doctor {model.name}", str(home / "own"), "pocket-gpt2"):
            assert part in str(found.value)


def test_a_name_that_is_no_text_is_refused(home):
    (home / "own" / "x.yaml").write_text("models: [7]\ncritical_layers: [0]\ntargets: {}\neditors: {}\n")
    with pytest.raises(ValueError, match=r"x.yaml: models must be a list of names and paths; 7 is not text"):
        critical_layers("mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("editors: {}\nstatistics:\n", "statistics must be a mapping of corpus and tokens, not None"),
        ("editors: {memit: 7}\n", r"editors.memit must be a mapping of hyper-parameters, \{\} for none, not 7"),
    ],
)
def test_a_part_of_another_form_is_refused(home, text, message):
    (home / "own" / "x.yaml").write_text(f"models: [mine]\ncritical_layers: [0]\ntargets: {{}}\n{text}")
    with pytest.raises(ValueError, match=rf"x.yaml: {message}"):
        critical_layers("mine")


def test_a_settings_file_is_what_is_written(home):
    text = settings_text(CONFIG, "first\n\nthird")
    assert text.startswith("# first\n#\n# third\nmodels: [mine]\n") and yaml.safe_load(text) == CONFIG
    assert "  memit: {mom2_update_weight: 7}\n" in text
    assert yaml.safe_load(settings_text({**CONFIG, "editors": {}})) == {**CONFIG, "editors": {}}
    odd = {**CONFIG, "models": ["/a b/[c]: d", "007"], "revision": "sha256:0"}
    assert yaml.safe_load(settings_text(odd)) == odd


def test_an_editor_is_set_and_the_rest_stays(home):
    file = write_settings(home / "own" / "x.yaml", CONFIG, "mine\nof today")
    set_editor(file, "memit", {"clamp": 3})
    set_editor(file, "memit_blue", {"mom2_update_weight": 9})
    text = file.read_text()
    assert text.startswith("# mine\n# of today\nmodels:")
    wanted = {
        **CONFIG["editors"],
        "memit": {"mom2_update_weight": 7, "clamp": 3},
        "memit_blue": {"mom2_update_weight": 9},
    }
    assert yaml.safe_load(text) == {**CONFIG, "editors": wanted}
    shipped = settings_file("pocket-gpt2")
    before = shipped.read_bytes()
    with pytest.raises(ValueError, match="ships with the project"):
        set_editor(shipped, "memit", {"clamp": 3})
    assert shipped.read_bytes() == before


def test_what_an_editor_s_own_settings_leave_out_is_as_for_the_method_that_it_is_like():
    plain = {"mom2_update_weight": 7, "clamp": 3}
    config = {**CONFIG, "editors": {"memit": plain, "memit_fe": {"mom2_update_weight": 9}, "memit_blue": {"clamp": 5}}}
    assert settings_in(config, "memit_fe", shared=False) == {"mom2_update_weight": 9, "clamp": 3}
    assert settings_in(config, "memit_blue", shared=False) == {"clamp": 5}, "BLUE's settings are its own"
    assert settings_in({**config, "editors": {"memit": plain}}, "memit_fe", shared=False) == plain
    assert settings_in(config, "memit_fe")["clamp"] == 3, "of the method before that of all"


def test_results_of_two_folders_of_one_name_do_not_collide(home, monkeypatch):
    assert stem_of("org/name", "sha256:0123456789") == "org-name"
    (home / "models" / "v1.5").mkdir()
    assert stem_of(f"{home}/models/v1.5/", "sha256:0123456789") == "v1.5-01234567"
    model = random_model("pocket-llama")
    one, other = (replace(model, name=str(home / name), revision=f"sha256:{name}") for name in ("own", "user"))
    assert (one.stem, other.stem) == ("own-own", "user-user")
    monkeypatch.chdir(pocket_models()["pocket-llama"].parent)  # where a pocket model's name is a folder's too
    assert replace(model, name="pocket-llama").stem == "pocket-llama"


def test_a_text_that_is_not_named_is_asked_for_before_the_model_is_loaded(home):
    write_settings(home / "own" / "x.yaml", {**CONFIG, "statistics": {"tokens": 3000}})
    with pytest.raises(ValueError, match="memit needs a text for second moments, and none is configured for mine"):
        check_corpus_of("memit", "mine")
    with pytest.raises(ValueError, match=r"no corpus is called 'nowhere\.txt'"):
        check_corpus_of("memit", "mine", "nowhere.txt")
    check_corpus_of("memit", "mine", "pocket")
    check_corpus_of("ft", "mine")  # which uses none
    with pytest.raises(ValueError, match="rome needs a text for second moments"):
        check_corpus_of("rome", "mine")
    with pytest.raises(ValueError, match="a corpus must be a name or a path, not 5"):
        check_corpus_of("memit", "mine", 5)
    without = {**CONFIG["editors"], "rome": {"layers": [1], "mom2_adjustment": False}}
    write_settings(home / "own" / "x.yaml", {**CONFIG, "statistics": {"tokens": 3000}, "editors": without})
    check_corpus_of("rome", "mine")  # whose settings do without
    check_corpus_of("memit", "a model without settings")
