"""Rows of unequal length, packed into lines of equal length, so that hardly any padding is run.

A *row* is a sequence of which only one part, from some token to another, is run; of the tokens before that part, keys
and values are kept. A *line* holds the parts of one or several rows, one after another, and before them what is kept of
these rows. A token sees only its own row: an attention mask hides the others. Everything else in a block is computed
token by token, so packing does not affect it.

A block's arguments other than hidden states (masks, positions) are known for whole rows, one per line; a
:class:`Layout` takes from them what belongs to each of its places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

#: The cost of one key in a token's attention, as a share of the token's matrix products; a larger value packs fewer
#: rows into a line.
KEY = 1 / 200
#: Widths of lines that are tried, as multiples of the longest part.
WIDTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)

Pair = tuple[Tensor, Tensor]


class Kept:
    """Keys and values, ``(lines, heads, kept, head size)`` each, by layer: what attention calls a cache.

    Unlike transformers' own cache, it is not changed by a forward pass, so every step starts from the same one.
    """

    def __init__(self, layers: dict[int, Pair] | None = None):
        self.layers = layers or {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> Pair:
        if layer not in self.layers:
            return keys, values
        before_keys, before_values = self.layers[layer]
        return torch.cat([before_keys, keys], 2), torch.cat([before_values, values], 2)


class Recorder(Kept):
    """Remembers, by layer, all keys and values that attention has seen: the kept ones, and those run after them."""

    def __init__(self, layers: dict[int, Pair] | None = None):
        super().__init__(layers)
        self.seen: dict[int, Pair] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> Pair:
        self.seen[layer] = super().update(keys, values, layer)
        return self.seen[layer]


class Layout:
    """The places of some of n rows in lines.

    Attributes:
        rows: the rows that are in it, ascending.
        line: the line of each row, ``(n,)``.
        place: the place of each token of each row, ``(n, longest)``, in its line: first what is kept, then what is run.
            ``line`` and ``place`` have no meaning for other rows, and for tokens after a row's part.
        row, token: the row and token at each place, ``(lines, kept + width)``; an unused place repeats some token.
        owner: the row at each place, or -1 for an unused place.
        kept, width: how many tokens of a line are kept, and how many are run.
    """

    def __init__(self, rows: Tensor, begin: Tensor, end: Tensor, line: Tensor, earlier: Tensor, slot: Tensor):
        """``begin`` and ``end``, ``(n,)``, bound the part of every row that is run. For each row in ``rows``, ``line``
        is its line, ``earlier`` where its kept tokens begin among the line's kept ones, and ``slot`` where its run
        tokens begin among those run."""
        self.rows = rows
        kept, runs = begin[rows], (end - begin)[rows]
        self.lines = int(line.max()) + 1
        self.kept, self.width = int((earlier + kept).max()), int((slot + runs).max())
        of = torch.arange(len(rows)).repeat_interleave(kept + runs)
        token = torch.arange(len(of)) - ((kept + runs).cumsum(0) - kept - runs)[of]
        place = torch.where(token < kept[of], earlier[of] + token, self.kept + (slot - kept)[of] + token)
        self.line = torch.zeros_like(begin).index_copy(0, rows, line)
        self.place = torch.zeros(len(begin), int(end.max()), dtype=torch.long)
        self.place[rows[of], token] = place

        self.owner = torch.full((self.lines, self.kept + self.width), -1)
        self.row, self.token = torch.empty_like(self.owner), torch.empty_like(self.owner)
        for columns, most, first in ((slice(self.kept), kept, 0 * begin), (slice(self.kept, None), runs, begin)):
            some = rows[most.argmax()]
            self.row[:, columns], self.token[:, columns] = some, first[some]
        at = line[of], place
        self.owner[at] = self.row[at] = rows[of]
        self.token[at] = token
        self._on: dict[torch.device, Layout] = {}
        self._found: dict[int, Pair] = {}

    @classmethod
    def whole(cls, lengths: Tensor) -> Layout:
        """One row per line, run from its first token to its last."""
        nothing = torch.zeros_like(lengths)
        rows = torch.arange(len(lengths))
        return cls(rows, nothing, lengths, rows, nothing, nothing)

    @classmethod
    def packed(cls, begin: Tensor, end: Tensor, rows: Tensor | None = None) -> Layout:
        """Rows packed so that as few tokens are run as possible without much more attention. Some rows may have nothing
        to run, but not all of them."""
        rows = torch.arange(len(begin)) if rows is None else rows
        runs, kept = (end - begin)[rows].tolist(), begin[rows].tolist()
        longest = max(runs)
        best, least = [], float("inf")
        for width in sorted({min(sum(runs), int(longest * factor)) for factor in WIDTHS}):
            places, lines, room = _first_fit(kept, runs, width, width / longest)
            cost = lines * width * (1 + KEY * (room + width))  # all lines have the room of the fullest one
            if cost < least:
                best, least = places, cost
        return cls(rows, begin, end, *torch.tensor(best).T)

    def sharing(self, like: Tensor) -> Layout:
        """The same layout with row i at the places of row ``like[i]``, ``(n,)``; only for moving tokens and keys
        from."""
        shared = copy(self)
        shared.line, shared.place, shared._on = self.line[like], self.place[like], {}
        return shared

    def on(self, device: torch.device) -> Layout:
        """The same layout, for indexing tensors on a device."""
        if device not in self._on:
            there = self._on[device] = copy(self)
            vars(there).update({k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}, _found={})
        return self._on[device]

    def at(self, row: Tensor, token: Tensor) -> Pair:
        """The line of each of these tokens, and its place among those that are run."""
        here = self.on(row.device)
        return here.line[row], here.place[row, token] - self.kept

    def tokens(self, value: Tensor, old: Layout) -> Tensor:
        """Values of each token that is run, ``(lines, width, …)``, moved from where the tokens lay in the ``old``
        layout."""
        here, old = self.on(value.device), old.on(value.device)
        row, token = here.row[:, self.kept :], here.token[:, self.kept :]
        return value[old.line[row], old.place[row, token] - old.kept]

    def keys(self, pair: Pair, old: Layout) -> Pair:
        """Keys and values of the kept tokens, moved from where a layer saw them in the ``old`` layout."""
        here, old = self.on(pair[0].device), old.on(pair[0].device)
        row, token = here.row[:, : self.kept], here.token[:, : self.kept]
        line, place = old.line[row], old.place[row, token]
        keys, values = (part[line, :, place].transpose(1, 2).contiguous() for part in pair)
        return keys, values

    def call(self, call: tuple[tuple, dict], shape: tuple[int, int], kept: Kept, device: torch.device) -> tuple:
        """A block's arguments other than hidden states, ``(args, kwargs)``, made from those for whole rows, one per
        line, of this shape; on the device that the block runs on."""
        args, kwargs = call
        move = self.on(device)._argument
        return tuple(move(v, shape, kept) for v in args), {k: move(v, shape, kept) for k, v in kwargs.items()}

    def _argument(self, value: Any, shape: tuple[int, int], kept: Kept) -> Any:
        if isinstance(value, (Cache, Kept)):
            return kept
        if isinstance(value, tuple):
            return tuple(self._argument(item, shape, kept) for item in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._found:  # most blocks are called with the very same masks and positions
            self._found[id(value)] = value, self._of_places(value.to(self.row.device), shape)
        return self._found[id(value)][1]

    def _of_places(self, value: Tensor, shape: tuple[int, int]) -> Tensor:
        lines, width = shape
        row, token = self.row[:, self.kept :], self.token[:, self.kept :]
        if value.ndim == 4 and value.shape[-2:] == (width, width):  # an attention mask
            seen = self.owner[:, self.kept :, None] == self.owner[:, None]
            mask = value[:, 0].expand(lines, -1, -1)[row[:, :, None], token[:, :, None], self.token[:, None]]
            hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            return mask.masked_fill(~seen, hidden)[:, None]
        if value.ndim >= 2 and value.shape[1] == width:
            return value.expand(lines, *value.shape[1:])[row, token]
        return value


def _first_fit(
    kept: Sequence[int], runs: Sequence[int], width: int, more: float
) -> tuple[list[tuple[int, int, int]], int, int]:
    """Put rows into lines of ``width``, the longest first, each into the fullest line that has room. What is kept in a
    line is bounded too, because every line gets as much room for it as the fullest one: at most ``more`` + ½ times what
    is kept of the row with the most.

    Returns, for each row, its line and where its kept and its run tokens begin in it; the number of lines; and the
    largest number of kept tokens in a line."""
    room = int(max(kept) * (more + 0.5))
    places = [(0, 0, 0)] * len(runs)
    free: dict[int, list[int]] = defaultdict(list)  # lines by the slots that they have left
    used: list[int] = []  # how many tokens are kept in each line
    for row in sorted(range(len(runs)), key=lambda i: (runs[i], kept[i]), reverse=True):
        size, before = runs[row], kept[row]
        fitting = ((left, at) for left in range(size, width + 1) for at in free[left] if used[at] + before <= room)
        left, at = next(fitting, (width, len(used)))
        if at == len(used):
            used.append(0)
        else:
            free[left].remove(at)
        places[row] = at, used[at], width - left
        used[at] += before
        free[left - size].append(at)
    return places, len(used), max(used)
