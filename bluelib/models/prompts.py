"""Prompts as token batches: where the subject's last token is, which tokens a target has, padded batches.

Positions are found in the tokenisation of the whole text, from character offsets, so they do not depend on how the
pieces would tokenise alone. Of the special tokens that a tokenizer adds, those in front of a text (BOS) are kept and
those behind it (EOS) are not. Batches are padded on the right by this module, whatever the tokenizer's own setting.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: The text that replaces a prompt when a target is tokenised: a word before a space, else a line break.
ANCHORS = {" ": "a", "": "\n"}
#: Unicode categories without a glyph: controls, formats such as a zero-width space, and spaces.
INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")


#: The first and the last code point of blocks whose scripts are written without spaces: Thai and Lao, Tibetan, Burmese,
#: Khmer, Kana and Han with their punctuation, and full-width forms.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x30FF),
    (0x31C0, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFF9F),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True)
class Request:
    """One edit to make: after ``prompt`` (with ``{}`` for the subject) the model should say ``target``.

    Attributes:
        before: a text in front of everything, even of a context prefix: a chat template up to the user's words.
        separator: the text between prompt and target, a space or nothing; if None, :func:`joiner` decides.
    """

    prompt: str
    subject: str
    target: str
    before: str = ""
    separator: str | None = None

    @property
    def text(self) -> str:
        return self.before + fill(self.prompt, self.subject)


def visible(text: str) -> bool:
    """Whether a text has a character with a glyph."""
    return any(unicodedata.category(character) not in INVISIBLE for character in text)


def fill(template: str, subject: str) -> str:
    """Put the subject in place of the template's ``{}``; other braces are left as they are."""
    return template.replace("{}", subject, 1)


@dataclass(frozen=True)
class Located:
    """A tokenised prompt and the indices of its subject's first and last token."""

    ids: tuple[int, ...]
    subject_last: int
    subject_first: int


def joiner(prompt: str, target: str) -> str:
    """The text between a prompt and the target that follows it: a space, or nothing.

    It is nothing after whitespace (such as the newline at the end of a chat template's header) and after an opening
    bracket or quotation mark. It is nothing, too, if the prompt's last character or the target's first belongs to a
    script that is written without spaces (:data:`UNSPACED`), or to its punctuation.
    """
    last, first = prompt[-1:], target.strip()[:1]
    if not last or not first:
        return " "
    opens = unicodedata.category(last) in ("Ps", "Pi") or (last in "\"'" and prompt[-2:-1].isspace())
    return "" if last.isspace() or opens or _unspaced(last) or _unspaced(first) else " "


def has_unspaced(text: str) -> bool:
    """Whether a text has a character of a script that is written without spaces."""
    return any(map(_unspaced, text))


def _unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in UNSPACED)


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The texts that the tokenizer's chat template puts before and after the words of a user whom the model is to
    answer. A template may begin with a system prompt of its own.

    Raises:
        ValueError: if the tokenizer has no chat template, or the template does not show a user's words exactly once.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template; without chat, a prompt is a text that "
            "the model continues"
        )
    words = "USERS-WORDS"
    turn = [{"role": "user", "content": words}]
    rendered = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    if rendered.count(words) != 1:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} must show a user's words exactly once "
            f"and unchanged; it turns {words!r} into {rendered!r}"
        )
    before, after = rendered.split(words)
    return before, after


