"""The items of the task files beside this one, in a mixed order that is always the same: a limit takes a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def mixed(items: Dataset) -> Dataset:
    """All items, shuffled."""
    return items.shuffle(seed=0)


def right(items: Dataset) -> Dataset:
    """The questions of MMLU-Redux that its authors found nothing wrong with, shuffled."""
    return mixed(items.filter(lambda item: item["error_type"] == "ok"))
