"""What the library finds in a model, whether its assumptions hold there, and how much memory editing will take.

The assumptions about every architecture (see :class:`~bluelib.models.adapters.Adapter`) are measured here:

- the logits are the head applied to the output of ``base_model``, and to the norm of the last block's output;
- a block adds its MLP's output to the residual stream unchanged: with W + ΔW in place of W, the block's output changes
  by ΔW k at every token;
- a block's output is the sum of its input, the attention's output and the MLP's output, and the MLP reads the stream
  through the norm that the adapter names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..editing.catalogue import known
from ..editing.method import Size
from ..editing.named import MEASURED, composes, editor_with
from ..editing.second_moments import enough_tokens
from ..editing.settings import (
    find_settings,
    place_of,
    settings_in,
    settings_of,
    settings_text,
    shipped_configs,
    user_folder,
)
from ..editing.targets import default_token_budget
from ..models.known import scale_of
from ..models.model import Model
from ..models.prompts import encode_prompt, encode_target
from ..models.tracing import trace

TEXT = "The mother tongue of Ada Lovelace is English, and she was born in London."
#: The largest relative deviation that rounding explains, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
#: The configuration that a model without settings starts from, by ``config.model_type``; Llama 3's for any other.
LIKE = {"gpt2": "gpt2-xl", "gptj": "EleutherAI/gpt-j-6B"}
OTHERWISE = "meta-llama/Meta-Llama-3-8B-Instruct"
#: Batch sizes that memory is modelled for.
BATCHES = (1, 10, 100)


@dataclass(frozen=True)
class Check:
    """A measured assumption: the largest relative deviation found, and the largest that rounding explains."""

    name: str
    deviation: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.deviation <= self.tolerance


@dataclass(frozen=True)
class Findings:
    """What :func:`examine` found; ``facts`` and ``tokenizer`` are texts to read, by name.

    Attributes:
        memory: modelled memory by editor, in GB (10⁹ bytes): on ``disk``, on the ``host``, and on the ``device`` by
            batch size.
        unusable: the editors whose settings cannot be used, each with the reason.
        configured: whether there are settings for this model.
        configuration: if there are none, settings to start from, as YAML.
    """

    model: str
    facts: Mapping[str, str]
    tokenizer: Mapping[str, str]
    checks: tuple[Check, ...]
    memory: Mapping[str, Mapping[str, float]]
    unusable: Mapping[str, str]
    configured: bool
    configuration: str

    @property
    def healthy(self) -> bool:
        return all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [{**vars(check), "holds": check.holds} for check in self.checks]
        return {**vars(self), "checks": checks, "healthy": self.healthy}


def examine(model: Model) -> Findings:
    """Examine a model; its weights are left as they were."""
    configured = settings_of(model) is not None
    return Findings(
        model.name,
        _facts(model),
        _tokenizer(model),
        tuple(_checks(model)),
        *memory(model),
        configured,
        "" if configured else starter(model),
    )


def _facts(model: Model) -> dict[str, str]:
    first = model.value_projection(0)
    d_model, d_mlp = model.weight(0).shape
    devices = sorted({str(p.device) for p in model.hf_model.parameters() if not p.is_meta})
    away = [layer for layer in range(model.n_layers) if model.weight(layer).is_meta]
    return {
        "architecture": f"{type(model.hf_model).__name__} ({model.hf_model.config.model_type})",
        "scale": scale_of(model.name, model.revision),
        "weights": f"{sum(p.numel() for p in model.hf_model.parameters()) / 1e6:,.2f} million, {model.hf_model.dtype}, "
        f"on {', '.join(devices)}",
        "revision": model.revision,
        "blocks": f"{model.n_layers}, {model.adapter.blocks}.0 to .{model.n_layers - 1}",
        "value projection": f"{model.adapter.value_projection}, {type(first).__name__}, stored as "
        f"{tuple(first.weight.shape)}: {'(d_mlp, d_model)' if model.adapter.input_major else '(d_model, d_mlp)'}",
        "d_model, d_mlp": f"{d_model}, {d_mlp}",
        "MLP reads": model.adapter.mlp_norm or "the block's own norm (it stands beside attention)",
        "context": f"{model.max_positions} tokens",
        "micro-batches": f"{default_token_budget(model):,} tokens of targets, by the model and its device",
        "critical layers": _critical(model),
        **({"offloaded": f"layers {', '.join(map(str, away))}: not measured, cannot be edited"} if away else {}),
    }


def _critical(model: Model) -> str:
    found = find_settings(model)
    if found is None:
        return "not configured, see below"
    return f"{', '.join(map(str, found[1]['critical_layers']))} (settings: {found[0]})"


def _tokenizer(model: Model) -> dict[str, str]:
    tokenizer = model.tokenizer
    bare = tokenizer("Paris").input_ids
    target = encode_target(tokenizer, "Paris")
    return {
        "class": f"{type(tokenizer).__name__}, fast, {len(tokenizer)} tokens (embeddings: "
        f"{model.hf_model.config.vocab_size})",
        "BOS": f"{tokenizer.bos_token!r} ({tokenizer.bos_token_id}), "
        + ("in front of every text" if model.has_bos else "not put in front of texts"),
        **({"no embedding": "its last tokens; texts that contain one are refused"} if model.lacks_embeddings else {}),
        "EOS": f"{tokenizer.eos_token!r} ({tokenizer.eos_token_id}), "
        + ("put after every text, and removed here" if bare[-1] == tokenizer.eos_token_id else "not put after texts"),
        "padding": f"{_padding(tokenizer)}; "
        f"batches are padded on the right and masked, whichever side it prefers itself ({tokenizer.padding_side})",
        "“Paris” as a target": " ".join(map(repr, tokenizer.convert_ids_to_tokens(list(target)))),
    }


def _padding(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.pad_token is None:
        return "none, so the token with id 0"
    return f"{tokenizer.pad_token!r}{', the EOS' if tokenizer.pad_token == tokenizer.eos_token else ''}"


@torch.no_grad()
def _checks(model: Model) -> list[Check]:
    ids = torch.tensor([encode_prompt(model.tokenizer, TEXT)], device=model.device)
    tolerance = TOLERANCE[model.hf_model.dtype]
    with trace(outputs={"last": model.blocks[-1]}) as found:
        whole = model.hf_model(ids, use_cache=False).logits
    of_base = model.head(model.hf_model.base_model(ids, use_cache=False).last_hidden_state)
    of_norm = model.head(model.norm(found["last"]))
    checks = [
        Check("logits = head(base_model(text))", _deviation(of_base, whole), tolerance),
        Check("logits = head(norm(last block))", _deviation(of_norm, whole), tolerance),
    ]
    for layer in sorted({0, model.n_layers // 2, model.n_layers - 1}):
        if not model.weight(layer).is_meta:
            checks += [
                Check(f"block {layer} adds ΔW k to the stream", _additive(model, layer, ids), tolerance),
                Check(f"block {layer} = stream + attention + MLP", _summed(model, layer, ids), tolerance),
            ]
    return checks


def _additive(model: Model, layer: int, ids: Tensor) -> float:
    """How far a block's output with W + ΔW, less its output with W, is from ΔW k: a relative deviation.

    Raises:
        ValueError: if the value projection's weight is stored the other way round from what the adapter says.
    """
    weight = model.weight(layer)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, generator=generator).to(weight) for n in weight.shape)

    def run() -> tuple[Tensor, Tensor]:
        with trace(
            inputs={"key": model.value_projection(layer)}, outputs={"block": model.blocks[layer]}, stop=True
        ) as found:
            model.hf_model.base_model(ids, use_cache=False)
        return found["key"][0].double(), found["block"][0].double()

    key, before = run()
    if weight.shape != (before.shape[-1], key.shape[-1]):
        raise ValueError(
            f"block {layer} of {model.name}: keys have {key.shape[-1]} dimensions and W is {tuple(weight.shape)}; the "
            f"adapter's input_major must be {not model.adapter.input_major}, or its value_projection another module"
        )
    # ΔW has rank one, and its effect is as large as the block's own output, so that rounding does not hide it.
    size = before.norm() / ((key @ right.double()).norm() * left.double().norm())
    change = torch.outer(left.double(), right.double()) * size
    with model.preserved([layer]):
        old = weight.double().clone()
        weight.add_(change.to(weight.dtype))
        made = weight.double() - old  # what rounding left of ΔW
        _, after = run()
    return _deviation(after - before, key @ made.T)


def _summed(model: Model, layer: int, ids: Tensor) -> float:
    """How far a block's output is from the sum of its parts, relative to the parts; or how far its MLP's output is from
    the MLP of the normed stream, if that is more. Each is the median over tokens, as the first token's state can be a
    hundred times as large as the others."""
    names = ("attention", "mlp")
    outputs = {"block": model.blocks[layer], **{name: model.part(layer, name) for name in names}}
    with trace(inputs={"stream": model.blocks[layer]}, outputs=outputs) as found:
        model.hf_model.base_model(ids, use_cache=False)
    attention, mlp = (found[name] for name in names)
    stream = found["stream"].to(mlp.device) + attention
    deviations = [_by_token(stream + mlp - found["block"], attention + mlp)]
    if model.adapter.mlp_norm:
        read = model.part(layer, "mlp")(model.part(layer, "mlp_norm")(stream))
        deviations.append(_by_token(read - mlp, mlp))
    return max(deviations)


def _by_token(error: Tensor, scale: Tensor) -> float:
    return (error.double().norm(dim=-1) / scale.double().norm(dim=-1)).median().item()


def _deviation(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.cpu().double(), wanted.cpu().double()
    return ((found - wanted).norm() / wanted.norm()).item()


def memory(model: Model) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The GB that each editor takes, by :meth:`.Method.memory`, with the model's settings or else those of
    :func:`beginning`; and the editors whose settings cannot be used, each with the reason."""
    config, size = settings_of(model) or beginning(model), Size.of(model)
    found, unusable = {}, {}
    for name in config["editors"]:
        try:
            composed = composes(known(name).make())
            method = editor_with(name, model, settings_in(config, name, shared=composed))
        except (ValueError, KeyError) as error:
            unusable[name] = str(error) if isinstance(error, ValueError) else f"its settings lack {error}"
            continue
        by_batch = {batch: method.memory(size, batch) for batch in BATCHES}
        any_batch = by_batch[BATCHES[0]]
        found[name] = {
            "disk": any_batch.disk / 1e9,
            "host": any_batch.host / 1e9,
            **{f"device, {batch}": taken.device / 1e9 for batch, taken in by_batch.items()},
        }
    return found, unusable