def chat_separator(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The text that the tokenizer's chat template puts between the start of the model's turn and its words: a space or
    nothing; None if the template does not show it."""
    turns = [{"role": "user", "content": "words"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        asked = str(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, ValueError, TypeError):
        return None
    between = whole.removeprefix(asked).partition("ANSWER")[0] if whole.startswith(asked) else None
    return between if between in ("", " ") else None


def locate(
    tokenizer: PreTrainedTokenizerBase, template: str, subject: str, prefix: str = "", before: str = ""
) -> Located:
    """Tokenise ``before + prefix + template`` with its subject filled in, and find the subject's last token.

    That is the last token that holds any character of the subject, apart from spaces at the subject's ends. For a
    letter spelt in bytes, it is the last byte; if one token holds both the subject's end and what follows, it is that
    token. The subject is looked for only where the template has its ``{}``. Characters are those of the text as given,
    even if the tokenizer normalises it.

    The special tokens that the tokenizer puts in front of a text (Llama's BOS) are part of the result.

    Raises:
        ValueError: if the template has no ``{}``, the subject has no visible character or no token, or the tokenizer
            gives no character offsets.
    """
    if "{}" not in template:
        raise ValueError(f"prompt {template!r} has no {{}} for the subject")
    if not visible(subject):
        raise ValueError(f"subject {subject!r} has no visible character; it must have one, in prompt {template!r}")
    text = before + prefix + fill(template, subject)
    start = len(before + prefix) + template.index("{}") + len(subject) - len(subject.lstrip())
    end = start + len(subject.strip())
    front, ids, offsets = _encode(tokenizer, text)
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and a < b]
    if not inside:
        raise ValueError(
            f"subject {subject!r} has no token in {text!r}: {tokenizer.name_or_path or 'the tokenizer'} "
            "drops its characters"
        )
    # The space that SentencePiece puts before a text, or after a BOS written in it, can be a token of its own with the
    # first letter's offsets.
    if len(inside) > 1 and not tokenizer.decode([ids[inside[0]]]).strip():
        del inside[0]
    return Located(front + ids, len(front) + inside[-1], len(front) + inside[0])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, with the special tokens that the tokenizer puts in front, and none behind.

    A text that begins with a BOS of its own does not get a second one.

    Raises:
        ValueError: if the tokenizer gives no character offsets.
    """
    front, ids, _ = _encode(tokenizer, text)
    return front + ids


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, separator: str | None = None, special: bool = False
) -> tuple[int, ...]:
    """Token ids of a target as it follows a prompt: see :func:`encode_target`.

    Args:
        tokenizer: a fast one.
        prompt: the text in front.
        target: what follows it.
        separator: a space or nothing; if None, :func:`joiner` decides.
        special: see :func:`encode_target`.
    """
    return encode_target(tokenizer, target, special, joiner(prompt, target) if separator is None else separator)


def encode_target(
    tokenizer: PreTrainedTokenizerBase, target: str, special: bool = False, separator: str = " "
) -> tuple[int, ...]:
    """Token ids of a target as it follows a prompt, without BOS or other special tokens: after one space, or, with no
    separator, as at the beginning of a line.

    With ``special``, the special tokens that the tokenizer puts in front of a text come first.

    ``encode_prompt(prompt) + encode_target(target)`` are the tokens of ``prompt + " " + target``, unless the prompt
    is empty or ends in whitespace, a special token is written out in one of the texts, or the vocabulary has a token
    that reaches from a word over the space into the next.

    Raises:
        ValueError: if the target has no token; if the tokenizer joins a word with the space after it, so a target has
            no tokens of its own; if the tokenizer gives no character offsets; or for another separator.
    """
    if separator not in ANCHORS:
        raise ValueError(f"the separator of a prompt and its target must be a space or nothing, not {separator!r}")
    anchor = ANCHORS[separator]
    front, ids, offsets = _encode(tokenizer, f"{anchor}{separator}{target.strip()}")
    first = next((i for i, (start, _) in enumerate(offsets) if start >= len(anchor)), len(ids))
    joined = next((i for i, (_, end) in enumerate(offsets[:first]) if end > len(anchor)), None)
    if joined is not None and not separator and anchor not in tokenizer.decode([ids[joined]]):
        first = joined  # this tokenizer takes a line break for a space, or for nothing
    elif joined is not None:
        what = "a word with the space after it" if separator else "a line break with what follows it"
        raise ValueError(
            f"{tokenizer.name_or_path or 'the tokenizer'} joins {what}: target {target!r} has "
            "no tokens of its own; use a tokenizer that begins a new token there"
        )
    if first == len(ids):
        raise ValueError(f"target {target!r} has no token; it must have one")
    return (front if special else ()) + ids[first:]


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Special tokens that the tokenizer puts before a text, the text's own tokens, and their character offsets."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; use a fast tokenizer")
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets, added = (encoding[key] for key in ("input_ids", "offset_mapping", "special_tokens_mask"))
    rows = getattr(tokenizer, "embedded", None)
    if rows is not None and max(ids, default=0) >= rows:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise ValueError(
            f"{text[-80:]!r} has the token {token!r}, which was added to the tokenizer and has no embedding in the "
            f"model (id {max(ids)}; the model has {rows}): resize the model's embeddings, or leave the token out"
        )
    # An empty text does not show which of the special tokens are in front.
    shown = added if 0 in added else tokenizer(ANCHORS[" "], return_special_tokens_mask=True)["special_tokens_mask"]
    begin = shown.index(0)
    own = [i for i, special in enumerate(added) if not special]
    if own and tokenizer.bos_token_id in ids[:begin] and ids[own[0]] == tokenizer.bos_token_id:
        del own[0]
    return tuple(ids[:begin]), tuple(ids[i] for i in own), tuple(tuple(offsets[i]) for i in own)


def pad(
    sequences: Sequence[Sequence[int]],
    pad_id: int | None,
    device: torch.device | str,
    extra: int = 0,
    *,
    left: bool = False,
) -> dict[str, Tensor]:
    """Right-padded ``input_ids`` and ``attention_mask``, each ``(n, longest + extra)``; left-padded with ``left``.

    Without a padding token, id 0 pads: it makes no difference, because padding is masked.
    """
    longest = max(map(len, sequences)) + extra
    ids = torch.full((len(sequences), longest), 0 if pad_id is None else pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        own = slice(longest - len(sequence), None) if left else slice(len(sequence))
        ids[row, own] = torch.tensor(sequence)
        mask[row, own] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group indices into batches of similar length, each of at most ``token_budget`` tokens with padding.

    A sequence longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[index] * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
