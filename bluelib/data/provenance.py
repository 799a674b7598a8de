"""Where a number comes from: the data, weights, versions, device and commit that are kept with every result."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import torch

from ..models.known import scale_of
from ..models.model import Model
from . import Record

try:
    import resource
except ImportError:  # Windows does not have it
    resource = None  # type: ignore[assignment]

PACKAGES = ("bluelib", "torch", "transformers", "tokenizers", "numpy", "scikit-learn")


def provenance(model: Model, records: Sequence[Record]) -> dict[str, Any]:
    """What a result depends on besides its parameters, as plain values."""
    return {
        "scale": scale_of(model.name, model.revision),
        "model": model.name,
        "model_revision": model.revision,
        "dtype": model.dtype_name,
        "device": _device(model),
        "threads": torch.get_num_threads(),
        "records_hash": records_hash(records),
        "case_ids": [record.case_id for record in records],
        **repeated_subjects(records),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_commit": git_commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # as of bluelib itself, if PYTHONPATH names its source
        return "not installed"


def repeated_subjects(records: Sequence[Record]) -> dict[str, list[int]]:
    """``subjects``: for each record the number of its subject, in the order in which subjects appear; nothing if all
    subjects differ. Records of one subject are not independent of each other."""
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(record.subject.strip().casefold(), len(numbers)) for record in records]
    return {"subjects": codes} if len(numbers) < len(codes) else {}


#: Fields that records have not always had, with their defaults. Defaults are not hashed, so old hashes stay the same.
_LATER: dict[str, Any] = {"questions": (), "portability": {}, "together": (), "before": "", "separator": None}


def records_hash(records: Sequence[Record]) -> str:
    """SHA-256 over the records as loaded."""
    digest = hashlib.sha256(b"[")  # the records as one JSON list, which is never whole in memory: texts can be long
    for position, record in enumerate(records):
        plain = {key: value for key, value in asdict(record).items() if key not in _LATER or value != _LATER[key]}
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
        digest.update((", " * (position > 0) + text).encode())
    digest.update(b"]")
    return "sha256:" + digest.hexdigest()


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with ``+changes`` if it differs; None outside a checkout."""
    here = Path(str(files("bluelib")))

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")


def peak_memory(model: Model) -> dict[str, float]:
    """The most memory that this process has held so far, in GB (10⁹ bytes): the host's, if the system reports it, and,
    if the model is on GPUs, that of the fullest GPU."""
    resident = _peak_resident()
    found = {"host_gb": round(resident / 1e9, 3)} if resident else {}
    if model.device.type == "cuda":
        found["device_gb"] = round(max(map(torch.cuda.max_memory_allocated, _devices(model))) / 1e9, 3)
    return found


def _peak_resident() -> int | None:
    """The most of the host's memory that was held, in bytes; None if the system does not report it."""
    if resource is not None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows has it


def _devices(model: Model) -> list[torch.device]:
    """The GPUs that the model is on."""
    return sorted({p.device for p in model.hf_model.parameters() if p.device.type == "cuda"}, key=str)


def _device(model: Model) -> str:
    if model.device.type == "cuda":
        return ", ".join(map(torch.cuda.get_device_name, _devices(model)))
    return f"{model.device.type} ({platform.machine()})"
