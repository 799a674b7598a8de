"""Edits and texts: records, benchmarks and their download, corpora, and where a number comes from."""

from .datasets import load_dataset, load_facts
from .records import Probe, Record, RecordError

__all__ = ["Probe", "Record", "RecordError", "load_dataset", "load_facts"]
