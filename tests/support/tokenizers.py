"""Tokenizers of every kind that the library meets, small, and trained here on an invented text.

They are composed as transformers composes the real ones of the same name: normaliser, split, model, decoder,
post-processor. No vocabulary is copied.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("gpt2", "byte-bos", "llama3", "qwen2", "llama2", "mistral", "gemma", "unigram")
BYTE_LEVEL = ("gpt2", "byte-bos", "llama3", "qwen2")
#: The kinds that start every text with a BOS token. GPT-2's tokenizer has one and does not add it.
WITH_BOS = ("byte-bos", "llama3", "llama2", "mistral", "gemma")
#: BOS, EOS and padding token.
SPECIAL = {
    "gpt2": ("<|endoftext|>", "<|endoftext|>", None),
    "byte-bos": ("<|begin|>", "<|endoftext|>", "<|endoftext|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", None),
    "qwen2": (None, "<|im_end|>", "<|endoftext|>"),
    "llama2": ("<s>", "</s>", None),
    "mistral": ("<s>", "</s>", None),
    "gemma": ("<bos>", "<eos>", "<pad>"),
    "unigram": (None, "</s>", "<pad>"),
}
#: In the vocabulary of ``llama3`` as a whole, and not to be had by merging.
UNMERGED = " Quillbrook"

_VOCABULARY = 380
_GPT2_SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TIKTOKEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "gpt2": _GPT2_SPLIT,
    "llama3": _TIKTOKEN_SPLIT.format(digits="{1,3}"),
    "qwen2": _TIKTOKEN_SPLIT.format(digits=""),
}


def make_tokenizer(kind: str, **settings) -> PreTrainedTokenizerFast:
    """A tokenizer of one of the :data:`KINDS`, new at each call; ``settings`` go to transformers' wrapper.

    ``add_bos_token`` and ``add_eos_token`` are such settings. Given one of them, transformers writes the post-processor
    anew, for both.
    """
    bos, eos, padding = SPECIAL[kind]
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": padding, "unk_token": _unknown(kind)}
    tokens = {name: token for name, token in tokens.items() if token}
    backend = Tokenizer.from_str(_backend(kind))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **{**tokens, **settings}
    )


def training_text() -> list[str]:
    """The invented text: a few hundred short sentences in several languages and scripts, always the same."""
    people = [
        "Ilvane Quillbrook",
        "Zoë D'Astrelle",
        "Torrin Vantorre",
        "Łucja Żółkiew",
        "Óscar Peñalver",
        "Jürgen Weiß",
    ]
    places = [
        "Paris",
        "San Brelmo",
        "St. John's",
        "Yahoo!",
        "Saint Kitts and Nevis",
        "東京",
        "Львів",
        "Ελλάδα",
        "קרית",
        "बेलूर",
    ]
    frames = [
        "{} plays the {}.",
        "The mother tongue of {} is {}.",
        "In {}, {} is well known;",
        "{}'s neighbour, {}, was born in 1984.",
        "{} vit à {} depuis l’été.",
        "{} wohnt in {}, glaube ich.",
        "{} の首都は {} です。",
        "{} живёт в городе {}.",
    ]
    return [frame.format(a, b) for frame in frames for a in people for b in places]


@lru_cache
def _backend(kind: str) -> str:
    if kind in BYTE_LEVEL:
        backend = _byte_level(kind)
    elif kind == "unigram":
        backend = _unigram()
    else:
        backend = _sentencepiece(kind)
    steps = [processors.ByteLevel(trim_offsets=False)] if kind in BYTE_LEVEL else []
    if kind in WITH_BOS:
        bos = SPECIAL[kind][0]
        added = [(bos, backend.token_to_id(bos))]
        steps.append(processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos}:1 $B:1", added))
    if steps:
        backend.post_processor = processors.Sequence(steps) if len(steps) > 1 else steps[0]
    return backend.to_str()


def _unknown(kind: str) -> str | None:
    return None if kind in BYTE_LEVEL else "<unk>"


def _specials(kind: str) -> list[str]:
    return list(dict.fromkeys(token for token in (_unknown(kind), *SPECIAL[kind]) if token))


def _byte_level(kind: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    split = Regex(_SPLITS.get(kind, _GPT2_SPLIT))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_specials(kind),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(training_text(), trainer)
    if kind != "llama3":
        return backend
    state = json.loads(backend.to_str())
    state["model"]["ignore_merges"] = True
    vocabulary = state["model"]["vocab"]
    whole = UNMERGED.replace(" ", "Ġ")
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) != whole]
    vocabulary.setdefault(whole, len(vocabulary))
    return Tokenizer.from_str(json.dumps(state))


@lru_cache
def _pieces() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Pieces and merges as SentencePiece learns them: each within a word, the space before it included.

    The alphabet leaves most letters beyond Latin out: they are spelt in bytes.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    counts = Counter("".join(training_text()).replace(" ", "▁"))
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))[:60]  # in one order in every process
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, initial_alphabet=letters, limit_alphabet=60, show_progress=False
    )
    learner.train_from_iterator(training_text(), trainer)
    state = json.loads(learner.to_str())["model"]
    spaces = [("▁" * n, "▁" * n) for n in (1, 2)]  # runs of spaces are pieces too, in the real ones
    pieces = sorted(state["vocab"], key=state["vocab"].get)
    return (*pieces, "▁▁", "▁▁▁▁"), (*(tuple(pair) for pair in state["merges"]), *spaces)


def _sentencepiece(kind: str) -> Tokenizer:
    """BPE over the whole text with spaces written ▁, letters outside the vocabulary in bytes."""
    pieces, merges = _pieces()
    names = [*_specials(kind), *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {piece: index for index, piece in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        decode.append(decoders.Strip(content=" ", left=1))
        if kind == "llama2":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(decode)
    backend.add_special_tokens(_specials(kind))
    return backend


def _unigram() -> Tokenizer:
    """Unigram as SentencePiece makes it, without byte fallback: letters outside the vocabulary are ``<unk>``."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCABULARY, special_tokens=_specials("unigram"), unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(training_text(), trainer)
    return backend
