"""Rows packed into lines: every token in one place, nothing seen of other rows, and little run that is not wanted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bluelib.editing import packing
from bluelib.editing.packing import Kept, Layout, Recorder

#: Of each row, how many tokens are kept and how many are run.
ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 8)).filter(any), min_size=1, max_size=30).filter(
    lambda rows: any(runs for _, runs in rows)
)


def columns(rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the parts that are run begin and end."""
    begin, runs = torch.tensor(rows).T
    return begin, begin + runs


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_every_token_has_a_place_of_its_own(rows):
    begin, end = columns(rows)
    layout = Layout.packed(begin, end)
    found = set()
    for i in range(len(rows)):
        for token in range(end[i]):
            place = int(layout.place[i, token])
            assert (place < layout.kept) == (token < begin[i])
            found.add((int(layout.line[i]), place))
            assert (layout.owner[layout.line[i], place], layout.token[layout.line[i], place]) == (i, token)
    assert len(found) == end.sum() == (layout.owner >= 0).sum()
    assert layout.lines * layout.width <= len(rows) * max(size for _, size in rows), "no more than a row a line"


@given(rows=ROWS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_tokens_keys_and_masks_move_together(rows, data):
    """Whole rows, then their first parts, then the parts behind them, then those of some rows only: at each step
    every token has the keys of its own row, as they were seen before."""
    begin, end = columns(rows)
    n, longest = len(rows), int(end.max())
    shape = n, longest + 1
    mask = torch.ones(longest + 1, longest + 1, dtype=torch.bool).tril()[None, None]
    names = torch.arange(n * shape[1]).view(shape)  # of each token a number that tells it from all others
    whole = Layout.whole(end)
    some = torch.tensor(data.draw(st.lists(st.sampled_from(range(n)), min_size=1, unique=True).map(sorted)))
    assume((end - begin)[some].any())
    old, seen = whole, names[:, None, :, None].float()  # one head of size 1
    layouts = [Layout.packed(begin, end), Layout.packed(begin, end, some)]
    if begin.any():
        layouts.insert(0, Layout.packed(torch.zeros_like(begin), begin))
    for layout in layouts:
        run = layout.tokens(names, whole)
        assert run.shape == (layout.lines, layout.width)
        before = layout.keys((seen, seen), old)
        assert torch.equal(*before) and before[0].shape == (layout.lines, 1, layout.kept, 1)
        (visible,), _ = layout.call(((mask,), {}), shape, Kept(), torch.device("cpu"))
        assert visible.shape == (layout.lines, 1, layout.width, layout.kept + layout.width)
        cache = Recorder({0: before})
        seen, _ = cache.update(run[:, None, :, None].float(), run[:, None, :, None].float(), 0)
        assert torch.equal(cache.seen[0][0], seen)
        for i in layout.rows.tolist():
            part = range(int(begin[i])) if layout is layouts[0] and len(layouts) == 3 else range(*rows_part(rows[i]))
            line, slots = layout.at(torch.full((len(part),), i), torch.tensor(part, dtype=torch.long))
            for token, at, slot in zip(part, line.tolist(), slots.tolist(), strict=True):
                assert run[at, slot] == names[i, token]
                known = seen[at, 0, :, 0][visible[at, 0, slot]]
                assert sorted(known.tolist()) == names[i, : token + 1].tolist()
        assert visible.any(-1).all(), "a slot without a token sees something, so that its softmax is a number"
        old = layout


def rows_part(row) -> tuple[int, int]:
    return row[0], sum(row)


def test_what_rows_have_in_common_is_taken_from_one_of_them():
    """Rows 1 and 2 begin as row 0 does; its first two tokens are run once."""
    begin, end = torch.tensor([2, 2, 2]), torch.tensor([4, 3, 5])
    common = Layout.packed(torch.zeros(3, dtype=torch.long), begin, torch.tensor([0])).sharing(torch.zeros(3).long())
    layout = Layout.packed(begin, end)
    keys, _ = layout.keys((torch.tensor([[[[7.0], [8.0]]]]),) * 2, common)
    for line, place in zip(layout.line, layout.place, strict=True):
        assert keys[line, 0, place[:2], 0].tolist() == [7.0, 8.0]


def test_masks_of_numbers_hide_with_the_least_one():
    layout = Layout.packed(*columns([(2, 1), (1, 3)]))
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    numbers = torch.zeros(2, 1, 5, 5).masked_fill(~causal, float("-inf"))
    for dtype in (torch.float32, torch.bfloat16):
        (found, seen), _ = layout.call(((numbers.to(dtype), causal), {}), (2, 5), Kept(), torch.device("cpu"))
        assert (found[seen] == 0).all() and (found[~seen] <= torch.finfo(dtype).min).all()


def test_other_arguments_of_blocks():
    begin, end = columns([(2, 1), (1, 3)])
    layout, kept = Layout.packed(begin, end), Kept()
    names, positions = torch.arange(10.0).view(2, 5), torch.arange(5)[None]  # one for all rows
    scalar = torch.tensor(2.0)
    (cos_sin, nothing, number), rest = layout.call(
        (((names, names), None, 3), {"positions": positions, "cache": Recorder(), "scale": scalar}),
        (2, 5),
        kept,
        torch.device("cpu"),
    )
    row, token = layout.row[:, layout.kept :], layout.token[:, layout.kept :]
    assert torch.equal(cos_sin[0], names[row, token]) and cos_sin[0] is cos_sin[1], "moved once"
    assert nothing is None and number == 3
    assert torch.equal(rest["positions"], token) and rest["cache"] is kept and torch.equal(rest["scale"], scalar)


def test_packing_leaves_little_padding_and_keeps_attention_small():
    generator = torch.Generator().manual_seed(0)
    runs = torch.randint(1, 12, (700,), generator=generator)
    begin = torch.randint(3, 20, (700,), generator=generator)
    layout = Layout.packed(begin, begin + runs)
    assert layout.lines * layout.width < 1.1 * runs.sum() < 0.7 * 700 * runs.max()
    assert layout.kept + layout.width < 5 * (begin.max() + runs.max())


@pytest.mark.parametrize(("widths", "lines"), [((1.0,), 3), ((3.0,), 1)])
def test_the_width_of_lines_is_chosen_among_those_tried(widths, lines, monkeypatch):
    monkeypatch.setattr(packing, "WIDTHS", widths)
    assert Layout.packed(*columns([(0, 4)] * 3)).lines == lines