def _like(model: Model) -> str:
    return LIKE.get(model.hf_model.config.model_type, OTHERWISE)


def beginning(model: Model, critical: list[int] | None = None) -> dict[str, Any]:
    """The settings of the paper's model that is most like this one. If no ``critical`` layers are given, they are
    guessed: five layers (or as many as there are), starting at an eighth of the depth."""
    like = shipped_configs()[_like(model)]
    first = model.n_layers // 8
    critical = critical or list(range(first, min(first + 5, model.n_layers)))
    editors = {}
    for name, settings in like["editors"].items():
        if MEASURED.keys() & settings.keys():
            continue
        own = editors[name] = dict(settings)
        if "layers" in own:
            own["layers"] = critical[:1] if len(own["layers"]) == 1 else critical[-len(own["layers"]) :]
    return {
        "models": [place_of(model.name)],
        "revision": model.revision,
        "critical_layers": critical,
        "statistics": {"corpus": "sampled", "tokens": enough_tokens(model.weight(0).shape[1])},
        "targets": dict(like["targets"]),
        "editors": editors,
    }


def starter(model: Model) -> str:
    """A configuration to start from, as YAML: see :func:`beginning`."""
    return settings_text(
        beginning(model),
        f"Settings of {_like(model)}; the critical layers are a guess (`blue locate {model.name}` finds them).\n"
        "No value here was tuned on this model. Second moments are measured on the text that ships;\n"
        "to use another text, set corpus to wikipedia, or to a path.",
    )


