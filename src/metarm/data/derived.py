# SPDX-License-Identifier: Apache-2.0
"""Rows made from other rows: who made them, from what, and that none is ever evaluated on.

A derived row names its `parent_id`. It may be trained on; an evaluation set holds none, nor the
parent or the prompt of one that is trained on.
"""

from collections.abc import Iterable, Sequence

from metarm.data.preferences import prompt_key, split_by_prompt
from metarm.errors import DataError
from metarm.schema import PreferencePair, ResponseGroup, prompt_text, prompt_to_json
from metarm.storage import fingerprint

__all__ = [
    "check_apart",
    "check_evaluation",
    "group_id",
    "join_ids",
    "pair_id",
    "split_labelled",
    "without_kin_of",
]


def pair_id(pair: PreferencePair) -> str:
    """The id of a pair as it stands: that of `labels.votes.LabelPair`, chosen first."""
    return fingerprint("pair", prompt_to_json(pair.prompt), pair.chosen, pair.rejected)


def group_id(group: ResponseGroup) -> str:
    """The id of a group of responses."""
    return fingerprint("group", prompt_to_json(group.prompt), list(group.responses))


def join_ids(*ids: str) -> str:
    """The `parent_id` of a row with several parents, each once.

    Example:
        >>> join_ids("a", "b", "a")
        'a+b'
    """
    return "+".join(dict.fromkeys(ids))


def _ids(pair: PreferencePair) -> set[str]:
    """Those of a pair, whichever side is called chosen."""
    turned = PreferencePair(pair.prompt, pair.rejected, pair.chosen)
    return {pair_id(pair), pair_id(turned)}


def check_evaluation(pairs: Iterable[PreferencePair], what: str) -> None:
    """Refuse an evaluation set with a derived row in it.

    Args:
        pairs: What is to be evaluated on.
        what: Its name in the message.

    Raises:
        DataError: At the first derived row.
    """
    for place, pair in enumerate(pairs, start=1):
        if pair.parent_id:
            raise DataError(
                f"{what}: expected labelled pairs to evaluate on, got a derived one in place "
                f"{place} (source {pair.source!r}, parent {pair.parent_id}): nobody has judged it. "
                "Evaluate on the file that it was made from, or on pairs of their own"
            )


def check_apart(
    training: Iterable[PreferencePair], evaluation: Sequence[PreferencePair], what: str
) -> None:
    """Refuse training rows that were made from what is evaluated on.

    Args:
        training: Rows that are trained on, derived ones among them.
        evaluation: What is evaluated on.
        what: Its name in the message.

    Raises:
        DataError: When a derived row is evaluated on, or one that is trained on has its own pair,
            a parent or its prompt in `evaluation`.
    """
    check_evaluation(evaluation, what)
    derived = [pair for pair in training if pair.parent_id]
    kin = _Kin(evaluation if derived else ())
    for pair in derived:
        if reason := kin.reason(pair):
            raise DataError(
                f"{what}: expected nothing that a derived training row was made from, got "
                f"{reason} of the row {prompt_text(pair.prompt)[:60]!r}... (source "
                f"{pair.source!r}, parent {pair.parent_id}): leave the row out of training, or its "
                "parent out of the evaluation"
            )


def without_kin_of(
    pairs: Iterable[PreferencePair], held_out: Sequence[PreferencePair]
) -> list[PreferencePair]:
    """The rows but for derived ones whose pair, parent or prompt is held out."""
    given = list(pairs)
    kin = _Kin(held_out if any(pair.parent_id for pair in given) else ())
    return [pair for pair in given if not (pair.parent_id and kin.reason(pair))]


def split_labelled(
    pairs: Sequence[PreferencePair], test_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and test pairs as `split_by_prompt` gives them, where some rows are derived.

    Only labelled pairs are held out; derived rows train, but for the kin of held-out ones.

    Raises:
        ConfigError: When `test_fraction` is out of range.
        EmptySetError: When there are labelled pairs of fewer than two prompts.
    """
    labelled = [pair for pair in pairs if not pair.parent_id]
    train, test = split_by_prompt(labelled, test_fraction, seed)
    derived = [pair for pair in pairs if pair.parent_id]
    return train + without_kin_of(derived, test), test


class _Kin:
    """Ids and prompts of held-out pairs."""

    def __init__(self, pairs: Iterable[PreferencePair]) -> None:
        self.ids: set[str] = set()
        self.prompts = set()
        for pair in pairs:
            self.ids |= _ids(pair)
            self.prompts.add(prompt_key(pair.prompt))

    def reason(self, pair: PreferencePair) -> str:
        """What of a derived row is held out; empty where nothing is."""
        if _ids(pair) & self.ids:
            return "the pair itself"
        if self.ids.intersection(pair.parent_id.split("+")):
            return "a parent"
        return "the prompt" if prompt_key(pair.prompt) in self.prompts else ""
