"""Context prefixes: short texts that stand before a prompt while keys are measured and targets are optimised.

There are six, as in the paper's code: the empty one, and five that the model itself generates. They are made once per
model as loaded. Those of a pocket model are shipped with it; those of other models are kept in the user's cache.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..io.assets import check_shipped
from ..io.formats import read_json, write_json
from ..io.locks import make_once
from ..io.paths import cache_dir
from .choices import check_choice, published
from .generation import SAMPLING, plain_settings
from .known import pocket_models
from .model import Model
from .prompts import encode_prompt

OPENINGS = ("The", "Therefore", "Because", "I", "You")
LENGTH = 10
FILE = "contexts.json"


def context_prefixes(model: Model, kind: str = published("contexts")) -> tuple[str, ...]:
    """The prefixes of a model: the empty one first, then five, each ending with a space.

    Args:
        model: the model; as loaded, if its prefixes are still to be made.
        kind: ``ten_in_all``, texts of ten tokens, counting their opening and special tokens, as in the public code; or
            ``ten_more``, ten tokens after each opening.

    Raises:
        ValueError: for another kind, or if the file of the prefixes is damaged.
    """
    check_choice("contexts", kind)
    path, openings = cache_dir("contexts") / f"{model.cache_key}-{kind}.json", OPENINGS
    shipped = pocket_models()[model.name] / FILE if model.name in pocket_models() else None
    if shipped:
        check_shipped(shipped)
        content = read_json(shipped)
        if content["kind"] == kind:
            return tuple(content["prefixes"])
        openings = tuple(content["openings"])  # those in its training text
    make_once(path, lambda: make_prefixes(model, path, kind, openings))
    return tuple(read_json(path, sealed=True)["prefixes"])


def make_prefixes(
    model: Model, path: Path, kind: str = published("contexts"), openings: tuple[str, ...] = OPENINGS, seed: int = 0
) -> tuple[str, ...]:
    """Generate the prefixes (one per opening, sampled with a seed of their own) and write them to ``path``."""
    model.check_unedited("context prefixes")
    with torch.random.fork_rng(), plain_settings(model):
        torch.manual_seed(seed)
        prefixes = [""]
        for opening in openings:
            opened = torch.tensor([encode_prompt(model.tokenizer, opening)], device=model.device)
            ids = model.hf_model.generate(
                input_ids=opened,
                attention_mask=torch.ones_like(opened),
                max_new_tokens=LENGTH if kind == "ten_more" else max(1, LENGTH - opened.shape[1]),
                **SAMPLING,
                eos_token_id=None,
                pad_token_id=model.tokenizer.pad_token_id,
            )
            text = model.tokenizer.decode(ids[0], skip_special_tokens=True)
            prefixes.append(" ".join(text.split()).rstrip(".") + ". ")
    content = {"kind": kind, "openings": openings, "seed": seed, "prefixes": prefixes}
    write_json(path, content, indent=1, sealed=True)
    return tuple(prefixes)
