"""Context prefixes: short texts that stand before a prompt while keys are measured and targets are optimised.

Six of them, as in the paper's code: none, and five that the model itself generates. All six weigh alike (MEMIT, Meng
et al. 2023, Eq. 19); the family's public code gives the empty one half of the weight when it averages keys. They are
made once per model as loaded; a pocket model's are shipped with it, another model's are kept in the user's cache.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..io.assets import check_shipped
from ..io.formats import read_json, write_json
from ..io.locks import make_once
from ..io.paths import cache_dir
from .generation import SAMPLING
from .known import pocket_models
from .model import Model
from .prompts import encode_prompt

OPENINGS = ("The", "Therefore", "Because", "I", "You")
LENGTH = 10
FILE = "contexts.json"


def context_prefixes(model: Model) -> tuple[str, ...]:
    """The prefixes of a model: the empty one first, then five of about ten tokens, each ending with a space.

    Raises:
        ValueError: for a file of them that is damaged.
    """
    shipped = pocket_models().get(model.name)
    path = shipped / FILE if shipped else cache_dir("contexts") / f"{model.cache_key}.json"
    if shipped:
        check_shipped(path)
    make_once(path, lambda: make_prefixes(model, path))
    return tuple(read_json(path, sealed=not shipped)["prefixes"])


def make_prefixes(model: Model, path: Path, openings: tuple[str, ...] = OPENINGS, seed: int = 0) -> tuple[str, ...]:
    """Generate the prefixes (one per opening, sampled with a seed of their own) and write them to ``path``."""
    model.check_unedited("context prefixes")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prefixes = [""]
        for opening in openings:
            opened = torch.tensor([encode_prompt(model.tokenizer, opening)], device=model.device)
            ids = model.hf_model.generate(
                input_ids=opened,
                attention_mask=torch.ones_like(opened),
                max_new_tokens=LENGTH,
                **SAMPLING,
                eos_token_id=None,
                pad_token_id=model.tokenizer.pad_token_id,
            )
            text = model.tokenizer.decode(ids[0], skip_special_tokens=True)
            prefixes.append(" ".join(text.split()).rstrip(".") + ". ")
    write_json(path, {"openings": openings, "seed": seed, "prefixes": prefixes}, indent=1, sealed=True)
    return tuple(prefixes)
