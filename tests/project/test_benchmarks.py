"""The benchmarks run, and what a GPU is compared with is what a processor gives."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import edit_speed, gpu
from bluelib.io.formats import read_json
from tests.support.gpu import CELLS, EXPECTED, outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.SHAPES)
def test_the_gpu_benchmark_runs_on_a_processor(name, tmp_path, monkeypatch, capsys):
    arguments = f"--device cpu --small --edits 2 --tokens 2000 --shapes {name} --parts moments targets edits"
    monkeypatch.setattr("sys.argv", ["gpu", *arguments.split(), "--output", str(tmp_path / "rows.json")])
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "cache"))
    gpu.main()
    assert os.environ["BLUELIB_CACHE"] == str(tmp_path / "cache")
    found = json.loads((tmp_path / "rows.json").read_text())
    layers = gpu.SHAPES[name].critical
    assert [row["what"] for row in found["rows"]] == [
        f"second moments of {len(layers)} layers, 2,000 tokens",
        *(f"{n} at layer {at}, 25 steps" for at in (layers[0], layers[-1]) for n in ("1 target", "2 targets")),
        *(f"2 edits, {editor}" for editor in ("memit", "memit_blue", "memit_fe", "alphaedit")),
    ]
    assert all(row["seconds"] > 0 and row["peak_gb"] is None for row in found["rows"])
    assert {"prepare", "targets", "keys"} <= set(found["rows"][-1]["phases"])
    printed = capsys.readouterr().out
    assert printed.startswith(gpu.HEADER) and len(printed.splitlines()) == 2 + 1 + len(found["rows"])
    assert found["provenance"]["gpu"] is None and found["provenance"]["versions"]["torch"]


@pytest.mark.slow
def test_the_speed_benchmark_compares_with_the_reference(tmp_path, monkeypatch, capsys):
    arguments = "--models pocket-llama --batch-sizes 2 --edits 2 --sequence 6 --steps 2 --plain-requests 1 --repeat 1"
    monkeypatch.setattr(
        "sys.argv", ["edit_speed", *arguments.split(), "--tokens=2000", f"--output={tmp_path}/rows.json"]
    )
    edit_speed.main()
    found = read_json(tmp_path / "rows.json")
    kinds = [(row["layer"], row["matmuls"]) for row in found["targets"]]
    assert kinds == [(0, "model"), (0, "bfloat16"), (4, "model"), (4, "bfloat16")]
    for row in found["targets"]:
        assert row["least_cosine_delta"] > (0.99999 if row["matmuls"] == "model" else 0.9)
        assert row["ratio"] == pytest.approx(row["plain_seconds_per_edit"] / row["seconds_per_edit"])
        assert row["counted_ratio"] > 1
    assert [row["editor"] for row in found["edits"]] == list(edit_speed.EDITORS)
    assert found["edits"][0]["to_memit"] == 1 and {"targets", "keys"} <= set(found["edits"][1]["phases"])
    assert 0 < found["moments"][0]["share_of_limit"] < 1
    assert [row["batch"] for row in found["batches"]][:5] == [2, 3, 4, 5, 6]
    printed = capsys.readouterr().out
    assert edit_speed.targets_table(found["targets"]) in printed and found["provenance"]["versions"]["torch"]


@pytest.mark.slow
def test_what_a_gpu_is_compared_with_is_up_to_date():
    expected = read_json(EXPECTED)["cells"]
    assert list(expected) == ["-".join(cell) for cell in CELLS]
    found = outcome("pocket-llama", "memit_blue", device="cpu")
    assert found["scores"] == pytest.approx(expected["pocket-llama-memit_blue"]["scores"], abs=5)
    assert found["weight_change"] == pytest.approx(expected["pocket-llama-memit_blue"]["weight_change"], rel=0.01)
