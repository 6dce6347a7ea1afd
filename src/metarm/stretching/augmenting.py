# SPDX-License-Identifier: Apache-2.0
"""Rows made from labelled ones so that length, format and topic alone predict nothing; KINDS.

Draws are by hash, prompt by prompt: the same pairs with others beside them give nearly the same
rows. No row repeats a pair that is there, in either order.
"""

import bisect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarm.data.derived import group_id, join_ids, pair_id
from metarm.data.preferences import pair_key, prompt_key
from metarm.errors import ConfigError, EmptySetError, nearest_names
from metarm.protocols import ScoreFunction
from metarm.schema import PreferencePair, Prompt, ResponseGroup, prompt_to_json
from metarm.storage import fingerprint

__all__ = ["KINDS", "Augmented", "Kind", "Material", "augment", "check_side_swap"]

CUT_SHARE: Final = 0.5
FEWEST_WORDS: Final = 8
SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+")
MARKS: Final = re.compile(r"\*\*|__|^#+ +|^[-*] +|^\d+[.)] +", re.MULTILINE)


class _Written(NamedTuple):
    """A response, and the id of what it was found in."""

    response: str
    parent: str


@dataclass(frozen=True)
class Material:
    """What rows are made from."""

    pairs: tuple[PreferencePair, ...] = ()
    """Labelled ones; derived rows among them are no parents."""
    groups: tuple[ResponseGroup, ...] = ()
    """Unlabelled responses of the policy."""
    stronger: tuple[ResponseGroup, ...] = ()
    """Responses of a policy that is known to be better than `weaker`'s."""
    weaker: tuple[ResponseGroup, ...] = ()
    seed: int = 0

    @cached_property
    def by_prompt(self) -> dict[Prompt, list[PreferencePair]]:
        """The labelled pairs of each prompt."""
        found: dict[Prompt, list[PreferencePair]] = {}
        for pair in self.pairs:
            if not pair.parent_id:
                found.setdefault(pair.prompt, []).append(pair)
        return found

    @cached_property
    def labelled_ring(self) -> "_Ring":
        """Responses of labelled pairs by their prompts."""
        written: dict[Prompt, list[_Written]] = {}
        for prompt, pairs in self.by_prompt.items():
            written[prompt] = [
                _Written(side, pair_id(p)) for p in pairs for side in (p.chosen, p.rejected)
            ]
        return _Ring(written, self.seed)

    @cached_property
    def policy_ring(self) -> "_Ring":
        """Responses of groups by their prompts."""
        return _Ring(_by_prompt(self.groups), self.seed)

    def in_drawn_order(self, name: str, texts: Iterable[_Written]) -> list[_Written]:
        """Each text once, in an order drawn by hash."""
        unique = {text.response: text for text in texts}
        return sorted(unique.values(), key=lambda t: fingerprint(self.seed, name, t.response))


def _by_prompt(groups: Iterable[ResponseGroup]) -> dict[Prompt, list[_Written]]:
    """The responses to each prompt, which may stand in several groups."""
    written: defaultdict[Prompt, list[_Written]] = defaultdict(list)
    for group in groups:
        parent = group_id(group)
        written[group.prompt] += [_Written(text, parent) for text in group.responses]
    return dict(written)


class _Ring:
    """Prompts on a ring by their hashes.

    Those that follow a point are the same with or without the others: neighbouring training sets
    share their draws.
    """

    def __init__(self, written: Mapping[Prompt, Sequence[_Written]], seed: int) -> None:
        self.written = written
        self.seed = seed
        places = [(fingerprint(seed, "ring", prompt_to_json(p)), p) for p in written]
        places.sort(key=lambda place: place[0])
        self._marks = [mark for mark, _ in places]
        self._prompts = [prompt for _, prompt in places]

    def off_topic(self, prompt: Prompt, count: int) -> list[_Written]:
        """Responses to `count` other prompts, or to as many as there are."""
        own = prompt_key(prompt)
        found: dict[Prompt, _Written] = {}
        texts: set[str] = set()
        for number in range(count):
            mark = fingerprint(self.seed, "off-topic", prompt_to_json(prompt), number)
            start = bisect.bisect(self._marks, mark)
            for step in range(len(self._prompts)):
                other = self._prompts[(start + step) % len(self._prompts)]
                if other in found or prompt_key(other) == own:
                    continue
                drawn = min(self.written[other], key=lambda text: fingerprint(mark, text.response))
                if drawn.response not in texts:
                    found[other] = drawn
                    texts.add(drawn.response)
                    break
        return list(found.values())


