"""Fluency and consistency of generated text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from sklearn.feature_extraction.text import TfidfVectorizer

from ..data import Record
from ..models.generation import generate_texts
from ..models.model import Model

#: n-gram order: weight. The weighted entropies are averaged (ROME, Meng et al. 2022).
NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def ngram_entropy(text: str) -> float:
    """Weighted mean of bi- and tri-gram entropies of a text, in bits: low for text that repeats itself.

    Words and punctuation marks are the units. An n-gram order that the text is too short for counts as entropy 0.
    """
    units = re.findall(r"\w+|[^\w\s]", text)
    return fmean(weight * _entropy(units, n) for n, weight in NGRAM_WEIGHTS.items())


def _entropy(units: Sequence[str], n: int) -> float:
    counts = Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0


def generation_scores(model: Model, records: Sequence[Record], *, seed: int = 0) -> list[dict[str, float]]:
    """Fluency and consistency per record, × 100; an empty dictionary for a record without generation prompts.

    Consistency is the TF-IDF cosine of a record's generated texts with its reference texts, each joined to one
    document. Inverse document frequencies are those of the reference texts of all ``records``.
    """
    prompts = [prompt for record in records for prompt in record.generation_prompts]
    if not prompts:
        return [{} for _ in records]
    texts = iter(generate_texts(model, prompts, seed=seed))
    references = [text for record in records for text in record.reference_texts]
    vectorizer = TfidfVectorizer().fit(references) if references else None
    results: list[dict[str, float]] = []
    for record in records:
        own = [next(texts) for _ in record.generation_prompts]
        result = {"fluency": 100 * fmean(map(ngram_entropy, own))} if own else {}
        if vectorizer and own and record.reference_texts:
            generated, reference = vectorizer.transform([" ".join(own), " ".join(record.reference_texts)])
            result["consistency"] = 100 * float(generated.multiply(reference).sum())
        results.append(result)
    return results
