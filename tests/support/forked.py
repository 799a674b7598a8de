"""What the process has at hand that those of ``test_kills.py`` are forked from: imported there, and in them alone."""

from __future__ import annotations

from functools import cache

from bluelib.pocket import pretrain
from bluelib.pocket.text import PackedText
from bluelib.pocket.tokenizer import build_tokenizer
from tests.io import test_kills  # noqa: F401
from tests.support.small import random_model

MODEL = random_model("pocket-llama")
_TEXT = PackedText(build_tokenizer(bos=False, seed=pretrain.SEED), pretrain.ROW, pretrain.SEED)
_TEXT.epoch = cache(_TEXT.epoch)
_TEXT.epoch(0)
pretrain.PackedText = lambda *_: _TEXT
pretrain.text_hash = cache(pretrain.text_hash)
pretrain.text_hash(pretrain.SEED)
