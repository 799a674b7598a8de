"""The catalogue of methods: what ships, what a user registers, what an installed package brings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import bluelib
from bluelib import get_editor
from bluelib.cli import main
from bluelib.editing import catalogue
from bluelib.editing.catalogue import APPENDIX, MAIN_TABLE, NEEDS, VARIANTS, entry, known, label, names
from bluelib.editing.editor import Editor
from bluelib.editing.method import describe
from bluelib.editing.named import memit
from bluelib.io.palette import GREY, ORANGE
from bluelib.models.load import load_model
from bluelib.models.model import Model
from bluelib.studies.tuning import axes
from tests.support.small import editor, random_model

ROOT = Path(__file__).parents[2]


def halved(layers, targets, *, mom2_update_weight):
    """MEMIT with a λ that is half as large.

    The rest of a docstring is not a formula.
    """
    return replace(memit(layers, targets, mom2_update_weight=mom2_update_weight / 2), name="anything")


@pytest.fixture
def registered(monkeypatch) -> Iterator[None]:
    """``mine`` and ``mine_blue``, for one test."""
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    bluelib.register(
        "mine", halved, label="Mine", paper="nobody 2030", needs=["second moments"], variants=["blue"], like="memit"
    )
    yield


def python(code: str, path: Path = ROOT) -> str:
    """What Python prints, in a process of its own, with ``path`` in front."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_catalogue_needs_no_torch():
    code = (
        "import sys, bluelib.editing.catalogue as c; c.names(); print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    assert python(code) == "False False\n"


@pytest.mark.parametrize("name", names())
def test_every_row_is_whole(name):
    row = known(name)
    assert row.make().__doc__ and row.paper and row.label == label(name) and row.needs <= set(NEEDS)
    assert row.reported in (MAIN_TABLE, APPENDIX, "")
    if row.variant:
        plain, variant = known(row.plain), VARIANTS[row.variant]
        assert (row.name, row.label) == (variant.name_of(plain.name), variant.label_of(plain.label))
        assert (row.colour, row.family, row.needs, row.axes) == (plain.colour, plain.family, plain.needs, plain.axes)
        assert row.variant in plain.variants and row.make().__doc__.startswith(f"{VARIANTS[row.variant].about} of: ")


def test_variants_are_called_as_in_the_papers():
    for name, label_ in {
        "memit_blue": "MEMIT_BLUE",
        "alphaedit_fe": "AlphaEdit_FE",
        "memit_history_blue": "MEMIT (history)_BLUE",
    }.items():
        assert (label(name), known(name).variant) == (label_, name.rpartition("_")[2])


def test_what_a_method_needs_is_what_its_editor_has():
    model = load_model("pocket-llama")
    for name in names():
        editor = get_editor(name, model)
        assert json.dumps(describe(editor)), "its settings are plain values"
        found = {"second moments"} if isinstance(editor, Editor) else set()
        if hasattr(getattr(editor, "solver", None), "threshold"):
            found.add("null space")
        if hasattr(editor, "network"):
            found.add("network")
        assert known(name).needs == found, name


def test_a_method_that_is_not_known_is_called_by_its_name_is_grey_and_comes_last():
    row = entry("stranger_blue")
    assert (row.label, row.family, row.colour, row.variant, row.plain) == ("stranger_blue",) * 2 + (GREY, "", "")
    assert catalogue.in_order(["stranger_blue", "PMET", "MEMIT"]) == ["MEMIT", "PMET", "stranger_blue"]
    assert catalogue.in_table(["stranger_blue", "MEMIT (history)", "PMET", "RECT"]) == [
        "RECT",
        "PMET",
        "MEMIT (history)",
        "stranger_blue",
    ]
    with pytest.raises(
        ValueError, match="no editor is called 'stranger_blue'; known: ft, mend, rome, memit, memit_blue"
    ):
        known("stranger_blue")
    with pytest.raises(ValueError, match="no editor is called 'instructedit'"):
        known("instructedit")


def test_a_registered_method_has_sensible_defaults(monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    bluelib.register("bare", halved)
    row = known("bare")
    assert (row.label, row.family, row.colour, row.marker, row.variants) == ("bare", "bare", GREY, "o", ())
    assert names()[-1] == "bare" and row.make() is halved and row.needs == frozenset()
    bluelib.register("akin", halved, family="MEMIT")
    assert known("akin").colour == ORANGE
    bluelib.register("bare", "bluelib.editing.named:rect", label="Bare", variants=["blue"])  # a cell, run again
    assert (
        known("bare").label == "Bare" and "RECT" in known("bare").make().__doc__ and known("bare_blue").plain == "bare"
    )
    bluelib.register("bare", halved)
    assert known("bare").label == "bare" and "bare_blue" not in names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "memit"}, "'memit' is a method of the project; register yours under another name"),
        ({"name": "my method"}, "a method's name must consist of letters, .* a letter or digit; 'my method' does not"),
        ({"label": "RECT_BLUE"}, "label 'RECT_BLUE' is already used by rect_blue; give mine another label"),
        ({"needs": ["luck"]}, "no need is called 'luck'; known: second moments, null space, network"),
        ({"variants": ["red"]}, "no variant is called 'red'; known: blue"),
        ({"like": "memmit"}, "like: no method is called 'memmit'; known: ft, mend"),
    ],
)
def test_a_method_that_cannot_be_registered_is_refused_and_nothing_changes(arguments, message):
    before = dict(catalogue._METHODS)
    with pytest.raises(ValueError, match=message):
        bluelib.register(**{"name": "mine", "factory": halved, **arguments})
    assert catalogue._METHODS == before


