"""The pocket models' tokenizers: byte-level BPE, trained on the pocket text."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .text import training_sentences
from .world import SEED

VOCABULARY = 2560
END_OF_TEXT, BEGIN_OF_TEXT = "<|endoftext|>", "<|begin_of_text|>"


@lru_cache(maxsize=4)
def _trained(seed: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, BEGIN_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_sentences(seed), trainer)
    return tokenizer.to_str()


def build_tokenizer(bos: bool, seed: int = SEED) -> PreTrainedTokenizerFast:
    """Train the tokenizer. With ``bos`` every text starts with ``<|begin_of_text|>``, as in Llama 3."""
    backend = Tokenizer.from_str(_trained(seed))
    first = BEGIN_OF_TEXT if bos else END_OF_TEXT
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN_OF_TEXT} $A",
            pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT} $B",
            special_tokens=[(BEGIN_OF_TEXT, backend.token_to_id(BEGIN_OF_TEXT))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=first,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
