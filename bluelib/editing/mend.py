"""MEND: a small network that turns the gradient of an edit into a weight update (Mitchell et al. 2022).

The gradient of a linear map's weight is a sum over tokens of outer products d kᵀ, where k is the map's input (here:
the key) and d the gradient at its output. MEND maps each pair (k, d) to another one and applies their outer products:

    ΔW = − α_l Σ_t d̃_t k̃_tᵀ,   (k̃, d̃) = g_l(k, d)

g is the identity plus a low-rank perceptron that the edited layers share, with a scale and an offset for each; α_l
is learned too. It is trained so that after one update the model gives the new object, also for paraphrases, and
answers unrelated prompts as before:

    loss = c_e · NLL(new object | edited) + KL(original ‖ edited) at unrelated prompts.

Three differences from the paper's set-up: only value projections are edited (not the MLP's first projection). A
training step makes a whole batch of edits, because the network is used on batches here. In the pocket models, the
edited layers are the last three critical layers, where editing a single layer has an effect, instead of the last three
layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import Record
from ..io.assets import ASSETS, shipped_hash, update_sums
from ..io.checks import check_whole
from ..io.paths import cache_dir
from ..io.tensors import file_hash, load_tensors, save_tensors
from ..io.timing import Timer, progress_bar
from ..io.writing import check_new_file
from ..models.known import scale_of
from ..models.model import Model
from ..models.prompts import Request
from ..models.scoring import next_token_log_probs, request_nll
from ..models.tracing import trace
from .method import BatchResult, Method

RANK, EDIT_WEIGHT = 64, 0.1


class Network(nn.Module):
    """g: maps keys ``(n, d_mlp)`` and gradients ``(n, d_model)`` of one layer to their transformed forms.

    Both are divided by their typical length first (``scale``, measured on the training records).
    """

    scale: Tensor

    def __init__(self, d_mlp: int, d_model: int, layers: int, rank: int = RANK):
        super().__init__()
        width = d_mlp + d_model
        self.d_mlp = d_mlp
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(2))
        up = [nn.Linear(rank, width) for _ in range(2)]
        for linear in up:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.up = nn.ModuleList(up)
        self.gain = nn.Parameter(torch.ones(layers, 2, width))
        self.offset = nn.Parameter(torch.zeros(layers, 2, width))
        self.log_rate = nn.Parameter(torch.zeros(layers))
        self.register_buffer("scale", torch.ones(layers, 2))  # typical lengths of keys and gradients

    def forward(self, position: int, keys: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        key_scale, gradient_scale = self.scale[position]
        x = torch.cat([keys.to(key_scale.device) / key_scale, gradients.to(key_scale.device) / gradient_scale], 1)
        for i, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            # clamp has gradient 1 at 0, where the network starts; relu has 0 and would never learn.
            x = x + (self.gain[position, i] * up(down(x)) + self.offset[position, i]).clamp(min=0)
        return x[:, : self.d_mlp], x[:, self.d_mlp :]

    def update(self, position: int, keys: Tensor, gradients: Tensor) -> Tensor:
        """ΔW, ``(d_model, d_mlp)``."""
        new_keys, new_gradients = self(position, keys, gradients)
        return -self.log_rate[position].exp() * new_gradients.T @ new_keys


def network_path(model: Model) -> Path:
    """The default file of a model's network: a pocket model's ships with the project, any other is in the user's
    cache."""
    folder = ASSETS / "mend" if scale_of(model.name) == "pocket" else cache_dir("mend")
    return folder / f"{model.stem}.safetensors"


@dataclass(frozen=True)
class Mend(Method):
    """MEND with a trained network.

    Attributes:
        name, layers: see :class:`~bluelib.editing.method.Method`.
        network: the network's file; None for :func:`network_path`.
    """

    name: str
    layers: tuple[int, ...]
    network: str | None = None

    def path(self, model: Model) -> Path:
        """The network's file for a model."""
        return Path(self.network) if self.network else network_path(model)

    def inputs(self, model: Model, state: Network) -> dict[str, str]:
        return {"network": file_hash(self.path(model))}

    def check(self, model: Model) -> None:
        """Make sure that there is a network for the model.

        Raises:
            FileNotFoundError, ValueError: as :meth:`prepare`.
        """
        self.prepare(model)

    def prepare(self, model: Model) -> Network:
        """Load the network.

        Raises:
            FileNotFoundError: if there is no network.
            ValueError: if it was trained for other weights or other layers, or is damaged.
        """
        path = self.path(model)
        if not path.exists():
            raise FileNotFoundError(f"no MEND network at {path}; train one: blue train-mend --model {model.name}")
        tensors, about = load_tensors(path, sha256=shipped_hash(path))
        made_for = about.get("mend", {})
        wanted = {"model_revision": model.revision, "layers": list(self.layers)}
        for key, value in wanted.items():
            if made_for.get(key) != value:
                raise ValueError(
                    f"{path} was trained for {key} {made_for.get(key)}, and {value} is needed here; train another "
                    f"network: blue train-mend --model {model.name}"
                )
        d_model, d_mlp = model.weight(self.layers[0]).shape
        network = Network(d_mlp, d_model, len(self.layers))
        network.load_state_dict(tensors)
        return network.to(model.device).requires_grad_(False)

    def edit(self, model: Model, requests: Sequence[Request], state: Network, timer: Timer) -> BatchResult:
        with timer("gradients"):
            loss, pairs = gradient_pairs(model, requests, self.layers)
        if not math.isfinite(loss):
            raise FloatingPointError(f"{self.name}: the loss of {requests[0].text!r} and its batch is {loss}")
        with timer("network"):
            updates = {
                layer: state.update(position, *pairs[layer]).to(model.weight(layer))
                for position, layer in enumerate(self.layers)
            }
            for layer, update in updates.items():
                model.weight(layer).add_(update)
        return BatchResult(updates, steps=1, loss=loss)


