# SPDX-License-Identifier: Apache-2.0
"""The nouns: messages, preference pairs, response groups, scorecards (frozen, JSON in and out).

A prompt is either plain text or a conversation: a tuple of messages that ends before the answer.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, NamedTuple, get_args

__all__ = [
    "RANDOM",
    "VERDICTS",
    "Estimate",
    "Histogram",
    "Message",
    "PreferencePair",
    "Prompt",
    "ResponseGroup",
    "Scorecard",
    "Verdict",
    "is_picked",
    "prompt_from_json",
    "prompt_text",
    "prompt_to_json",
]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]

Verdict = Literal["first", "second", "tie", "malformed", "unjudged"]
"""What a judge says of two responses: `malformed`, its answer was none of the first three;
`unjudged`, it was not asked or did not answer."""

VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

RANDOM: Final = "random"
"""The strategy that takes any pair, each as likely."""


def is_picked(chosen_by: str) -> bool:
    """Whether a strategy took a pair for what it is, hard say: it tells nothing of other pairs.

    Example:
        >>> [is_picked(name) for name in ("", "random", "d-optimal")]
        [False, False, True]
    """
    return chosen_by not in ("", RANDOM)


def prompt_to_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """Text stays text; a conversation becomes a list of `{"role", "content"}`."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def prompt_from_json(value: str | list[dict[str, str]]) -> Prompt:
    """The inverse of `prompt_to_json`."""
    if isinstance(value, str):
        return value
    return tuple(Message(turn["role"], turn["content"]) for turn in value)


def prompt_text(prompt: Prompt) -> str:
    """The prompt as text for people to read: a conversation shows `role: content` lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One labelled comparison of two responses to a prompt."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    """Offset inside the Bradley-Terry loss, in score units (logits); None means 0."""
    p: float | None = None
    """Probability in [0, 1] that `chosen` is the better one: a soft label; None means 1."""
    source: str = ""
    """What made this row from others, such as `pseudo-label` or `neutral`; empty: a label."""
    parent_id: str = ""
    """`data.derived.pair_id` or `group_id` of what it was made from, several joined by +."""
    chosen_by: str = ""
    """The strategy that chose it to be labelled, as in `LabelPair`; empty where nobody chose."""

    def to_json(self) -> dict[str, Any]:
        """A row with the field's usual column names; of the others those that say something."""
        row: dict[str, Any] = {
            "prompt": prompt_to_json(self.prompt),
            "chosen": self.chosen,
            "rejected": self.rejected,
        }
        if self.margin is not None:
            row["margin"] = self.margin
        if self.p is not None:
            row["p"] = self.p
        if self.parent_id:
            row |= {"source": self.source, "parent_id": self.parent_id}
        if self.chosen_by:
            row["chosen_by"] = self.chosen_by
        return row


@dataclass(frozen=True, slots=True)
class ResponseGroup:
    """The k responses of one policy to one prompt; nobody has labelled them."""

    prompt: Prompt
    responses: tuple[str, ...]
    finished: tuple[bool, ...] = ()
    """Whether each response ended by itself (EOS); empty means that all did."""
    source: str = ""
    """Name of the domain, policy or round that it comes from; groups of one name are one source."""

    def to_json(self) -> dict[str, Any]:
        """A row of a meta set: `prompt`, `responses`; `finished` and `source` where known."""
        row: dict[str, Any] = {
            "prompt": prompt_to_json(self.prompt),
            "responses": list(self.responses),
        }
        if self.finished:
            row["finished"] = list(self.finished)
        if self.source:
            row["source"] = self.source
        return row


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval and the count of independent units behind it."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges; `len(edges) == len(counts) + 1`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All metrics of one arm after one round; None where the run has no gold function or no pairs.

    `docs/metrics.md` explains each field; a test holds that table and these fields together.
    """

    arm: str
    seed: int
    round: int
    accuracy_original: Estimate | None
    """Share of held-out original pairs that the reward model orders as labelled."""
    accuracy_before: Estimate | None
    """Against gold, on pairs of responses of the policy that began the round."""
    accuracy_shifted: Estimate | None
    """Against gold, on pairs of responses of the policy that ended the round."""
    accuracy_shifted_length_balanced: float | None
    """Mean of the accuracies where the better response is longer and where it is shorter."""
    accuracy_first: Estimate | None
    """The first reward model (plain, original pairs only), against gold, on the same pairs."""
    gap_spread: float
    """Standard deviation of reward differences between responses to one prompt, in logits."""
    gap_spread_reference: float
    """The same of the same reward model on responses of the SFT policy, in logits."""
    gap_histogram: Histogram
    """Reward differences on the policy's own pairs, in units of `gap_spread_reference`."""
    rank_correlation_plain: float | None
    """Mean Spearman correlation, within prompts, with the first reward model."""
    kl_nats: Estimate
    """KL(policy || SFT) per response, estimated on the policy's own samples, in nats."""
    proxy_score: Estimate
    """Mean reward-model score minus that of SFT's responses, in units of its spread on those."""
    gold_score: Estimate | None
    """Mean gold score of the policy's responses, in the gold function's own units."""
    win_fraction: Estimate | None
    """Share of prompts whose response has more gold than SFT's."""
    tie_fraction: Estimate | None
    lose_fraction: Estimate | None
    response_tokens: float
    """Mean length of a response, in tokens."""
    finished_fraction: float
    """Share of responses that ended by themselves."""
    seconds: float
    """Wall time of the round's stages: sampling, reward model, optimisation, evaluation."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Scorecard":
        """The inverse of `to_json`; unknown keys are ignored so that newer files open."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = row.get(field.name)
            if field.name == "gap_histogram" and value is not None:
                value = Histogram(tuple(value["edges"]), tuple(value["counts"]))
            elif isinstance(value, Mapping):
                value = Estimate(**value)
            values[field.name] = value
        return cls(**values)
