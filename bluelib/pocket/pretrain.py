"""Train the pocket models from scratch: three architectures, one recipe.

Training is a pure function of the seed (same machine, same thread count): the rows of a step depend on the step's
number alone, so an interrupted run continues from its checkpoint to the same weights.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..io.checks import check_whole
from ..io.formats import DamagedError
from ..io.locks import locked
from ..io.paths import cache_dir
from ..io.timing import progress_bar
from ..io.writing import atomic_directory, atomic_file, check_writable, remove_leftovers
from ..models.load import check_device
from .text import PackedText, text_hash
from .tokenizer import build_tokenizer
from .world import SEED

log = logging.getLogger(__name__)

#: Positions that a model has, and the length of the rows it is trained on.
CONTEXT, ROW = 256, 128


@dataclass(frozen=True)
class Recipe:
    """How a pocket model is trained, in bfloat16 autocast.

    The blocks' matrices are trained by Muon (``torch.optim.Muon``, its rate matched to AdamW's), which learns rarely
    stated facts in fewer steps; embeddings, head, norms and biases by AdamW. One learning rate for both: linear
    warm-up, then cosine to zero. The loss is next-token cross-entropy in which the tokens of a sentence's answer
    (a fact's object, a skill's right choice) count ``answer_weight`` times.
    """

    steps: int = 2000
    rows_per_step: int = 16
    learning_rate: float = 8e-3
    warmup: float = 0.1
    answer_weight: float = 4.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = SEED
    checkpoint_every: int = 200

    def rate(self, step: int) -> float:
        """The learning rate of a step (0-based)."""
        rising = (step + 1) / max(1.0, self.warmup * self.steps)
        falling = (self.steps - step) / max(1.0, (1 - self.warmup) * self.steps)
        return self.learning_rate * (rising if rising < 1 else 0.5 - 0.5 * math.cos(math.pi * min(1.0, falling)))


RECIPES = {name: Recipe() for name in ("pocket-gpt2", "pocket-gptj", "pocket-llama")}


def recipe_for(name: str) -> Recipe:
    """The recipe of a pocket model.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"no pocket model is called {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def pocket_config(name: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The architecture of a pocket model; the activations are the fused forms of the originals' functions."""
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    gpt = {"n_layer": 10, "n_embd": 128, "n_head": 4, "n_inner": 1280, "n_positions": CONTEXT}
    if name == "pocket-gpt2":
        return GPT2Config(**ids, **gpt, **no_dropout, activation_function="gelu_pytorch_tanh")
    if name == "pocket-gptj":
        return GPTJConfig(
            **ids,
            **gpt,
            **no_dropout,
            rotary_dim=16,
            activation_function="gelu_pytorch_tanh",
            tie_word_embeddings=False,
        )
    if name == "pocket-llama":
        return LlamaConfig(
            **ids,
            num_hidden_layers=10,
            hidden_size=128,
            intermediate_size=1024,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        )
    raise ValueError(f"no pocket model is called {name!r}; known: {', '.join(RECIPES)}")


def pretrain(
    name: str,
    output: Path,
    *,
    device: str = "cpu",
    recipe: Recipe | None = None,
    work_dir: Path | None = None,
    complete: Callable[[Path], Any] | None = None,
    progress: bool | None = None,
) -> PreTrainedModel:
    """Train ``name`` and save it, with its tokenizer and training record, as a transformers checkpoint.

    Args:
        name: one of :data:`RECIPES`.
        output: the folder to write; it is replaced as a whole once training is done.
        device: where to train.
        recipe: overrides the model's own recipe.
        work_dir: where checkpoints are kept; by default the user's cache. A run that finds its checkpoint continues.
        complete: writes further files into the temporary folder, before it is renamed to ``output``.
        progress: show a progress bar (default: on a terminal).

    Raises:
        ValueError: for an unknown name or device, fewer than one step, or a checkpoint that was made with another
            recipe or another text.
        OSError: if ``output`` cannot be written, or is a file.
        BlockingIOError: if another run trains ``name`` with the same checkpoint.
    """
    recipe = recipe or recipe_for(name)
    check_whole("steps", recipe.steps, 1)
    check_device(device)
    if Path(output).is_file():
        raise NotADirectoryError(f"{output} is a file; a folder is to be written there")
    check_writable(output)
    checkpoint = (work_dir or cache_dir("pretrain")) / f"{name}.pt"
    with locked(checkpoint, wait=False):
        return _pretrain(name, output, device, recipe, checkpoint, complete, progress)


