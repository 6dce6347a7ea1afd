# SPDX-License-Identifier: Apache-2.0
"""Texts in pieces: nothing is lost, no character is torn, each token is in one piece."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metarm.data.encoding import Encoder
from metarm.explaining.pieces import merge_pieces, read_pieces, split_text
from metarm.schema import Message
from tiny_models import save_tokenizer

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
HOSTILE = [
    FAMILY,
    "e\u0301\u0301a",
    "\U0001f1e9\U0001f1ea",
    "\U0001f44d\U0001f3fd",
    "\u0915\u094d\u0937",
    "\u1112\u1161\u11ab",
    "a\u202eb</s>c",
    "\r\n\x00",
    "<script>",
    "\ufeff \u00a0",
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    ),
    max_size=6,
).map("".join)


def byte_encoder() -> Encoder:
    """One token a byte: every character beyond ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {"</s>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    wrapped.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return Encoder(wrapped)


ENCODER = byte_encoder()


@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, response=TEXTS)
def test_nothing_is_lost_and_no_character_is_torn(prompt: str, response: str) -> None:
    read = read_pieces(ENCODER, prompt, response)
    end = "" if response.endswith("</s>") else "</s>"
    assert "".join(piece.text for piece in read.pieces) == prompt + response + end
    tokens = [token for piece in read.pieces for token in piece.tokens]
    assert sorted(tokens) == list(range(len(read.ids)))
    for piece in read.pieces[1:]:
        if piece.text:
            assert not unicodedata.category(piece.text[0]).startswith("M")
            assert not piece.text.startswith("\u200d")
    assert all("\ufffd" not in p.text or "\ufffd" in prompt + response for p in read.pieces)


@settings(max_examples=200, deadline=None)
@given(
    text=TEXTS,
    cuts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12),
    start=st.integers(0, 40),
)
def test_any_spans_make_whole_pieces(text: str, cuts: list[tuple[int, int]], start: int) -> None:
    spans = [(min(c), max(c)) for c in (sorted(min(x, len(text)) for x in cut) for cut in cuts)]
    pieces = split_text(text, spans, [False] * len(spans), start)
    assert "".join(piece.text for piece in pieces) == text
    assert sorted(t for p in pieces for t in p.tokens) == list(range(len(spans)))
    place = 0
    for piece in pieces:
        for token in piece.tokens:
            low, high = spans[token]
            assert low == high or place <= low < high <= place + len(piece.text)
        place += len(piece.text)


@pytest.mark.parametrize("whole", HOSTILE[:6])
def test_what_is_seen_as_one_is_one_piece(whole: str) -> None:
    pieces = read_pieces(ENCODER, "a", whole).pieces
    shown = "e\u0301\u0301" if whole.startswith("e") else whole
    assert pieces[1].text == shown


def test_parts_are_told_apart() -> None:
    read = read_pieces(ENCODER, "ab", "c")
    assert [(p.text, p.part) for p in read.pieces] == [
        ("a", "prompt"),
        ("b", "prompt"),
        ("c", "response"),
        ("</s>", "frame"),
    ]


def test_a_token_across_the_border_is_the_responses() -> None:
    pieces = split_text("abcd", [(0, 1), (1, 3), (3, 4)], [False] * 3, 2)
    assert [piece.part for piece in pieces] == ["prompt", "response", "response"]


def test_a_conversation_is_split_where_the_answer_begins() -> None:
    prompt = (Message("user", "hi"),)
    read = read_pieces(ENCODER, prompt, "yes")
    told = {
        part: "".join(p.text for p in read.pieces if p.part == part)
        for part in ("prompt", "response")
    }
    assert told == {"prompt": "[user]hi|[assistant]", "response": "yes|"}


def test_words_with_leading_spaces_and_an_unseen_bos(tmp_path) -> None:
    from metarm.models.loading import load_encoder

    read = read_pieces(load_encoder(save_tokenizer(tmp_path)), "a b", " c zebra")
    assert [p.text for p in read.pieces] == ["", "a", " b", " c", " zebra", "</s>"]
    assert read.is_frame == (True, False, False, False, False, True)


CUTS = st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=4), max_size=8)


@settings(deadline=None)
@given(parts=CUTS, joints=st.lists(st.booleans(), min_size=40, max_size=40))
def test_merged_pieces_keep_text_and_sum(parts: list[str], joints: list[bool]) -> None:
    text = "".join(parts)
    other: list[str] = []
    for character, is_new in zip(text, joints, strict=False):
        if is_new or not other:
            other.append(character)
        else:
            other[-1] += character
    first = [(part, 1.0) for part in parts]
    second = [(part, -2.0) for part in other]
    merged = merge_pieces(first, second)
    assert "".join(part for part, _ in merged) == text
    assert sum(v for _, v in merged) == len(first) - 2.0 * len(second)
