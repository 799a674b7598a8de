"""Sample a text from a model itself, to measure its second moments on where no other text is at hand.

    python scripts/sample_text.py --model smollm2-135m --output bluelib/assets/texts/smollm2-135m.txt.xz

Every text begins after the token that stands between documents, and is drawn from the model's whole distribution: a
lower temperature, or a cut-off, would make keys alike. Where the model ends a document, the next line begins. The same
seed gives the same text on the same machine; on another one, rounding may change a word, and everything after it.
"""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path

import torch

from bluelib.io.assets import update_sums
from bluelib.io.timing import progress_bar
from bluelib.io.writing import atomic_file
from bluelib.models.load import load_model
from bluelib.models.model import Model

#: Every sampling setting, so that a checkpoint's own generation settings have no effect.
WHOLE = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}


@torch.no_grad()
def sample(model: Model, opening: str, tokens: int, length: int, batch: int, seed: int) -> list[str]:
    """Documents of about ``tokens`` tokens in all, each of ``length`` at most, on one line each."""
    (first,) = model.tokenizer.convert_tokens_to_ids([opening])
    documents: list[str] = []
    torch.manual_seed(seed)
    for _ in progress_bar(range(-(-tokens // (length * batch))), desc="sampling", unit="batch"):
        opened = torch.full((batch, 1), first, device=model.device)
        ids = model.hf_model.generate(
            input_ids=opened,
            attention_mask=torch.ones_like(opened),
            max_new_tokens=length,
            **WHOLE,
            eos_token_id=None,
            pad_token_id=model.tokenizer.pad_token_id,
        )
        for row in ids.tolist():
            for part in _split(row, first):
                text = " ".join(model.tokenizer.decode(part, skip_special_tokens=True).split())
                documents += [text] if text else []
    return documents


def _split(row: list[int], at: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in row:
        if token == at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--output", type=Path, required=True, help="a .txt.xz file")
    parser.add_argument("--opening", default="<|endoftext|>", help="the token between documents")
    parser.add_argument("--tokens", type=int, default=220_000)
    parser.add_argument("--length", type=int, default=256, help="the most tokens that a text may have")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    how = (arguments.opening, arguments.tokens, arguments.length, arguments.batch, arguments.seed)
    documents = sample(model, *how)
    with atomic_file(arguments.output) as temporary:
        temporary.write_bytes(lzma.compress("\n".join([*documents, ""]).encode(), preset=9 | lzma.PRESET_EXTREME))
    update_sums(arguments.output)
    print(f"{arguments.output}: {len(documents)} documents, {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