def _pretrain(
    name: str,
    output: Path,
    device: str,
    recipe: Recipe,
    checkpoint: Path,
    complete: Callable[[Path], Any] | None,
    progress: bool | None,
) -> PreTrainedModel:
    tokenizer = build_tokenizer(bos=name == "pocket-llama", seed=SEED)
    config = pocket_config(name, tokenizer)
    torch.manual_seed(recipe.seed)
    hf_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).train()
    optimizers = _optimizers(hf_model, recipe)
    text = PackedText(tokenizer, ROW, SEED)

    identity = {"name": name, "recipe": asdict(recipe), "data": text_hash(SEED), "config": config.to_dict()}
    identity = json.loads(json.dumps(identity, default=str))
    start, curve, seconds = _resume(checkpoint, identity, hf_model, optimizers, device)

    began = time.perf_counter()
    bar = progress_bar(range(start, recipe.steps), initial=start, total=recipe.steps, desc=name, show=progress)
    for step, batch in zip(bar, _batches(text, recipe.rows_per_step, start), strict=False):
        ids, marks = (torch.from_numpy(part).to(device) for part in batch)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = recipe.rate(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss, answer_loss = _loss(hf_model, ids, marks, recipe.answer_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf_model.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0 or step == recipe.steps - 1:
            curve.append([step, round(loss.item(), 4), round(answer_loss.item(), 4)])
            bar.set_postfix(loss=f"{loss.item():.3f}", answers=f"{answer_loss.item():.3f}")
        if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < recipe.steps:
            state = {
                "identity": identity,
                "step": step + 1,
                "curve": curve,
                "lm": hf_model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "seconds": seconds + time.perf_counter() - began,
            }
            _keep(checkpoint, state)
    seconds += time.perf_counter() - began

    hf_model = hf_model.eval().to("cpu", torch.float16)
    record = {
        **identity,
        "curve": curve,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "device": device,
        "torch": torch.__version__,
    }
    with atomic_directory(output) as temporary:
        hf_model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if complete:
            complete(temporary)
    checkpoint.unlink(missing_ok=True)
    remove_leftovers(checkpoint)
    return hf_model


def _optimizers(hf_model: PreTrainedModel, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    in_blocks = [p for name, p in hf_model.named_parameters() if p.ndim == 2 and re.search(r"\.\d+\.", name)]
    taken = {id(p) for p in in_blocks}
    others = [p for p in hf_model.parameters() if id(p) not in taken]
    return (
        torch.optim.Muon(in_blocks, lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, betas=recipe.betas, weight_decay=0.0),
    )


def _batches(text: PackedText, size: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and answer marks, ``(size, length)``, of all steps from ``start`` on.

    A step's batch depends on its number alone.
    """
    step = 0
    for epoch in itertools.count():
        rows, marks = text.epoch(epoch)
        for first in range(0, len(rows) - size + 1, size):
            if step >= start:
                yield rows[first : first + size], marks[first : first + size]
            step += 1


def _loss(hf_model: PreTrainedModel, ids: Tensor, marks: Tensor, answer_weight: float) -> tuple[Tensor, Tensor]:
    """Weighted next-token loss, and the plain loss of the answers' tokens alone."""
    logits = hf_model(input_ids=ids).logits[:, :-1]
    each = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    answer = marks[:, 1:].flatten()
    weights = 1.0 + (answer_weight - 1.0) * answer
    return (each * weights).sum() / weights.sum(), each[answer].mean().detach()


def _keep(checkpoint: Path, state: dict) -> None:
    """Write the state of a run: a line with the SHA-256 of what torch saves, then what it saves."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_file(checkpoint) as temporary:
        saved = buffer.getbuffer()
        temporary.write_bytes(hashlib.sha256(saved).hexdigest().encode() + b"\n" + saved)


def _resume(checkpoint: Path, identity: dict, hf_model: nn.Module, optimizers, device: str):
    """The step to continue with, the curve so far and the seconds, from a checkpoint if there is one.

    Raises:
        DamagedError: if the checkpoint is not what was written.
        ValueError: if it was made by another run.
    """
    if not checkpoint.exists():
        return 0, [], 0.0
    digest, _, saved = checkpoint.read_bytes().partition(b"\n")
    if digest != hashlib.sha256(saved).hexdigest().encode():
        raise DamagedError(
            f"{checkpoint} is damaged: its content does not match the SHA-256 that was written with it; "
            "delete it to start training again"
        )
    state = torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
    differing = [key for key in identity if state["identity"].get(key) != identity[key]]
    if differing:
        raise ValueError(
            f"{checkpoint} was made by another run (different: {', '.join(differing)}); "
            "delete it to start training again, or restore the recipe to continue"
        )
    hf_model.load_state_dict(state["lm"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    log.info("continuing %s at step %d", identity["name"], state["step"])
    return state["step"], state["curve"], state["seconds"]
