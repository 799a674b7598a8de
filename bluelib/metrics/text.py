"""Fluency and consistency of generated text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from statistics import fmean

import numpy as np
import torch
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer
from sklearn.feature_extraction.text import TfidfVectorizer

from ..data import Record
from ..data.datasets import reference_documents
from ..io.paths import cache_dir
from ..io.tensors import load_tensors, save_tensors
from ..models.choices import published
from ..models.generation import generate_texts
from ..models.model import Model

#: n-gram order: weight. The weighted entropies are averaged (ROME, Meng et al. 2022).
NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def words_of(text: str, how: str = published("words")) -> list[str]:
    """A text's words and punctuation marks.

    Args:
        text: any.
        how: ``nltk``, the words that NLTK's tokenizer finds in each sentence; or ``regex``, runs of letters and digits,
            and single other characters. NLTK's own model of where English sentences end has to be downloaded, and is
            not used: the splitter here knows no abbreviations, so “Dr.” before a word is two units instead of one.
    """
    if how == "regex":
        return re.findall(r"\w+|[^\w\s]", text)
    sentences, words = _nltk()
    return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]


@cache
def _nltk() -> tuple[PunktSentenceTokenizer, NLTKWordTokenizer]:
    return PunktSentenceTokenizer(), NLTKWordTokenizer()


def ngram_entropy(text: str, words: str = published("words")) -> float:
    """Weighted mean of bi- and tri-gram entropies of a text, in bits: low for text that repeats itself.

    The units are :func:`words_of` the text. An n-gram order that the text is too short for counts as entropy 0.
    """
    units = words_of(text, words)
    return fmean(weight * _entropy(units, n) for n, weight in NGRAM_WEIGHTS.items())


def _entropy(units: Sequence[str], n: int) -> float:
    counts = Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0


def idf_of(texts: Iterable[str]) -> TfidfVectorizer | None:
    """TF-IDF with the inverse document frequencies of these texts; None if there are none."""
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        return None

    def chained() -> Iterable[str]:
        yield first
        yield from texts

    return TfidfVectorizer().fit(chained())


@lru_cache(maxsize=4)
def fixed_idf(dataset: str) -> TfidfVectorizer | None:
    """TF-IDF with the inverse document frequencies of a dataset's whole set of reference texts, whichever records of it
    are evaluated; None for a dataset without any. Those of a benchmark's snippets are kept on disk: counting them takes
    minutes."""
    documents, digest = reference_documents(dataset)
    if digest is None:
        return idf_of(documents)
    path = cache_dir("idf") / f"{digest[:32]}.safetensors"
    if not path.exists():
        counted = idf_of(documents)
        assert counted is not None  # a file of snippets has entries
        save_tensors(path, {"idf": torch.from_numpy(counted.idf_)}, {"vocabulary": sorted(counted.vocabulary_)})
    tensors, about = load_tensors(path)
    vectorizer = TfidfVectorizer(vocabulary=about["vocabulary"])
    vectorizer.idf_ = np.asarray(tensors["idf"])
    return vectorizer


def generation_scores(
    model: Model,
    records: Sequence[Record],
    *,
    seed: int = 0,
    dataset: str = "",
    words: str = published("words"),
    idf: str = published("idf"),
) -> list[dict[str, float]]:
    """Fluency and consistency per record, × 100; an empty dictionary for a record without generation prompts.

    Consistency is the TF-IDF cosine of a record's generated texts with its reference texts, each joined to one
    document.

    Args:
        model: the model in its present state.
        records: what to evaluate on.
        seed: of the sampling.
        dataset: what ``records`` were loaded from.
        words: see :func:`words_of`.
        idf: inverse document frequencies of all reference texts of ``dataset`` (``fixed``), or of those of ``records``
            (``records``, and where no dataset is named).
    """
    prompts = [prompt for record in records for prompt in record.generation_prompts]
    if not prompts:
        return [{} for _ in records]
    texts = iter(generate_texts(model, prompts, seed=seed))
    if idf == "fixed" and dataset:
        vectorizer = fixed_idf(dataset)
    else:
        vectorizer = idf_of(text for record in records for text in record.reference_texts)
    results: list[dict[str, float]] = []
    for record in records:
        own = [next(texts) for _ in record.generation_prompts]
        result = {"fluency": 100 * fmean(ngram_entropy(text, words) for text in own)} if own else {}
        if vectorizer and own and record.reference_texts:
            generated, reference = vectorizer.transform([" ".join(own), " ".join(record.reference_texts)])
            result["consistency"] = 100 * float(generated.multiply(reference).sum())
        results.append(result)
    return results