@torch.enable_grad()
def gradient_pairs(
    model: Model, requests: Sequence[Request], layers: Sequence[int]
) -> tuple[float, dict[int, tuple[Tensor, Tensor]]]:
    """The mean loss of the requests and, per layer, the keys of all tokens and the gradients of the summed loss at the
    layer's outputs."""
    outputs: dict[int, Tensor] = {}

    def hold(layer: int, output: Tensor) -> Tensor:
        outputs[layer] = output if output.requires_grad else output.detach().requires_grad_()
        return outputs[layer]

    modules = {layer: model.value_projection(layer) for layer in layers}
    with trace(inputs={("key", layer): m for layer, m in modules.items()}, outputs=modules, edit=hold) as captured:
        nll = request_nll(model, requests)
    gradients = torch.autograd.grad(nll.sum(), [outputs[layer] for layer in layers])
    pairs = {}
    for layer, gradient in zip(layers, gradients, strict=True):
        gradient = gradient.flatten(0, 1).float()
        used = gradient.abs().amax(1) > 0  # padding, and tokens after the last one read, have no gradient
        pairs[layer] = (captured["key", layer].detach().flatten(0, 1)[used].float(), gradient[used])
    return nll.mean().item(), pairs


def train(
    model: Model,
    records: Sequence[Record],
    layers: Sequence[int],
    path: Path,
    *,
    steps: int = 800,
    batch_size: int = 10,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
) -> list[float]:
    """Train a network for ``model`` and write it to ``path``.

    Args:
        model: not changed.
        records: the edits to learn from; no later result may be reported on any of them.
        layers: the layers to edit.
        path: the safetensors file to write.
        steps: training steps; each makes one batch of edits on the original weights.
        batch_size: edits per step.
        learning_rate: Adam's, decayed linearly to zero.
        seed: of the batches and the initial weights.
        progress: show a progress bar (default: on a terminal).

    Returns:
        The loss of each step.

    Raises:
        ValueError: if the model does not have one of the layers, there is less than one step, or the batch size is not
            between 1 and the number of records.
        FloatingPointError: if the loss is not finite; then nothing is written.
        OSError: if ``path`` cannot be written.
    """
    layers = model.check_layers(layers)
    check_whole("steps", steps, 1)
    check_whole("batch_size", batch_size, 1, len(records), "the number of records")
    check_new_file(path)
    d_model, d_mlp = model.weight(layers[0]).shape
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(d_mlp, d_model, len(layers)).to(model.device)
        _, pairs = gradient_pairs(model, [record.request for record in records[:64]], layers)
        for position, layer in enumerate(layers):
            network.scale[position] = torch.stack([vectors.norm(dim=1).mean() for vectors in pairs[layer]])
        _first_rates(model, network, records, layers, batch_size)
        adam = torch.optim.Adam(network.parameters(), lr=learning_rate)
        bar = progress_bar(range(steps), desc="MEND", show=progress)
        for step in bar:
            for group in adam.param_groups:
                group["lr"] = learning_rate * (1 - step / steps)
            chosen = [records[i] for i in torch.randperm(len(records))[:batch_size].tolist()]
            loss = _training_loss(model, network, chosen, layers)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"MEND's training loss of records {', '.join(str(r.case_id) for r in chosen)} "
                    f"is {losses[-1]} at step {step}; lower the learning rate"
                )
            if step % 20 == 0:
                bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_tensors(path, state, {"mend": {"model_revision": model.revision, "layers": list(layers)}})
    update_sums(path)
    return losses


@torch.no_grad()
def _first_rates(
    model: Model, network: Network, records: Sequence[Record], layers: Sequence[int], batch_size: int
) -> None:
    """Start from the step size, of 13 from 10⁻³ to 10³, with which plain gradients have the lowest training loss."""
    batches = [records[i : i + batch_size] for i in range(0, min(len(records), 4 * batch_size), batch_size)]
    losses = {}
    for exponent in range(-6, 7):
        network.log_rate.fill_(exponent * math.log(10) / 2)
        losses[exponent] = sum(_training_loss(model, network, batch, layers).item() for batch in batches)
    network.log_rate.fill_(min(losses, key=losses.__getitem__) * math.log(10) / 2)


def _training_loss(model: Model, network: Network, records: Sequence[Record], layers: Sequence[int]) -> Tensor:
    _, pairs = gradient_pairs(model, [record.request for record in records], layers)
    told = [
        Request("{}", text, record.target_new, separator=record.separator)
        for record in records
        for text in (record.request.text, *record.paraphrases)
    ]
    unrelated = [record.locality[0].prompt for record in records if record.locality]
    before = next_token_log_probs(model, unrelated).detach() if unrelated else None
    updates = {layer: network.update(position, *pairs[layer]) for position, layer in enumerate(layers)}
    with _edited(model, updates):
        edit_loss = request_nll(model, told).mean()
        if before is None:
            return EDIT_WEIGHT * edit_loss
        after = next_token_log_probs(model, unrelated)
    return EDIT_WEIGHT * edit_loss + nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")


@contextmanager
def _edited(model: Model, updates: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside the block the value projections give W k + ΔW k, differentiably in ΔW."""
    with torch.enable_grad():
        hooks = [
            model.value_projection(layer).register_forward_hook(
                lambda module, args, output, update=update: output + (args[0] @ update.T.to(args[0])).to(output)
            )
            for layer, update in updates.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