Make = Callable[[Material, int], Iterator[PreferencePair]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of row: `make` gives at most so many for each prompt."""

    make: Make
    needs: tuple[str, ...]
    """Fields of `Material` that must not be empty."""
    text: str
    """What its rows teach."""
    why_none: str = "there are too few prompts, or all of its rows are there already"
    """What it means where it gives no row."""


class Augmented(NamedTuple):
    """Rows, and how many of each kind."""

    rows: list[PreferencePair]
    counts: dict[str, int]


def augment(material: Material, kinds: Sequence[str], *, per_prompt: int = 4) -> Augmented:
    """Rows of some kinds, in their order, each once and none of them a pair that is there.

    Args:
        material: What they are made from.
        kinds: Names of `KINDS`.
        per_prompt: The most rows of a kind for one prompt.

    Raises:
        ConfigError: When a kind is unknown, or what it needs is not given.
        EmptySetError: When a kind gives no row at all.
    """
    for name in kinds:
        if name not in KINDS:
            why = _NO_KINDS.get(name) or nearest_names(name, [*KINDS, "paraphrase"])
            raise ConfigError(f"unknown kind of row {name!r}: {why}")
        if missing := [field for field in KINDS[name].needs if not getattr(material, field)]:
            flags = " and ".join(f"--{field}" for field in missing)
            raise ConfigError(f"{name} is made from {' and '.join(missing)}: give {flags}")
    seen = {pair_key(pair.prompt, pair.chosen, pair.rejected) for pair in material.pairs}
    rows = []
    counts: Counter[str] = Counter()
    for name in kinds:
        for row in KINDS[name].make(material, per_prompt):
            key = pair_key(row.prompt, row.chosen, row.rejected)
            if row.chosen == row.rejected or key in seen:
                continue
            seen.add(key)
            rows.append(row)
            counts[name] += 1
        if not counts[name]:
            raise EmptySetError(
                f"{name} gave no row: {KINDS[name].why_none}; leave it out, or give other files"
            )
    return Augmented(rows, dict(counts))


def check_side_swap(score: ScoreFunction, pairs: Sequence[PreferencePair]) -> float:
    """The largest |g(a, b) + g(b, a)| over the pairs, in the score's unit.

    For a score of one response at a time swapping the sides is no augmentation, since it changes
    nothing: this is 0, but for rounding. Where it is not, the score depends on its company.

    Raises:
        EmptySetError: When there are no pairs.
    """
    if not pairs:
        raise EmptySetError("expected pairs whose sides can be swapped, got none")

    def gaps(order: Sequence[PreferencePair], *, turned: bool) -> NDArray[np.float64]:
        sides = [(p.rejected, p.chosen) if turned else (p.chosen, p.rejected) for p in order]
        prompts = [pair.prompt for pair in order for _ in range(2)]
        flat = score(prompts, [text for both in sides for text in both])
        scores = np.array(flat, dtype=np.float64).reshape(-1, 2)
        found: NDArray[np.float64] = scores[:, 0] - scores[:, 1]
        return found

    # In another order of the pairs as well: a batch's company is another then.
    back = gaps(pairs[::-1], turned=True)[::-1]
    return float(np.abs(gaps(pairs, turned=False) + back).max())


def _cross_prompt(material: Material, most: int) -> Iterator[PreferencePair]:
    for prompt, pairs in material.by_prompt.items():
        better = [_Written(pair.chosen, pair_id(pair)) for pair in pairs]
        yield from _beats_off_topic("cross-prompt", material, prompt, better, most)


def _cross_prompt_policy(material: Material, most: int) -> Iterator[PreferencePair]:
    for prompt, own in material.policy_ring.written.items():
        yield from _beats_off_topic("cross-prompt-policy", material, prompt, own, most)


def _beats_off_topic(
    name: str, material: Material, prompt: Prompt, own: Sequence[_Written], most: int
) -> Iterator[PreferencePair]:
    """Responses to the prompt above those to other prompts, one above one."""
    is_policy = name.endswith("policy")
    ring = material.policy_ring if is_policy else material.labelled_ring
    written = material.in_drawn_order(name, own)
    off_topic = ring.off_topic(prompt, most)
    for number, other in enumerate(off_topic):
        mine = written[number % len(written)]
        parents = join_ids(mine.parent, other.parent)
        yield PreferencePair(prompt, mine.response, other.response, source=name, parent_id=parents)


def _neutral(material: Material, most: int) -> Iterator[PreferencePair]:
    """Two responses to other prompts: neither is better, however long or well laid out."""
    count = next(n for n in range(2, most + 2) if math.comb(n, 2) >= most)
    for prompt in material.by_prompt:
        off_topic = material.labelled_ring.off_topic(prompt, count)
        for one, other in islice(combinations(off_topic, 2), most):
            yield PreferencePair(
                prompt,
                one.response,
                other.response,
                p=0.5,
                source="neutral",
                parent_id=join_ids(one.parent, other.parent),
            )


def _format_only(material: Material, most: int) -> Iterator[PreferencePair]:
    """A response and the same words laid out otherwise: neither is better."""
    for prompt, pairs in material.by_prompt.items():
        for written in _better_ones("format-only", material, pairs, most):
            edited = _edit_format(written.response, material.seed)
            yield PreferencePair(
                prompt, written.response, edited, p=0.5, source="format-only",
                parent_id=written.parent,
            )  # fmt: skip


def _truncated(material: Material, most: int) -> Iterator[PreferencePair]:
    """A response a little above its own first half."""
    for prompt, pairs in material.by_prompt.items():
        for written in _better_ones("truncated", material, pairs, most):
            words = list(re.finditer(r"\S+", written.response))
            if len(words) < FEWEST_WORDS:
                continue
            end = words[round(CUT_SHARE * len(words)) - 1].end()
            yield PreferencePair(
                prompt, written.response, written.response[:end], p=0.75, source="truncated",
                parent_id=written.parent,
            )  # fmt: skip


def _better_ones(
    name: str, material: Material, pairs: Sequence[PreferencePair], most: int
) -> list[_Written]:
    """Some of the chosen responses."""
    texts = [_Written(pair.chosen, pair_id(pair)) for pair in pairs]
    return material.in_drawn_order(name, texts)[:most]


def _edit_format(response: str, seed: int) -> str:
    """The first edit, in an order drawn by hash, that changes something."""
    order = sorted(EDITS, key=lambda edit: fingerprint(seed, edit, response))
    edited = (EDITS[name](response) for name in order)
    return next((text for text in edited if text != response), response)


def _as_list(text: str) -> str:
    lines = [line for line in SENTENCE_END.split(text.strip()) if line]
    return "\n".join(f"- {line}" for line in lines)


def _with_bold_start(text: str) -> str:
    first, space, rest = text.strip().partition(" ")
    return f"**{first}**{space}{rest}"


EDITS: Final[Mapping[str, Callable[[str], str]]] = MappingProxyType(
    {
        "list": _as_list,
        "bold": _with_bold_start,
        "heading": lambda text: f"## Answer\n\n{text.strip()}",
        "paragraphs": lambda text: "\n\n".join(SENTENCE_END.split(text.strip())),
        "unmarked": lambda text: MARKS.sub("", text),
    }
)
"""Ways of laying out the same words otherwise."""


def _stronger_weaker(material: Material, most: int) -> Iterator[PreferencePair]:
    """A response of the stronger policy above one of the weaker to the same prompt."""
    weaker: defaultdict[Any, list[_Written]] = defaultdict(list)
    for prompt, own in _by_prompt(material.weaker).items():
        weaker[prompt_key(prompt)] += own
    for prompt, stronger in _by_prompt(material.stronger).items():
        sides = zip(stronger, weaker.get(prompt_key(prompt), ()), strict=False)
        for good, bad in islice(sides, most):
            yield PreferencePair(
                prompt,
                good.response,
                bad.response,
                p=0.8,
                source="stronger-weaker",
                parent_id=join_ids(good.parent, bad.parent),
            )


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "cross-prompt": Kind(
            _cross_prompt,
            ("pairs",),
            "the better response to a prompt is above a response to another prompt",
        ),
        "cross-prompt-policy": Kind(
            _cross_prompt_policy,
            ("groups",),
            "the same of the policy's own responses, of which nobody has labelled any",
        ),
        "neutral": Kind(
            _neutral, ("pairs",), "of two responses to other prompts neither is better (p 0.5)"
        ),
        "format-only": Kind(
            _format_only,
            ("pairs",),
            "the same words laid out otherwise are no better and no worse (p 0.5)",
            "the better responses cannot be laid out otherwise",
        ),
        "truncated": Kind(
            _truncated,
            ("pairs",),
            "a response is a little above its own first half (p 0.75)",
            f"no better response has {FEWEST_WORDS} words",
        ),
        "stronger-weaker": Kind(
            _stronger_weaker,
            ("stronger", "weaker"),
            "a response of the stronger policy is above one of the weaker (p 0.8)",
            "no prompt has responses of both policies that differ",
        ),
    }
)
"""Name -> kind of row; `paraphrase`, which asks an endpoint, is in `stretching.paraphrase`."""

_NO_KINDS: Final = {
    "side-swap": "for a score of one response at a time it changes nothing: it is a check, "
    "--check-swap MODEL",
}
