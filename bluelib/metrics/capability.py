"""General capability: tasks of the LM Evaluation Harness (``lm-eval``) on a model in memory.

The pocket tasks (``bluelib/assets/tasks``) are the held-out items of :mod:`bluelib.pocket.skills`; any multiple-choice
task, group or tag of the harness, such as the paper's :data:`PAPER_TASKS`, can be used too.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..io.assets import ASSETS
from ..io.checks import check_whole
from ..models.model import Model
from ..pocket.skills import SKILLS, build_skills

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

POCKET_TASKS = tuple(f"pocket_{skill}" for skill in SKILLS)
#: The paper's tasks by their names in the harness; we take the paper's NLI to be MNLI.
PAPER_TASKS = ("sst2", "mrpc", "cola", "rte", "mmlu", "mnli")


@dataclass(frozen=True)
class Tasks:
    """Tasks that are ready to use: for each name, the harness's tasks whose items count under it, several for a
    group."""

    parts: Mapping[str, Mapping[str, Task]]


@dataclass(frozen=True)
class Capability:
    """What a model gets right.

    Attributes:
        scores: per task and metric, ``value`` in per cent, ``standard_error`` (NaN where it is not known) and the
            number of items ``n``. Every task has ``acc``: the share of items whose right choice has the highest
            log-probability, summed over its tokens. Other metrics are those that the harness has for the task.
        items: per item its ``task``, ``item`` (a name), ``prompt``, ``accuracy`` (0 or 100) and ``chance``, the
            accuracy of guessing.
    """

    scores: pd.DataFrame
    items: pd.DataFrame


def find_tasks(names: Sequence[str]) -> TaskManager:
    """An index of tasks that has all of ``names``; nothing is loaded.

    The harness's own tasks, which take seconds to read, are included only if a name is not that of a pocket task.

    A name that ends in ``.yaml`` is a task file in the harness's format, relative to the working directory.

    Raises:
        ImportError: if ``lm-eval`` is not installed.
        ValueError: if there are no names, a name is given twice, or one is unknown.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            "the LM Evaluation Harness, which has the tasks, is not installed: pip install 'lm-eval>=0.4.13'"
        ) from error
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks must be one or more different names, not {list(names)}")
    if missing := [name for name in names if name.endswith(".yaml") and not Path(name).is_file()]:
        raise ValueError(f"there is no task file {', '.join(missing)}")
    folder, named = ASSETS / "tasks", {name for name in names if not name.endswith(".yaml")}
    index = TaskManager(include_path=folder, include_defaults=False)
    if not named <= set(index.all_tasks):
        index = TaskManager(include_path=folder)
    unknown = [name for name in names if name in named and name not in index.task_index]
    if unknown:
        raise ValueError(
            f"no task is called {', '.join(unknown)}; known: {', '.join(POCKET_TASKS)}, pocket_skills for all of them, "
            f"what `lm-eval ls tasks` lists (lm-eval {lm_eval.__version__}), such as {', '.join(PAPER_TASKS)}, and "
            "task files, such as workflow/tasks/sst2.yaml"
        )
    return index


def load_tasks(names: Sequence[str], *, seed: int = 0) -> Tasks:
    """Load tasks with their items. Those of pocket tasks are made in memory; others are downloaded or read from the
    cache of ``datasets``.

    Args:
        names: of tasks, of groups (their items count together, each once), of tags (each of their tasks by itself), or
            of task files.
        seed: of the choice of examples, for tasks that show some.

    Raises:
        ImportError, ValueError: from :func:`find_tasks`; ValueError also if a task is not multiple-choice, or two have
            one name.
    """
    index = find_tasks(names)
    parts: dict[str, Mapping[str, Task]] = {}
    for name in names:
        with _level("lm_eval"):  # it warns about defaults
            loaded = index.load([name])
        found = loaded["tasks"]
        for part, task in found.items():
            if task.OUTPUT_TYPE != "multiple_choice":
                raise ValueError(f"task {part} is scored as {task.OUTPUT_TYPE}; only multiple_choice tasks can be used")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=seed)
        own = {name: found} if name in loaded["groups"] else {part: {part: task} for part, task in found.items()}
        if doubled := parts.keys() & own.keys():
            raise ValueError(f"{name} brings a second task called {', '.join(sorted(doubled))}; name one of the two")
        parts |= own
    return Tasks(parts)


