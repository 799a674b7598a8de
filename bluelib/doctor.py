"""What the library finds in a model, whether what it takes for granted holds there, and what editing it will take.

Two things are taken for granted of every architecture (see :class:`~bluelib.models.Adapter`), and measured here:

- the logits are those of the head on what ``base_model`` returns;
- a block adds its MLP's output to the residual stream as it is: with W + ΔW in place of W, what the block gives changes
  by ΔW k at every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from .configs import USER_CONFIGS, model_configs
from .editors import EDITORS, blue
from .models import Model, scale_of
from .prompts import encode_prompt, encode_target
from .sequence import preserved
from .tracing import trace

TEXT = "The mother tongue of Ada Lovelace is English, and she was born in London."
#: Relative deviations of the two measurements that rounding explains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
#: The configuration that an unconfigured model begins with, by ``config.model_type``; Llama 3's for any other.
LIKE = {"gpt2": "gpt2-xl", "gptj": "EleutherAI/gpt-j-6B"}
OTHERWISE = "meta-llama/Meta-Llama-3-8B-Instruct"
#: Editors and sizes of batches that memory is modelled for.
MODELLED, BATCHES = ("memit", "memit_blue", "alphaedit", "alphaedit_blue", "rome", "ft"), (1, 10, 100)


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
    """What :func:`examine` found; ``facts`` and ``tokenizer`` are for reading, by name.

    Attributes:
        memory: by editor, in GB (10⁹ bytes) and modelled: on the ``host``, and on the ``device`` by size of batch.
        configured: whether there are settings for this model.
        configuration: where not, some to begin with, as YAML.
    """

    model: str
    facts: Mapping[str, str]
    tokenizer: Mapping[str, str]
    checks: tuple[Check, ...]
    memory: Mapping[str, Mapping[str, float]]
    configured: bool
    configuration: str

    @property
    def healthy(self) -> bool:
        return all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        checks = [{**vars(check), "holds": check.holds} for check in self.checks]
        return {**vars(self), "checks": checks, "healthy": self.healthy}


def examine(model: Model) -> Findings:
    """Look at a model; its weights are afterwards what they were before."""
    configured = model.name in model_configs()
    return Findings(
        model.name, _facts(model), _tokenizer(model), tuple(_checks(model)),
        {name: memory(model, name) for name in MODELLED}, configured, "" if configured else starter(model),
    )  # fmt: skip


def _facts(model: Model) -> dict[str, str]:
    first = model.value_projection(0)
    d_model, d_mlp = model.weight(0).shape
    devices = sorted({str(model.weight(layer).device) for layer in range(model.n_layers)})
    return {
        "architecture": f"{type(model.lm).__name__} ({model.lm.config.model_type})",
        "scale": scale_of(model.name),
        "weights": f"{sum(p.numel() for p in model.lm.parameters()) / 1e6:,.2f} million, {model.lm.dtype}, "
        f"on {', '.join(devices)}",
        "revision": model.revision,
        "blocks": f"{model.n_layers}, {model.adapter.blocks}.0 to .{model.n_layers - 1}",
        "value projection": f"{model.adapter.value_projection}, {type(first).__name__}, stored as "
        f"{tuple(first.weight.shape)}: {'(d_mlp, d_model)' if model.adapter.input_major else '(d_model, d_mlp)'}",
        "d_model, d_mlp": f"{d_model}, {d_mlp}",
        "MLP reads": model.adapter.mlp_norm or "the block's own norm (it stands beside attention)",
        "context": f"{model.max_positions} tokens",
        "critical layers": _critical(model),
    }


def _critical(model: Model) -> str:
    config = model_configs().get(model.name)
    return ", ".join(map(str, config["critical_layers"])) if config else "not configured, see below"


def _tokenizer(model: Model) -> dict[str, str]:
    tokenizer = model.tokenizer
    bare = tokenizer("Paris").input_ids
    target = encode_target(tokenizer, "Paris")
    return {
        "class": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens (embeddings: {model.lm.config.vocab_size})",
        "BOS": f"{tokenizer.bos_token!r}, {'in front of every text' if model.has_bos else 'not put in front of texts'}",
        "EOS": f"{tokenizer.eos_token!r}, "
        + ("put behind texts, and taken off here" if bare[-1] == tokenizer.eos_token_id else "not put behind texts"),
        "padding": f"{tokenizer.pad_token!r}; batches are padded on the right and masked, whatever its own side "
        f"({tokenizer.padding_side})",
        "“Paris” as a target": " ".join(map(repr, tokenizer.convert_ids_to_tokens(list(target)))),
    }


@torch.no_grad()
def _checks(model: Model) -> list[Check]:
    ids = torch.tensor([encode_prompt(model.tokenizer, TEXT)], device=model.device)
    tolerance = TOLERANCE[model.lm.dtype]
    whole = model.lm(ids, use_cache=False).logits
    parts = model.head(model.lm.base_model(ids, use_cache=False).last_hidden_state)
    checks = [Check("logits = head(base_model(text))", _deviation(parts, whole), tolerance)]
    for layer in sorted({0, model.n_layers // 2, model.n_layers - 1}):
        if model.weight(layer).is_meta:
            continue
        checks.append(Check(f"block {layer} adds ΔW k to the stream", _additive(model, layer, ids), tolerance))
    return checks


def _additive(model: Model, layer: int, ids: Tensor) -> float:
    """The largest deviation of what a block gives with W + ΔW, less what it gives with W, from ΔW k."""
    weight = model.weight(layer)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, generator=generator).to(weight) for n in weight.shape)

    def run() -> tuple[Tensor, Tensor]:
        with trace(
            inputs={"key": model.value_projection(layer)}, outputs={"block": model.blocks[layer]}, stop=True
        ) as found:
            model.lm.base_model(ids, use_cache=False)
        return found["key"][0].double(), found["block"][0].double()

    key, before = run()
    # of rank one, and as large in what it gives as the block's own output, so that rounding does not hide it
    size = before.norm() / ((key @ right.double()).norm() * left.double().norm())
    change = torch.outer(left.double(), right.double()) * size
    with preserved(model, [layer]):
        old = weight.double()
        weight.add_(change.to(weight.dtype))
        made = weight.double() - old  # what rounding left of ΔW
        _, after = run()
    return _deviation(after - before, key @ made.T)


def _deviation(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def solver_bytes(d_mlp: int, layers: int) -> int:
    """The solver states of all layers, kept on the host: a float64 matrix of d_mlp² each, or, in a null space of r
    dimensions, two of at most that size together (d_mlp·r + r², counted with r = d_mlp / 2)."""
    return 8 * d_mlp**2 * layers


def memory(model: Model, editor: str) -> dict[str, float]:
    """GB that an editor takes: a model of it, not a measurement.

    Device: the weights; of each edited layer a float32 copy, where the model is of lower precision, and the matrix to
    revert to; for editors with a solver one state and two matrices of its size to work in; and for a batch of u its
    keys and residuals in float64, twice. Micro-batches of targets take half of what is free then.
    """
    d_model, d_mlp = model.weight(0).shape
    layers = _layers(model, editor)
    weights = sum(p.numel() * p.element_size() for p in model.lm.parameters())
    lower = model.lm.dtype.itemsize < 4
    edited = layers * d_model * d_mlp * (4 + 4 * lower if lower else model.lm.dtype.itemsize)
    solves = editor != "ft"
    work = 3 * 8 * d_mlp**2 if solves else 2 * edited  # Adam's two moments
    found = {"host": solver_bytes(d_mlp, layers) / 1e9 if solves else 0.0}
    for u in BATCHES:
        found[f"device, {u}"] = (weights + edited + work + 2 * 8 * u * (d_mlp + d_model)) / 1e9
    return found


def _layers(model: Model, editor: str) -> int:
    """How many layers an editor edits, in a model without settings as many as in the model whose settings it gets."""
    configs = model_configs()
    config = configs.get(model.name) or configs[_like(model)]
    own = config["editors"].get(editor, {}).get("layers")
    critical = own or config["critical_layers"]
    return 2 if editor.endswith(f"_{blue.__name__}") else len(critical)


def _like(model: Model) -> str:
    return LIKE.get(model.lm.config.model_type, OTHERWISE)


def starter(model: Model) -> str:
    """A configuration to begin with: the settings of the paper's model that is most like this one, and a guess of the
    critical layers, the five (or as many as there are) from an eighth of the depth on."""
    like = model_configs()[_like(model)]
    first = model.n_layers // 8
    critical = list(range(first, min(first + 5, model.n_layers)))
    editors = {}
    for name, settings in like["editors"].items():
        own = dict(settings)
        if "layers" in own:
            own["layers"] = critical[:1] if len(own["layers"]) == 1 else critical[-len(own["layers"]) :]
        editors[name] = own
    config = {
        "models": [model.name],
        "critical_layers": critical,
        "statistics": dict(like.get("statistics", {})),
        "targets": dict(like["targets"]),
        "editors": {name: editors[name] for name in EDITORS if name in editors},
    }
    return (
        f"# Settings of {_like(model)}; the critical layers are a guess (see notebook 01).\n"
        "# Nothing here was searched for this model. Second moments need a text: corpus=wikipedia, or a path.\n"
        + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)
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
    columns = list(next(iter(findings.memory.values())))
    lines += ["", "memory in GB, modelled: host; device by size of batch, without micro-batches of targets",
              f"  {'':16}" + "".join(f"{column:>14}" for column in columns)]  # fmt: skip
    for editor, sizes in findings.memory.items():
        lines.append(f"  {editor:16}" + "".join(f"{sizes[column]:14.3f}" for column in columns))
    if not findings.configured:
        lines += ["", f"no settings for this model; to begin with, save this as a .yaml file in the folder that "
                  f"{USER_CONFIGS} names:", "", findings.configuration.rstrip()]  # fmt: skip
    return "\n".join(lines)
