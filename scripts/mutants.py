"""Which small faults in a module do its tests notice?

    python scripts/mutants.py editing/solvers            # every mutant of bluelib/editing/solvers.py
    python scripts/mutants.py editing/targets --sample 60

A mutant is a module with one change: a comparison, an operator, a number, a condition or an argument. Its tests run in
a forked process, which has torch imported already; they stop at the first failure. Mutants that survive are printed
with their lines. A mutant whose tests take more than three times as long as without it counts as killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ONE = ["-k", "not gptj and not llama"]
SINCE = [
    f"tests/editing/test_since.py::test_{name}"
    for name in (
        "encore_solves_its_published_form_over_a_sequence",
        "betaedit_solves_its_published_form_over_a_sequence",
        "emmet_reaches_every_residual_of_a_batch",
        "batches_of_memit_with_history_equal_one_batch_if_keys_stay",
        "sphere_projects_out_the_principal_directions_of_the_weights",
    )
]
#: pytest's arguments for each module: the quick tests that are about it.
TESTS = {
    "editing/solvers": [
        "tests/editing/test_solvers.py",
        *SINCE,
        "tests/studies/test_doctor.py::test_memory_of_solver_states_is_counted_as_it_is",
        "tests/studies/test_doctor.py::test_memory_of_a_solver_at_work_is_what_it_takes",
        "tests/editing/test_methods.py::test_rome_without_whitening_needs_no_text[pocket-llama]",
    ],
    "editing/residuals": [
        "tests/editing/test_editing.py",
        "tests/editing/test_since.py",
        "-k",
        "gpt2 and (share or fe_ or replayed_states or equal_weights) or cake_s_shares or cake_refuses",
    ],
    "editing/anchors": ["tests/editing/test_anchors.py", *ONE],
    "editing/constraints": [
        "tests/editing/test_constraints.py",
        "tests/editing/test_choices.py",
        "tests/editing/test_since.py",
        "-k",
        "not gptj and not llama and (constraints or _rect_ or sphere)",
    ],
    "studies/theory": ["tests/studies/test_theory.py"],
    "editing/targets": ["tests/editing/test_targets.py", "-k", "not llama and not whole_edits"],
    "models/scoring": [
        "tests/metrics/test_metrics.py",
        "tests/editing/test_methods.py::test_request_nll_is_the_models_own",
    ],
    "metrics/editing": ["tests/metrics/test_metrics.py", "tests/data/test_own.py", "-k", "not gptj and not gpt2"],
    "metrics/text": ["tests/metrics/test_metrics.py", "-k", "not gptj and not gpt2"],
    "models/generation": [
        "tests/metrics/test_metrics.py",
        "tests/metrics/test_longform.py",
        "-k",
        "not gptj and not gpt2",
    ],
    "metrics/longform": ["tests/metrics/test_longform.py", *ONE],
    "metrics/capability": ["tests/metrics/test_capability.py", *ONE],
    "metrics/answers": ["tests/metrics/test_answers.py", *ONE],
    "metrics/generated": [
        "tests/metrics/test_generated.py",
        "tests/metrics/test_answers.py",
        "tests/runs/test_cell.py",
        "-k",
        "not gptj and not llama and not test_cell or judge",
    ],
    "metrics/intervals": [
        "tests/metrics/test_metrics.py",
        "tests/metrics/test_capability.py",
        "tests/metrics/test_longform.py",
        "tests/studies/test_residuals.py",
        "tests/reports/test_reports.py",
        "-k",
        "interval or paired or difference or exponent or bootstrap or without_a_value",
    ],
    "metrics/locality": ["tests/metrics/test_locality.py", "tests/metrics/test_answers.py", *ONE],
    "metrics/portability": ["tests/metrics/test_portability.py", "tests/data/test_consequences.py"],
    "metrics/drift": ["tests/metrics/test_answers.py", *ONE],
    "models/gguf": ["tests/models/test_gguf.py"],
    "data/own": ["tests/data/test_own.py"],
    "studies/shift": ["tests/studies/test_shift.py", "-k", "not gptj and not llama and not pocket_world"],
}

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may replace a node."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op, *_]):
            new.ops[0] = COMPARISONS[type(op)]()
            yield new
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            new.op = OPERATORS[type(op)]()
            yield new
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Call(keywords=[_, *_]):
            for position, keyword in enumerate(node.keywords):
                if keyword.arg:
                    fewer = copy.deepcopy(node)
                    del fewer.keywords[position]
                    yield fewer
        case ast.If(test=test):
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
        case ast.Return(value=ast.AST()):
            yield ast.Return(ast.Constant(None))
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            new.op = OPERATORS[type(op)]()
            yield new


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Line, what was changed, and the changed module. Annotations, messages and decorators are left as they are."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        apart = [getattr(node, name, None) for name in ("annotation", "returns")]
        apart += getattr(node, "decorator_list", [])
        apart += [node] if isinstance(node, ast.Raise | ast.JoinedStr | ast.ImportFrom) else []
        left_out |= {id(inner) for part in apart if part for inner in ast.walk(part)}
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.AST) or id(node) in left_out:
                    continue
                for new in changes(node):
                    ast.copy_location(new, node)
                    if isinstance(value, list):
                        value[index] = new
                    else:
                        setattr(parent, name, new)
                    within = parent if isinstance(parent, ast.expr | ast.keyword) else new
                    what = f"{ast.unparse(node)[:70]} → {ast.unparse(new)[:70]}   in   {ast.unparse(within)[:90]}"
                    yield node.lineno, " ".join(what.split()), ast.fix_missing_locations(tree)
                    if isinstance(value, list):
                        value[index] = node
                    else:
                        setattr(parent, name, node)


def survives(path: Path, code: object, arguments: list[str], seconds: float) -> bool:
    """Whether all tests pass with ``code`` in the place of the module at ``path``."""
    child = os.fork()
    if child == 0:
        signal.alarm(int(seconds) + 1)
        original = importlib.machinery.SourceFileLoader.get_code

        def get_code(loader, name):
            return code if Path(loader.path) == path else original(loader, name)

        importlib.machinery.SourceFileLoader.get_code = get_code
        result = 1
        with contextlib.suppress(BaseException), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            import pytest

            result = int(pytest.main(arguments))
        os._exit(result)
    _, status = os.waitpid(child, 0)
    return status == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", choices=TESTS)
    parser.add_argument("--sample", type=int, help="try only this many mutants, drawn at random")
    parser.add_argument("--line", type=int, action="append", help="try only mutants of this line; may be repeated")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    import hypothesis.strategies
    import pandas  # noqa: F401  (imported here, once, and not by every fork)
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.feature_extraction.text  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from transformers import GPT2LMHeadModel, GPTJForCausalLM, LlamaForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    found_only = [
        hypothesis.Phase.explicit,
        hypothesis.Phase.generate,
    ]  # a failure is enough; it need not be shrunk
    hypothesis.settings.register_profile("mutants", phases=found_only, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    gc.freeze()  # so that garbage collection in a fork skips all that was imported
    path = ROOT / "bluelib" / f"{arguments.module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tests = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "no:nbval",
        "-p",
        "no:unraisableexception",
        "-m",
        "not slow",
        *TESTS[arguments.module],
    ]
    begun = time.monotonic()
    unchanged = compile(tree, path, "exec")
    if not survives(path, unchanged, tests, 3600):
        sys.exit(f"the tests of {arguments.module} fail without any change: make them pass first")
    whole = time.monotonic() - begun
    made = [
        (line, what, compile(mutant, path, "exec"))
        for line, what, mutant in mutants(tree)
        if not arguments.line or line in arguments.line
    ]
    if arguments.sample and arguments.sample < len(made):
        made = sorted(random.Random(0).sample(made, arguments.sample), key=lambda item: item[0])
    print(f"{arguments.module}: {len(made)} mutants, the tests take {whole:.1f} s", flush=True)
    left = 0
    for number, (line, what, code) in enumerate(made, start=1):
        if survives(path, code, tests, 3 * whole + 5):
            left += 1
            print(f"  {number} of {len(made)}: {arguments.module}.py:{line}: {what}", flush=True)
    if not survives(path, unchanged, tests, 3600):
        sys.exit("the tests now fail even without a change, so too many mutants may count as killed: run this again")
    print(f"{arguments.module}: {len(made) - left} of {len(made)} killed", flush=True)


if __name__ == "__main__":
    main()