def test_a_registered_method_takes_the_settings_of_the_one_it_is_like(registered):
    model = load_model("pocket-llama")
    mine, theirs = get_editor("mine", model), get_editor("memit", model)
    assert mine == replace(theirs, name="mine", solver=replace(theirs.solver, weight=theirs.solver.weight / 2))
    with_blue = get_editor("mine_blue", model)
    assert (with_blue.name, with_blue.layers, with_blue.residual.direct) == (
        "mine_blue",
        (theirs.layers[0], theirs.layers[-1]),
        True,
    )
    with pytest.raises(ValueError, match="there is no search for editor 'mine'; known: ft, rome, memit"):
        axes(model, "mine")


@pytest.mark.parametrize("name", ["mine", "mine_blue"])
def test_a_registered_method_edits_on_the_command_line(registered, capsys, name):
    command = ["edit", "--model", "pocket-gpt2", "--dataset", "pocket-counterfact", "--editor", name, "--edits", "2"]
    assert main([*command, "--batch-size", "2", "--no-generate", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["editor"]["name"] == name and result["edits"] == 2 and max(result["weight_change"].values()) > 0
    assert main(["editors"]) == 0
    listed = {line.split(" ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert listed["mine"].endswith("MEMIT with a λ that is half as large. [mom2_update_weight]")
    assert "BLUE of: MEMIT with a λ" in listed["mine_blue"]


def test_a_command_says_in_one_line_that_a_method_is_not_there(capsys):
    assert main(["edit", "--model", "pocket-gpt2", "--dataset", "pocket-zsre", "--editor", "mine", "--edits", "1"]) == 2
    assert capsys.readouterr().err.startswith("blue: no editor is called 'mine'; known: ft, mend, rome, memit")


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder of installed packages: one names a factory, one registers with a label, one is broken."""
    (tmp_path / "theirs.py").write_text(
        'import bluelib\nbluelib.register("labelled", "bluelib.editing.named:memit", label="Labelled!", like="memit")\n'
    )
    (tmp_path / "broken.py").write_text(
        "from bluelib.editing.catalogue import names\nnames()\nraise RuntimeError('out of order')\n"
    )
    points = "plain_one = bluelib.editing.named:memit\nlabelled = theirs\nbroken = broken\n"
    folder = tmp_path / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[bluelib.editors]\n{points}")
    return tmp_path


def test_installed_packages_bring_methods(packages):
    code = (
        "import sys; from bluelib.editing.catalogue import label, names\n"
        "print([name for name in names() if name in ('plain_one', 'labelled', 'broken')], label('labelled'))\n"
        "print('torch' in sys.modules)"
    )
    said = python(code, packages)
    assert "['plain_one', 'labelled'] Labelled!\nFalse\n" in said
    assert "entry point broken in group bluelib.editors failed, so what it adds is missing: out of order" in said


@pytest.mark.slow
def test_installed_packages_bring_architectures_and_datasets(packages):
    (packages / "theirs.py").write_text(
        "from pathlib import Path\n"
        "from bluelib.data.datasets import DATASETS, Dataset\n"
        "from bluelib.data.own import parse_flat\n"
        "from bluelib.models.adapters import _LLAMA, ADAPTERS\n"
        "def parse(entry, position):\n"
        "    subject, prompt, target = entry['triple']\n"
        "    return parse_flat({'subject': subject, 'prompt': prompt, 'target_new': target}, position)\n"
        "ADAPTERS['phi3'] = _LLAMA\n"
        "DATASETS['triples'] = Dataset(Path(__file__).with_name('triples.json'), parse, 'triples', pocket=False)\n"
    )
    (packages / "triples.json").write_text('[{"triple": ["Peru", "Peru lies in", "Asia"]}]')
    code = (
        "from bluelib import load_dataset\n"
        "from bluelib.cli import main\n"
        "print(load_dataset('triples')[0].request)\n"
        "main(['datasets'])\n"
        "main(['doctor', '/nowhere'])\n"
        "from bluelib.models.adapters import adapter_for\n"
        "print(adapter_for('phi3').blocks)"
    )
    said = python(code, packages)
    assert "prompt='{} lies in', subject='Peru', target='Asia'" in said and "model.layers" in said
    assert any(line.split() == ["triples", "triples"] for line in said.splitlines())


@pytest.mark.parametrize("annotation", [float, "float", int])
def test_an_option_that_is_no_number_is_refused_by_name(registered, annotation):
    def factory(layers, targets, *, mom2_update_weight, scale=1.0):
        return memit(layers, targets, mom2_update_weight=mom2_update_weight * scale)

    factory.__annotations__["scale"] = annotation
    bluelib.register("theirs", factory, like="memit")
    model = load_model("pocket-gpt2")
    with pytest.raises(ValueError, match="scale of editor 'theirs' must be a number, not 'abc'"):
        get_editor("theirs", model, scale="abc")
    assert get_editor("theirs", model, scale=2).solver.weight == 2 * get_editor("memit", model).solver.weight


@pytest.mark.parametrize(
    ("editor", "key", "value", "wanted"),
    [
        ("rect", "at_end", "False", "true or false, not 'False'"),
        ("rect", "at_end", 0, "true or false, not 0"),
        ("rect", "keep", True, "a number, not True"),
        ("rect", "keep", [0.4], r"a number, not \[0.4\]"),
        ("rome", "mom2_adjustment", "no", "true or false, not 'no'"),
        ("ft", "norm_constraint", "none", "a number, not 'none'"),
        ("mend", "network", 5, "text, not 5"),
    ],
)
def test_an_option_of_another_kind_is_refused_by_name(editor, key, value, wanted):
    """On a command line ``False`` is a text, which would count as true."""
    with pytest.raises(ValueError, match=f"{key} of editor '{editor}' must be {wanted}"):
        get_editor(editor, load_model("pocket-llama"), **{key: value})


def test_an_option_that_may_be_left_open_may_be_none():
    model = load_model("pocket-llama")
    assert get_editor("ft", model, norm_constraint=None).norm_constraint is None
    assert get_editor("rect", model, at_end=True).constraint.at_end is True
    assert get_editor("mend", model, network=Path("mend.safetensors")).path(model) == Path("mend.safetensors")


def test_scores_of_layers_belong_to_the_layers_in_their_order():
    model = load_model("pocket-llama")
    made = get_editor("memit_cake", model, layers=[1, 3], layer_scores=[0.2, 0.8])
    assert made.layers == (1, 3)
    with pytest.raises(ValueError, match=r"layers of editor 'memit_cake' must ascend, .*not \[3, 1\]"):
        get_editor("memit_cake", model, layers=[3, 1], layer_scores=[0.8, 0.2])
    assert get_editor("memit", model, layers=[3, 1]).layers == (1, 3)
    with pytest.raises(ValueError, match=r"layers must be distinct and in ascending order.*not \[3, 1\]"):
        replace(get_editor("memit", model), layers=(3, 1))


def test_a_chain_of_likeness_has_an_end(registered):
    with pytest.raises(
        ValueError, match="'mine' cannot take its settings from 'mine', which takes its own from 'mine'"
    ):
        bluelib.register("mine", halved, like="mine")
    bluelib.register("other", halved, like="mine")
    with pytest.raises(
        ValueError, match="'mine' cannot take its settings from 'other', which takes its own from 'mine'"
    ):
        bluelib.register("mine", halved, like="other")


def test_a_variant_of_the_project_s_own_has_its_own_settings(tmp_path, monkeypatch):
    """MEMIT's λ is not MEMIT_BLUE's: where it is not set, it is asked for."""
    text = "models: [random]\ncritical_layers: [0, 1]\ntargets: {}\neditors: {memit: {mom2_update_weight: 7}}\n"
    (tmp_path / "random.yaml").write_text(text)
    monkeypatch.setenv("BLUELIB_CONFIGS", str(tmp_path))
    model = random_model("pocket-llama")
    model = Model.of("random", model.hf_model, model.tokenizer)
    assert get_editor("memit", model, corpus="pocket").solver.weight == 7
    with pytest.raises(ValueError, match=r"editor 'memit_blue': missing a required argument: 'mom2_update_weight'"):
        get_editor("memit_blue", model, corpus="pocket")
    # what was added later takes the settings of what it is like, for files that are older
    assert get_editor("memit_fe", model, corpus="pocket").solver.weight == 7
    assert get_editor("encore", model, corpus="pocket", norm_weight=2).solver.weight == 7


def without_layers(targets):
    return None


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (5, "the factory of 'mine' must be a function, or 'module:function', not 5"),
        ("nowhere", "the factory of 'mine' must be a function, or 'module:function', not 'nowhere'"),
        (lambda layers, **others: None, r"must name its hyper-parameters instead of taking \*\*keywords"),
        (without_layers, "the factory of 'mine' must take layers; it takes targets"),
    ],
)
def test_a_factory_that_cannot_make_an_editor_is_refused(factory, message):
    with pytest.raises(ValueError, match=message):
        bluelib.register("mine", factory)


def test_what_a_factory_does_wrong_is_said(monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    model = load_model("pocket-llama")
    for name, factory, like, message in (
        ("none", lambda layers, targets, mom2_update_weight: None, "memit", "must return an Editor or another Method"),
        ("less", lambda layers, targets: None, "memit", "unexpected keyword argument 'mom2_update_weight'; it takes"),
        ("more", lambda layers, targets, mu: None, "", "editor 'more': missing a required argument: 'mu'"),
        (
            "alone",
            lambda layers: None,
            "",
            "Only editors whose factory takes targets share the model's critical layers",
        ),
    ):
        bluelib.register(name, factory, like=like)
        with pytest.raises(ValueError, match=message):
            get_editor(name, model)
    bluelib.register("wrong", lambda layers, targets: 1 + "x")
    with pytest.raises(TypeError, match="unsupported operand"):
        get_editor("wrong", model)
    for place in ("bluelib.nowhere:mine", "bluelib.editing.named:nothing"):
        bluelib.register("lost", place)
        with pytest.raises(ImportError, match=f"method 'lost' cannot be made by {place}: "):
            get_editor("lost", model)
    with pytest.raises(ValueError, match="get_editor needs a model, as load_model returns it, not 'pocket-llama'"):
        get_editor("memit", "pocket-llama")
    with pytest.raises(ValueError, match="an editor is needed, as get_editor returns it, not 'memit'"):
        bluelib.edit_sequence(model, [], "memit", batch_size=1)


def test_one_need_and_one_variant_need_no_list(monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    for name in ("a", "b", "a"):
        bluelib.register(name, halved, needs="second moments", variants="blue")
    assert names()[-4:] == ["b", "b_blue", "a", "a_blue"] and known("a").needs == {"second moments"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": "direct"}, "residual must be a Residual, not 'direct'"),
        ({"solver": 100.0}, "solver must be a Solver, not 100.0"),
        ({"constraint": None}, "constraint must be a Constraint, not None"),
        ({"targets": {"steps": 3}}, "targets must be a TargetOptions, not"),
        ({"layers": 3}, "layers must be a tuple of layers, not 3"),
    ],
)
def test_an_editor_of_wrong_parts_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(editor(), **change)
