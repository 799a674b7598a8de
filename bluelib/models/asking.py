"""What a model says: a prompt's continuation, and the most probable next tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..io.checks import check_whole
from .generation import continue_greedily
from .model import Model
from .prompts import chat_frame
from .scoring import top_tokens


@dataclass(frozen=True, repr=False)
class Reply:
    """What a model says after a prompt; printed, it is the text with the first choices below.

    Attributes:
        prompt: what it was asked, as the model read it.
        text: what it says, always the most probable token.
        top: the most probable next tokens with their probabilities, in [0, 1].
    """

    prompt: str
    text: str
    top: tuple[tuple[str, float], ...]

    def __repr__(self) -> str:
        said = self.text or "(nothing: the text ends)"
        return "\n".join([said, *(f"{100 * probability:6.2f} %  {token!r}" for token, probability in self.top)])


def ask(model: Model, prompt: str, *, chat: bool = False, tokens: int = 40, top: int = 5) -> Reply:
    """Let a model say what follows a prompt, greedily, until it ends the text.

    Args:
        model: the model, edited or not.
        prompt: the text that is continued, or, with ``chat``, what a user says.
        chat: put the prompt into a user's turn of the tokenizer's chat template, which may add a system prompt of its
            own; the model then answers it.
        tokens: the most tokens of the reply.
        top: the number of most probable next tokens in the reply.

    Raises:
        ValueError: for a tokenizer without a chat template, an empty prompt, numbers below 1, or a prompt that exceeds
            the model's context together with the reply.
    """
    check_whole("tokens", tokens, 1)
    check_whole("top", top, 1, model.head.weight.shape[0], "the vocabulary")
    if chat:
        before, after = chat_frame(model.tokenizer)
        prompt = before + prompt + after
    choices = top_tokens(model, prompt, top)
    (text,) = continue_greedily(model, [prompt], [tokens], until_end=True)
    return Reply(prompt, text, tuple(choices))
