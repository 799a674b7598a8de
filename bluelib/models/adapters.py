"""Where the parts of an architecture are: the value projections, the blocks, the final norm and the head."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Adapter:
    """The names of a model's parts, as dotted paths. How to write one: ``docs/adapters.md``.

    The library assumes three things, which ``blue doctor`` checks: a block adds its MLP's output to the residual stream
    unchanged; the logits are those of ``head`` on the output of ``norm``; and this output is what ``base_model``
    returns.

    ``value_projection``, ``mlp``, ``attention`` and ``mlp_norm`` are relative to a block. ``mlp_norm`` is the norm
    between the residual stream after attention and the MLP; None for a block whose MLP stands beside attention, not
    after it. ``input_major`` says that the value projection's weight is stored as (d_mlp, d_model), as in GPT-2's
    ``Conv1D``, and not as (d_model, d_mlp).
    """

    blocks: str
    value_projection: str
    mlp: str
    attention: str
    mlp_norm: str | None
    norm: str
    head: str = "lm_head"
    input_major: bool = False


_LLAMA = Adapter("model.layers", "mlp.down_proj", "mlp", "self_attn", "post_attention_layernorm", "model.norm")


#: By ``config.model_type`` of transformers. Qwen2.5 is a ``qwen2``.
ADAPTERS = {
    "gpt2": Adapter("transformer.h", "mlp.c_proj", "mlp", "attn", "ln_2", "transformer.ln_f", input_major=True),
    "gptj": Adapter("transformer.h", "mlp.fc_out", "mlp", "attn", None, "transformer.ln_f"),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
}


_NORMALISED = "it normalises its MLPs' outputs before adding them, so no change of W adds R to the residual stream"


#: By ``config.model_type``, why this library's methods cannot edit a well-known architecture.
UNFIT = {"gemma2": _NORMALISED, "gemma3": _NORMALISED, "gemma3_text": _NORMALISED}


def adapter_for(model_type: str) -> Adapter:
    """The adapter of an architecture.

    Raises:
        ValueError: if there is none, or the architecture cannot have one; the message says what an adapter must name.
    """
    if model_type in UNFIT:
        raise ValueError(f"architecture {model_type!r} cannot be edited: {UNFIT[model_type]}")
    if model_type not in ADAPTERS:
        raise ValueError(
            f"no adapter for architecture {model_type!r} (known: {', '.join(ADAPTERS)}). An Adapter names, as dotted "
            "paths, the list of blocks; in a block the MLP's value projection, the MLP, attention and the norm before "
            "the MLP; the final norm and the head. Add one to bluelib.models.adapters.ADAPTERS: see docs/adapters.md"
        )
    return ADAPTERS[model_type]
