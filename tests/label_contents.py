# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for labels: pairs, votes and whole contents, hostile texts among them."""

from hypothesis import strategies as st

from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.votes import ANNOTATOR_KINDS, CHOICES, LabelPair
from strategies import messages, texts

__all__ = ["HOSTILE", "contents", "hostile_texts", "label_pairs"]

HOSTILE = (
    "=1+1",
    "'quoted",
    "''=1",
    "\t@SUM(A1)",
    "\uff1d1",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "a\r\nb\rc\n",
    "\u202eabc\u2066",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\ufeff",
    "null",
    "",
    " ",
    "true",
    "1e5",
    "\U0001f600" * 3,
    "]]>",
    "a,b;c\td",
)


def hostile_texts() -> st.SearchStrategy[str]:
    """Anything that a store can hold, the empty text too."""
    return st.one_of(st.sampled_from(HOSTILE), texts())


def label_pairs(*, is_text: bool | None = None) -> st.SearchStrategy[LabelPair]:
    """Pairs whose prompts are texts, conversations or (None) either."""
    conversations = st.lists(messages(), min_size=1, max_size=3).map(tuple)
    prompts = {
        True: hostile_texts(),
        False: conversations,
        None: hostile_texts() | conversations,
    }[is_text]
    return st.builds(
        LabelPair, prompts, hostile_texts(), hostile_texts(), hostile_texts(), hostile_texts()
    )


def _names() -> st.SearchStrategy[str]:
    return st.one_of(
        st.sampled_from(["=cmd()", "'ann", "<b>bob</b>", "1", "true", "known answer"]),
        texts().filter(lambda text: text.isprintable() and len(text) < 80),
    )


@st.composite
def contents(draw: st.DrawFn, *, is_text: bool | None = None) -> LabelContent:
    """Some pairs and the votes of some annotators, at most one vote on each showing."""
    pairs = draw(
        st.lists(label_pairs(is_text=is_text), min_size=1, max_size=4, unique_by=lambda p: p.id)
    )
    kinds = draw(
        st.dictionaries(_names(), st.sampled_from(ANNOTATOR_KINDS), min_size=1, max_size=3)
    )
    gold = draw(
        st.dictionaries(
            st.sampled_from([pair.id for pair in pairs]),
            st.sampled_from(["first", "second", "tie"]),
            max_size=2,
        )
    )
    votes = []
    for pair in pairs:
        showings = st.tuples(st.sampled_from(sorted(kinds)), st.booleans())
        for name, is_repeat in draw(st.lists(showings, unique=True, max_size=4)):
            choice = draw(st.sampled_from(CHOICES))
            votes.append(
                VoteEvent(
                    f"key {len(votes)} {draw(st.integers(0, 99))}",
                    name,
                    choice,
                    pair=pair.id,
                    strength=draw(st.sampled_from([1, 2])),
                    is_turned=draw(st.none() | st.booleans()),
                    seconds=draw(st.none() | st.integers(0, 10**9).map(lambda ms: ms / 1000)),
                    note=draw(hostile_texts()),
                    flag=draw(st.booleans()),
                    is_repeat=is_repeat,
                    at=draw(st.floats(0, 2.5e11)),
                )
            )
    voters = sorted({vote.annotator for vote in votes})
    return LabelContent(tuple(pairs), gold, {name: kinds[name] for name in voters}, tuple(votes))
