# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for the nouns: prompts, pairs, groups."""

from hypothesis import strategies as st

from metarm.schema import Message, PreferencePair, Prompt, ResponseGroup

__all__ = ["groups", "messages", "pairs", "prompts", "texts"]


def texts() -> st.SearchStrategy[str]:
    """Text that is not blank: any Unicode that a file can hold, line ends and quotes among it."""
    plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
    awkward = st.sampled_from(['"', "\\n", "\r\n", "\u2028", "\ufeff", "\x1c", "{", " a ", "\n\nb"])
    return st.one_of(plain, awkward).filter(lambda text: text.strip() != "")


def messages() -> st.SearchStrategy[Message]:
    """One turn of a conversation."""
    return st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts())


def prompts() -> st.SearchStrategy[Prompt]:
    """Text, a transcript, or a conversation."""
    transcripts = texts().map(lambda text: f"\n\nHuman: {text}\n\nAssistant:")
    conversations = st.lists(messages(), min_size=1, max_size=3).map(tuple)
    return st.one_of(texts(), transcripts, conversations)


def pairs() -> st.SearchStrategy[PreferencePair]:
    """A pair whose sides differ."""
    margins = st.none() | st.floats(allow_nan=False, allow_infinity=False)
    labels = st.none() | st.floats(0.0, 1.0)
    return st.builds(PreferencePair, prompts(), texts(), texts(), margins, labels).filter(
        lambda pair: pair.chosen != pair.rejected
    )


@st.composite
def groups(draw: st.DrawFn) -> ResponseGroup:
    """A group of two to four responses, empty ones among them."""
    responses = draw(st.lists(texts() | st.just(""), min_size=2, max_size=4))
    flags = st.lists(st.booleans(), min_size=len(responses), max_size=len(responses))
    finished = draw(st.just([]) | flags)
    source = draw(st.just("") | texts())
    return ResponseGroup(draw(prompts()), tuple(responses), tuple(finished), source)
