"""Texts that second moments are measured on, as token sequences: :func:`token_sequences`.

A corpus is named by a string:

- ``pocket``: the pocket training text; ``pocket-others``: the same without sentences about the benchmarks' subjects;
- ``sampled``: texts that SmolLM2-135M-Instruct itself wrote; they ship with the project (``scripts/sample_text.py``);
- ``wikipedia``: English Wikipedia at a pinned snapshot, streamed from the hub by ``datasets``;
- a path: a text file with one document per line, which may be compressed (``.xz``); a Parquet, JSON Lines or CSV
  file, or a folder written by ``Dataset.save_to_disk``, with the documents in a column called ``text``.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..io.assets import ASSETS, check_shipped
from ..io.tensors import file_hash
from ..models.model import Model
from ..models.prompts import encode_prompt

if TYPE_CHECKING:
    import numpy as np

POCKET_CORPORA = ("pocket", "pocket-others")
#: Texts that ship, by name.
SHIPPED = {"sampled": ASSETS / "texts" / "smollm2-135m.txt.xz"}
#: Name on the hub, configuration and revision of the ``wikipedia`` corpus.
WIKIPEDIA = ("wikimedia/wikipedia", "20231101.en", "b04c8d1ceb2f5cd4588862100d08de323dccfbaa")
#: Kinds of files that ``datasets`` reads, by suffix.
READERS = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv"}
XZ = ".xz"
#: A document is cut into pieces of at most this many tokens.
LONGEST = 2048


def token_sequences(model: Model, corpus: str) -> Iterator[list[int]]:
    """The corpus as sequences of token ids, in a fixed order, each no longer than the model's context.

    Raises:
        ValueError: for a name that is neither a known corpus nor a path, or a dataset without a column ``text``.
        ImportError: if the corpus needs ``datasets``, and that is not installed.
    """
    if corpus in POCKET_CORPORA:
        yield from _pocket_rows(model, corpus).tolist()
        return
    longest = min(model.max_positions, LONGEST)
    for text in filter(None, _documents(corpus)):
        ids = list(encode_prompt(model.tokenizer, text))
        yield from (ids[i : i + longest] for i in range(0, len(ids), longest))


#: Rows of the pocket text by tokenizer and corpus: making them takes seconds.
_ROWS: WeakKeyDictionary[Any, dict[str, np.ndarray]] = WeakKeyDictionary()


def _pocket_rows(model: Model, corpus: str) -> np.ndarray:
    from ..pocket.text import PackedText

    of_tokenizer = _ROWS.setdefault(model.tokenizer, {})
    if corpus not in of_tokenizer:
        of_tokenizer[corpus] = PackedText(model.tokenizer, 128, exclude=_excluded(corpus)).epoch(0)[0]
    return of_tokenizer[corpus]


def count_tokens(model: Model, corpus: str, most: int) -> int:
    """How many tokens a corpus has, counted up to ``most``. Wikipedia, which is streamed, and the pocket text, which is
    always made whole, are not counted: the result for them is ``most``.

    Raises:
        ValueError, ImportError: as :func:`token_sequences`.
    """
    if corpus in ("wikipedia", *POCKET_CORPORA):
        return most
    found = 0
    for sequence in token_sequences(model, corpus):
        found += len(sequence)
        if found >= most:
            return most
    return found


def corpus_hash(corpus: str) -> str:
    """SHA-256 of a corpus by its content: of its files, of the pocket text's sentences, or of a snapshot's name."""
    if corpus in POCKET_CORPORA:
        from ..pocket.text import text_hash

        return text_hash(exclude=_excluded(corpus))
    if corpus == "wikipedia":
        return hashlib.sha256("@".join(WIKIPEDIA).encode()).hexdigest()
    path = _path(corpus).resolve()
    if path.is_file():
        return _text_hash(path, path.stat().st_mtime_ns)
    parts = [f"{file.relative_to(path)}:{file_hash(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _text_hash(path: Path, written: int) -> str:
    """The hash of a file, once for each time it was ``written``: a run asks for it several times."""
    if path.suffix.lower() == XZ:  # by its text: the same text can be compressed in many ways
        with lzma.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest, reader = file_hash(path), _reader(path)  # hashed together with how it is read, which its suffix decides
    return hashlib.sha256(f"{reader}:{digest}".encode()).hexdigest() if reader else digest


def _reader(path: Path) -> str | None:
    """Which of :data:`READERS` reads a file; None for plain text."""
    return READERS.get(path.suffix.lower())


def _excluded(corpus: str) -> frozenset[str]:
    from ..pocket.datasets import edited_subjects

    return edited_subjects() if corpus == "pocket-others" else frozenset()


def check_corpus(corpus: str) -> None:
    """Make sure that a corpus has a known name or is a path that exists.

    Raises:
        ValueError: if not; the message says what a corpus can be.
    """
    if not isinstance(corpus, (str, Path)):
        raise ValueError(f"a corpus must be a name or a path, not {corpus!r}")
    if corpus not in (*POCKET_CORPORA, "wikipedia"):
        _path(corpus)


def _path(corpus: str) -> Path:
    if corpus in SHIPPED:
        check_shipped(SHIPPED[corpus])
        return SHIPPED[corpus]
    if not Path(corpus).exists():
        raise ValueError(
            f"no corpus is called {corpus!r}; known: {', '.join((*POCKET_CORPORA, *SHIPPED))}, wikipedia, or the path "
            "of a text file (one document per line), of a Parquet, JSON Lines or CSV file, or of a saved dataset"
        )
    return Path(corpus)


def _documents(corpus: str) -> Iterator[str]:
    path = None if corpus == "wikipedia" else _path(corpus)
    if path and path.is_file() and _reader(path) is None:
        packed = path.suffix.lower() == XZ
        if packed and _reader(path.with_suffix("")):
            raise ValueError(f"corpus {corpus!r}: decompress it first; of compressed files only plain text is read")
        with lzma.open(path, "rt", encoding="utf-8") if packed else open(path, encoding="utf-8") as file:
            yield from map(str.strip, file)
        return
    for row in _rows(corpus, path):
        if not isinstance(row.get("text"), str):
            raise ValueError(f"corpus {corpus!r} needs a column 'text' of strings; it has {', '.join(row)}")
        yield row["text"].strip()


def _rows(corpus: str, path: Path | None) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"to read corpus {corpus!r}, install datasets: pip install datasets") from error
    if path is None:
        name, config, revision = WIKIPEDIA
        yield from datasets.load_dataset(name, config, revision=revision, split="train", streaming=True)
    elif path.is_dir():
        yield from datasets.load_from_disk(str(path))
    else:
        reader = READERS[path.suffix.lower()]
        yield from datasets.load_dataset(reader, data_files=str(path), split="train", streaming=True)