def capability(
    model: Model,
    tasks: Tasks | Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Capability:
    """Evaluate a model, as it stands in memory, on tasks of the harness. The caller's random state is left alone.

    Args:
        tasks: from :func:`load_tasks`, for repeated use; or names.
        limit: use only the first ``limit`` items of each task, and of each task in a group; by default all.
        batch_size: prompts in one run of the model.
        progress: show the harness's progress bars.

    Raises:
        ImportError, ValueError: from :func:`load_tasks`; ValueError also if the limit is below 1.
    """
    if limit is not None:
        check_whole("limit", limit, 1)
    tasks = tasks if isinstance(tasks, Tasks) else load_tasks(tasks)
    # unlike simple_evaluate, this sets no seeds and makes no report on the machine, which takes a second
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    with _level("lm_eval"):  # it warns that the model is in memory
        lm = HFLM(pretrained=model.hf_model, tokenizer=model.tokenizer, batch_size=batch_size, softmax_dtype="float32")
    every = {part: task for group in tasks.parts.values() for part, task in group.items()}
    with _bars(progress), _level("transformers"):  # it warns about padding, which has no effect on the right
        found = evaluate(lm, {"tasks": every}, limit=limit, bootstrap_iters=0)
    items = pd.DataFrame(
        {"task": name, "item": f"{part}/{sample['doc_id']}", **_outcome(sample)}
        for name, group in tasks.parts.items()
        for part in group
        for sample in found["samples"][part]
    )
    rows = []
    for name, group in tasks.parts.items():
        accuracy = items[items.task == name].accuracy
        scores = {"acc": (accuracy.mean(), accuracy.sem())}
        if len(group) == 1:
            (part,) = group
            scores |= {metric: (100 * value, math.nan) for metric, value in _others(found["results"][part])}
        rows += [
            {"task": name, "metric": metric, "value": value, "standard_error": error, "n": len(accuracy)}
            for metric, (value, error) in scores.items()
        ]
    return Capability(pd.DataFrame(rows), items)


def skill_documents(skill: str, **_: Any) -> dict[str, Dataset]:
    """The held-out items of a pocket skill, as the harness wants them; its task files name this function."""
    from datasets import Dataset

    held_out = build_skills()[skill][1]
    return {"test": Dataset.from_list([asdict(item) for item in held_out])}


def _outcome(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the choice with the highest log-probability is the right one."""
    log_probs = [log_prob for log_prob, _ in sample["filtered_resps"]]
    right = sample["acc"] if "acc" in sample else log_probs.index(max(log_probs)) == sample["target"]
    prompt, _ = sample["arguments"][0]
    return {"prompt": prompt, "accuracy": 100.0 * right, "chance": 100 / len(log_probs)}


def _others(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The harness's other metrics of a task, in its results under names such as ``f1,none``."""
    for key, value in results.items():
        metric = key.removesuffix(",none")
        if metric != key and metric != "acc" and not metric.endswith("_stderr"):
            yield metric, float(value)


@contextmanager
def _level(library: str, level: int = logging.ERROR) -> Iterator[None]:
    """Inside the block, a library logs nothing below ``level``."""
    log = logging.getLogger(library)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Unless ``shown``, keep the harness's progress bars off standard error, but not its warnings."""
    if shown:
        yield
        return
    log, handler = logging.getLogger("lm_eval"), logging.StreamHandler()
    log.addHandler(handler)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.removeHandler(handler)
