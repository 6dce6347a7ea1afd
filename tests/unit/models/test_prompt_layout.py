# SPDX-License-Identifier: Apache-2.0
"""Every token of a text sees that text's tokens before it and no others, whatever the layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from metarm.errors import ModelError
from metarm.models.attention_blocks import attend_in_blocks
from metarm.models.attention_tiles import attend_in_tiles
from metarm.models.prompt_layout import (
    find_shared_rows,
    lay_out_grouped,
    lay_out_packed,
    shared_length,
)
from metarm.models.shared_attention import attend_packed

tokens = st.lists(st.integers(1, 3), min_size=1, max_size=7)
grouped = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), max_size=9), st.lists(tokens, min_size=1, max_size=4)
    ).map(lambda group: [group[0] + own for own in group[1]]),
    min_size=1,
    max_size=4,
)


def flat(groups):
    rows = [row for group in groups for row in group]
    return rows, [number for number, group in enumerate(groups) for _ in group]


def seen_by(visible, positions, end):
    """The tokens that the last token of a text sees, in order of their places."""
    found = visible[end].nonzero().flatten().tolist()
    return sorted(found, key=lambda token: positions[token].item())


@settings(max_examples=60, deadline=None)
@given(grouped)
def test_a_packed_row_holds_every_text(groups):
    rows, group_of_row = flat(groups)
    shared = find_shared_rows(rows, group_of_row)
    layout = lay_out_packed(shared)
    ids, positions = layout.input_ids[0], layout.position_ids[0]
    count = len(ids)
    assert count == shared.num_tokens
    assert count == sum(
        shared_length(group) + sum(len(row) - shared_length(group) for row in group)
        for group in groups
    )
    every = torch.arange(count)
    visible = layout.sees(every.unsqueeze(1), every.unsqueeze(0))
    for row, end in zip(rows, layout.ends.tolist(), strict=True):
        text = seen_by(visible, positions, end)
        assert ids[text].tolist() == row
        assert positions[text].tolist() == list(range(len(row)))
        for place, token in enumerate(text):
            assert seen_by(visible, positions, token) == text[: place + 1]


@pytest.mark.parametrize("attend", [attend_in_blocks, attend_in_tiles])
@settings(max_examples=60, deadline=None)
@given(grouped)
def test_blocks_and_tiles_see_what_is_to_be_seen(attend, groups):
    """Zero queries weigh all that they see alike, and one-hot values name it."""
    layout = lay_out_packed(find_shared_rows(*flat(groups)))
    count = layout.input_ids.shape[1]
    every = torch.arange(count)
    visible = layout.sees(every.unsqueeze(1), every.unsqueeze(0)).double()
    zeros = torch.zeros(1, 1, count, count, dtype=torch.float64)
    names = torch.eye(count, dtype=torch.float64).view(1, 1, count, count)
    for attends, asked in zip(attend(layout), (every, layout.ends), strict=True):
        found = attends(torch.nn.Module(), zeros, zeros, names)
        expected = (visible / visible.sum(dim=1, keepdim=True))[asked]
        torch.testing.assert_close(found[0, asked, 0], expected)


@settings(max_examples=40, deadline=None)
@given(grouped, st.integers(0, 2**16), st.sampled_from([(4, 4), (4, 2), (4, 1)]))
def test_tiles_and_their_gradients_are_those_of_a_dense_mask(groups, seed, heads):
    layout = lay_out_packed(find_shared_rows(*flat(groups)))
    count = layout.input_ids.shape[1]
    every = torch.arange(count)
    visible = layout.sees(every.unsqueeze(1), every.unsqueeze(0))
    draw = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(1, n, count, 8, generator=draw, dtype=torch.float64, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    ]
    query, key, value = inputs
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    for attends, asked in zip(attend_in_tiles(layout), (every, layout.ends), strict=True):
        found = attends(torch.nn.Module(), query, key, value, scaling=0.3)
        weights = torch.randn(found[:, asked].shape, generator=draw, dtype=torch.float64)
        torch.testing.assert_close(found[:, asked], dense[:, asked])
        ours = torch.autograd.grad((weights * found[:, asked]).sum(), inputs)
        theirs = torch.autograd.grad((weights * dense[:, asked]).sum(), inputs, retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("attend", [attend_in_blocks, attend_in_tiles])
def test_a_packed_row_refuses_what_it_does_not_know(attend):
    attends, _ = attend(lay_out_packed(find_shared_rows([[1, 2], [1, 3]], [0, 0])))
    states = torch.zeros(1, 1, 3, 4)
    for wrong in ({"softcap": 30.0}, {"s_aux": states}, {"dropout": 0.1}):
        with pytest.raises(ModelError, match=next(iter(wrong))):
            attend_packed(torch.nn.Module(), states, states, states, None, attends=attends, **wrong)


@settings(max_examples=60, deadline=None)
@given(grouped)
def test_a_row_a_group_sees_the_same(groups):
    rows, group_of_row = flat(groups)
    layout = lay_out_grouped(find_shared_rows(rows, group_of_row), pad_token_id=0)
    width = layout.input_ids.shape[1]
    for row, group, end in zip(rows, group_of_row, layout.ends.tolist(), strict=True):
        assert end // width == group
        visible, positions = layout.mask[group, 0], layout.position_ids[group]
        text = seen_by(visible, positions, end % width)
        assert layout.input_ids[group, text].tolist() == row
        for place, token in enumerate(text):
            assert seen_by(visible, positions, token) == text[: place + 1]


def test_the_mask_of_flex_attention_is_the_same():
    layout = lay_out_packed(find_shared_rows([[1, 2, 3], [1, 2, 4, 5], [6, 7]], [0, 0, 1]))
    count = layout.input_ids.shape[1]
    found = create_mask(
        lambda _b, _h, query, key: layout.sees(query, key), 1, 1, count, count, device="cpu"
    )
    every = torch.arange(count)
    assert torch.equal(found[0, 0], layout.sees(every.unsqueeze(1), every.unsqueeze(0)))


def test_texts_of_unlike_lengths_do_not_pad_each_other():
    long, short = [1] * 200, [2] * 4
    rows = [[*long, 3], [*long, 4], *([[*short, token] for token in range(3, 9)])]
    layout = lay_out_packed(find_shared_rows(rows, [0, 0, *[1] * 6]))
    assert [tuple(block.queries.shape) for block in attend_in_blocks(layout)[0].blocks] == [
        (1, 4),
        (1, 200),
        (6, 1),
        (2, 1),
    ]