def report(findings: Findings) -> str:
    """The findings as text."""
    lines = [findings.model, ""]
    for title, facts in (("model", findings.facts), ("tokenizer", findings.tokenizer)):
        lines += [title, *(f"  {name:22} {value}" for name, value in facts.items()), ""]
    lines.append("taken for granted, and measured (relative deviation)")
    for check in findings.checks:
        told = "holds" if check.holds else "DOES NOT HOLD"
        lines.append(f"  {check.name:36} {check.deviation:.1e}  (up to {check.tolerance:.0e})  {told}")
    columns = ["disk", "host", *(f"device, {batch}" for batch in BATCHES)]
    alike: dict[tuple[float, ...], list[str]] = {}
    for editor, sizes in findings.memory.items():
        alike.setdefault(tuple(sizes.values()), []).append(editor)
    lines += [
        "",
        "memory in GB, modelled (of a null space: at most): disk; host; device by batch size, without activations",
        "  " + "".join(f"{column:>13}" for column in columns),
        *(
            "  " + "".join(f"{size:13.3g}" for size in sizes) + f"  {', '.join(names)}"
            for sizes, names in alike.items()
        ),
    ]
    if findings.unusable:
        lines += ["", "settings that cannot be used", *(f"  {name}: {why}" for name, why in findings.unusable.items())]
    if not findings.configured:
        lines += [
            "",
            f"no settings for this model: `blue locate {findings.model}` finds and writes some. Or start with "
            f"these, saved as a .yaml file in {user_folder()}:",
            "",
            findings.configuration.rstrip(),
        ]
    return "\n".join(lines)
