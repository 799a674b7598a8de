"""Whatever a checkpoint folder or a command line holds, the answer is a result or a message: never a traceback."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bluelib.cli import GROUPS, main
from bluelib.cli.common import Command
from tests.support.checkpoints import write_checkpoint
from tests.support.small import random_model

#: Inputs of each kind in `make test`, and in `make test-long`.
FEW, MANY = 15, 400
AMOUNTS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]

#: Values that a field of a JSON file may be changed to.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 10**6]),
    st.sampled_from([0.5, -1.0, 1e300]),
    st.sampled_from(["", "auto", "float16", "llama", "\u0000", "../..", "é"]),
    st.sampled_from([[], [0], {}, {"a": 1}, {"rope_type": "default"}]),
)
EVALUATE = "--dataset pocket-counterfact --edits 2 --no-generate"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Checkpoint folders of two architectures."""
    root = tmp_path_factory.mktemp("whole")
    return {name: write_checkpoint(root / name, name) for name in ("llama-3", "gpt2-xl")}


@st.composite
def damages(draw):
    """One thing that is wrong with a checkpoint folder, as a function of the folder, and in words."""
    kind = draw(
        st.sampled_from(
            ["missing", "cut", "renamed", "added", "field", "dropped", "token added", "token removed", "left"]
        )
    )
    at, value = draw(st.floats(0, 1)), draw(VALUES)
    return kind, at, value


def pick(things, at: float):
    things = list(things)
    return things[min(int(at * len(things)), len(things) - 1)]


def fields(content, path=()):
    """The paths of all fields of a JSON value, but the vocabulary's."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if key in ("vocab", "merges"):
            continue
        yield (*path, key)
        yield from fields(value, (*path, key))


def damage(folder: Path, kind: str, at: float, value) -> str:
    """Do it; returns what was done."""
    files = sorted(folder.iterdir())
    file = pick(files, at)
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)])
    elif kind == "renamed":
        file.rename(
            file.with_name(pick(["model-00001-of-00002.safetensors", "x.bin", "vocab.json", "config.yaml"], at))
        )
    elif kind == "added":
        name = pick(
            ["adapter_config.json", "model.safetensors.index.json", "added_tokens.json", "generation_config.json"], at
        )
        (folder / name).write_text(json.dumps(value))
        return f"{name} is {value!r}"
    elif kind in ("token added", "token removed", "left"):
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        if kind == "left":
            settings_file = folder / "tokenizer_config.json"
            settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"padding_side": "left"}))
        elif kind == "token added":
            past = 1 + max(content["model"]["vocab"].values(), default=0)
            token = {"id": past, "content": pick(["Peru", "[PAD]", " the"], at), "special": at > 0.5}
            content["added_tokens"].append(
                dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False) | token
            )
        else:
            del content["model"]["vocab"][pick(content["model"]["vocab"], at)]
        file.write_text(json.dumps(content))
    else:
        file = pick([path for path in files if path.suffix == ".json"], at)
        content = json.loads(file.read_text())
        *path, key = pick(fields(content), at * 7919 % 1)
        inner = content
        for part in path:
            inner = inner[part]
        if kind == "dropped":
            del inner[key]
        else:
            inner[key] = value
        file.write_text(json.dumps(content))
        return f"{kind}: {file.name}, {[*path, key]} to {value!r}"
    return f"{kind}: {file.name}"


@pytest.mark.parametrize("amount", AMOUNTS)
def test_any_damaged_checkpoint_folder(amount, whole, tmp_path, capsys):
    seen = []

    @settings(max_examples=amount, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(name=st.sampled_from(sorted(whole)), damaged=damages())
    def try_one(name, damaged):
        folder = tmp_path / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole[name], folder)
        done = damage(folder, *damaged)
        try:
            status = main(["doctor", str(folder)])
            status = main(["evaluate", "--model", str(folder), *EVALUATE.split()])
        except Exception as error:
            raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error
        printed = capsys.readouterr()
        seen.append((status, done, printed.err.strip()[:300]))

    try_one()
    assert len(seen) >= amount and {status for status, *_ in seen} >= {0, 2}, "some load, and some cannot be"
    assert all(said.startswith("blue: ") and len(said) > 30 for status, _, said in seen if status == 2)


#: Commands that a valid line would send to the network, to other processes or to the files that ship.
LEFT_OUT = {"download", "pretrain", "train-mend", "reproduce", "site", "notebook"}
COMMANDS = {
    command.function.__name__.replace("_", "-"): command
    for group in GROUPS
    for command in vars(group).values()
    if isinstance(command, Command)
}
WORDS = (
    "|-1|0|1|2|3|1e300|nan|x|é|a=1|a=|=|=1|steps=1|mom2_update_weight=10|layers=[0]|layers=7|{}|[]|null|memit|memit_blue|"
    "alphaedit|rome|ft|mend|nonsense|pocket-llama|pocket-zsre|pocket-counterfact|nowhere|.|..|/|/dev/null|here.json|"
    "here.csv|new|new/deeper|tune|report|cpu|cuda:9|meta|float32|int8|editing|generated|chat|bare|last|keep|pocket"
).split("|")


@st.composite
def lines(draw):
    """A command with some of its options, and values of which few make sense."""
    name = draw(st.sampled_from(sorted(COMMANDS.keys() - LEFT_OUT)))
    words = [name]
    known = COMMANDS[name].options
    for option in draw(st.lists(st.sampled_from(known), max_size=6, unique=True)) if known else ():
        if option.names[0].startswith("-"):
            words.append(draw(st.sampled_from(option.names)))
        if option.settings.get("action") not in ("store_true",):
            words += draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))
    return words


@pytest.mark.parametrize("amount", AMOUNTS)
def test_any_command_line(amount, tmp_path, monkeypatch, capsys, small_world):
    """Each for three seconds at most: then it is interrupted, which is an answer, too."""
    monkeypatch.chdir(tmp_path)
    model = random_model("pocket-llama")
    monkeypatch.setattr("bluelib.models.load.load_model", lambda *_, **__: model)
    (tmp_path / "here.json").write_text('[{"subject": "Ada", "prompt": "{} lives in", "target_new": "Rome"}]')
    (tmp_path / "here.csv").write_text("subject,prompt\nAda,lives in\n")
    seen = []

    @settings(max_examples=amount, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(line=lines())
    def try_one(line):
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 3)
        try:
            with model.preserved(range(model.n_layers)):
                status = main(line)
        except SystemExit as end:  # argparse's
            status = end.code
        except Exception as error:
            raise AssertionError(f"{line}: {type(error).__name__}: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        seen.append((status, line, capsys.readouterr().err.strip()))

    try_one()
    assert len(seen) >= amount and {status for status, *_ in seen} <= {0, 1, 2, 130}
    assert all(said for status, _, said in seen if status == 2), "a refusal says why"
