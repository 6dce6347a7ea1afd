# SPDX-License-Identifier: Apache-2.0
"""Probes: fixed prompts with responses of the policy that a watch compares with, kept in a folder.

The same prompts at every look: what tells prompts apart cancels, and a quarter of the responses
sees what unpaired ones would.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from metarm.data.encoding import Encoder
from metarm.data.meta_sets import load_groups, save_groups
from metarm.errors import DataError, EmptySetError, FormatError, ModelError
from metarm.metrics import kl_estimate
from metarm.models.loading import load_causal_lm
from metarm.policy.sampling import (
    Conversation,
    Sample,
    SampledPolicy,
    generate,
    join_rows,
    response_log_probs,
)
from metarm.protocols import ProgressReporter, StageProgress
from metarm.schema import Estimate, Prompt, ResponseGroup
from metarm.storage import Stage, build_stage, content_digest, fingerprint, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "FreshResponses",
    "ProbePlan",
    "Probes",
    "build_probes",
    "draw_fresh",
    "load_probes",
    "load_reference_model",
]

BATCH_SIZE: Final = 128


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How many probe prompts and responses there are, and how they are drawn."""

    num_prompts: int = 128
    """Prompts; half as many see a loss of spread half again as large."""
    num_reference: int = 16
    """Responses of the reference policy to each."""
    num_fresh: int = 8
    """Responses of the watched policy to each at every look."""
    temperature: float = 1.0
    """Of the sampling: the one that the policy is optimised under."""
    max_completion_length: int = 64
    """Longest response, in tokens."""
    seed: int = 0
    """Draws every response, each look from a stream of its own."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or min(self.num_reference, self.num_fresh) < 2:
            raise DataError(
                "a probe needs a prompt and two responses to it on each side, got "
                f"num_prompts={self.num_prompts}, num_reference={self.num_reference}, "
                f"num_fresh={self.num_fresh}"
            )


@dataclass(frozen=True, slots=True)
class Probes:
    """Probe prompts and the reference policy's responses to them."""

    stage: Stage
    plan: ProbePlan
    reference_policy: str
    """Folder or hub id: KL is to this model."""
    groups: tuple[ResponseGroup, ...]

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, in order."""
        return tuple(group.prompt for group in self.groups)


@dataclass(frozen=True, slots=True)
class FreshResponses:
    """A policy's responses to the probe prompts, and how far it is from the reference."""

    groups: tuple[ResponseGroup, ...]
    kl_nats: Estimate | None
    """Per response, in nats; None where there is no reference model to ask."""


def build_probes(
    folder: Path,
    reference_policy: str | Path,
    prompts: Sequence[Prompt],
    plan: ProbePlan,
    *,
    progress: ProgressReporter,
) -> Probes:
    """Sample the reference responses, or return the probes that stand in the folder.

    Args:
        folder: Made whole or not at all.
        reference_policy: The SFT policy, on whose responses the reward model is known to be good.
        prompts: The first `plan.num_prompts` are used.
        plan: Counts and sampling.
        progress: Gets one bar.

    Raises:
        EmptySetError: When there are fewer prompts than planned.
        FingerprintError: When the folder was made by another plan, policy or other prompts.
        ModelError: When there is no language model.

    Writes:
        `folder` with `reference.jsonl` and `probes.json`.
    """
    if len(prompts) < plan.num_prompts:
        raise EmptySetError(
            f"expected {plan.num_prompts} probe prompts, got {len(prompts)}: give more, or lower "
            "num_prompts"
        )
    chosen = list(prompts[: plan.num_prompts])

    def build(place: Path) -> None:
        sampled = SampledPolicy(reference_policy)
        with progress.stage("sample the reference", plan.num_prompts * plan.num_reference) as bar:
            samples = _sample(
                sampled.model, sampled.encoder, chosen, plan, plan.num_reference, plan.seed, bar
            )
        save_groups(place / "reference.jsonl", _groups(chosen, samples))
        # From the root: the probes may be used from any folder.
        source = Path(reference_policy)
        name = str(source.resolve() if source.exists() else source)
        write_json(place / "probes.json", {"reference_policy": name, "plan": asdict(plan)})

    record = {
        "plan": asdict(plan),
        "policy": content_digest(reference_policy),
        "prompts": fingerprint([str(prompt) for prompt in chosen]),
    }
    build_stage(folder, record, [], build)
    return load_probes(folder)


def load_probes(folder: Path) -> Probes:
    """The probes in a folder that `build_probes` made.

    Raises:
        DataError: When there are none, or a file is broken.
    """
    if not (folder / "probes.json").exists():
        raise DataError(
            f"no probes at {folder}: make them from the SFT policy and prompts "
            "(metarm watch --reference SFT --prompts FILE)"
        )
    document, stage = read_json(folder / "probes.json"), read_json(folder / "stage.json")
    try:
        plan = ProbePlan(**document["plan"])
        policy = str(document["reference_policy"])
        own = Stage(folder, stage["fingerprint"], stage["seconds"], {})
    except (KeyError, TypeError) as error:
        raise FormatError(
            f"{folder}: expected probes that `metarm watch` made, got {error!r}. Remove the folder."
        ) from error
    groups = load_groups(folder / "reference.jsonl")
    return Probes(own, plan, policy, tuple(groups))


def draw_fresh(
    probes: Probes,
    policy: "str | Path | tuple[PreTrainedModel, Encoder]",
    *,
    look: int,
    reference: "PreTrainedModel | None",
    bar: StageProgress | None = None,
) -> FreshResponses:
    """A policy's responses to the probe prompts, the same for the same weights and look.

    Args:
        probes: Prompts, counts, and how to sample.
        policy: A policy's folder, or a model with its encoder while it is being trained: its mode
            and the global random state are put back.
        look: Which one; each draws from a stream of its own.
        reference: What KL is measured to; None: not measured.
        bar: Advances by one with each response.

    Raises:
        DataError: When a prompt leaves no room for a response.
        ModelError: When the policy's logits are not finite.
    """
    plan, prompts = probes.plan, list(probes.prompts)
    seed = int(fingerprint("watch", plan.seed, look), 16) % 2**32
    if not isinstance(policy, tuple):
        sampled = SampledPolicy(policy)
        if sampled.best_of_n is not None:
            return _best_of_n(sampled, prompts, plan, seed, bar)
        policy = sampled.model, sampled.encoder
    model, encoder = policy
    was_training = model.training
    model.eval()
    try:
        samples = _sample(model, encoder, prompts, plan, plan.num_fresh, seed, bar)
        kl = None
        if reference is not None:
            kl = _measure_kl(model, reference, encoder, prompts, samples, plan.temperature)
    finally:
        model.train(was_training)
    return FreshResponses(_groups(prompts, samples), kl)


def load_reference_model(probes: Probes) -> "PreTrainedModel":
    """The policy that KL is measured to, without gradients.

    Raises:
        ModelError: When it is not where it was.
    """
    try:
        model = load_causal_lm(probes.reference_policy)
    except ModelError as error:
        raise ModelError(f"the probes' reference policy cannot be loaded: {error}") from error
    return model.requires_grad_(False)


def _sample(
    model: "PreTrainedModel",
    encoder: Encoder,
    prompts: Sequence[Prompt],
    plan: ProbePlan,
    count: int,
    seed: int,
    bar: StageProgress | None,
) -> list[list[Sample]]:
    repeated = [prompt for prompt in prompts for _ in range(count)]
    order = sorted(range(len(repeated)), key=lambda i: len(str(repeated[i])))
    samples: dict[int, Sample] = {}
    for number, start in enumerate(range(0, len(order), BATCH_SIZE)):
        places = order[start : start + BATCH_SIZE]
        drawn = generate(
            model,
            encoder,
            [repeated[place] for place in places],
            temperature=plan.temperature,
            top_p=1.0,
            max_completion_length=plan.max_completion_length,
            seed=seed * 1_000_003 + number,
        )
        samples.update(zip(places, drawn, strict=True))
        if bar is not None:
            bar.advance(len(places))
    flat = [samples[place] for place in range(len(repeated))]
    return [flat[start : start + count] for start in range(0, len(flat), count)]


def _best_of_n(
    sampled: SampledPolicy,
    prompts: list[Prompt],
    plan: ProbePlan,
    seed: int,
    bar: StageProgress | None,
) -> FreshResponses:
    samples = sampled.sample(
        prompts,
        num_generations=plan.num_fresh,
        temperature=plan.temperature,
        top_p=1.0,
        max_completion_length=plan.max_completion_length,
        batch_size=BATCH_SIZE,
        seed=seed,
        bar=bar or _NoBar(),
    )
    analytic = sampled.kl_of_best_of_n()
    assert analytic is not None
    kl = Estimate(analytic, analytic, analytic, len(prompts))
    return FreshResponses(_groups(prompts, samples), kl)


class _NoBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        """Nothing is shown."""


def _groups(
    prompts: Sequence[Prompt], samples: Sequence[Sequence[Sample]]
) -> tuple[ResponseGroup, ...]:
    return tuple(
        ResponseGroup(prompt, tuple(s.response for s in own), tuple(s.finished for s in own))
        for prompt, own in zip(prompts, samples, strict=True)
    )


@torch.no_grad()
def _measure_kl(
    model: "PreTrainedModel",
    reference: "PreTrainedModel",
    encoder: Encoder,
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[Sample]],
    temperature: float,
) -> Estimate:
    rows = [
        (place, prompt, sample.response_ids)
        for place, (prompt, own) in enumerate(zip(prompts, samples, strict=True))
        for sample in own
    ]
    ratios: list[float] = []
    for start in range(0, len(rows), BATCH_SIZE):
        part = rows[start : start + BATCH_SIZE]
        joined = join_rows(encoder, [p for _, p, _ in part], [ids for _, _, ids in part])
        ours, theirs = (
            response_log_probs(own, Conversation(*(t.to(own.device) for t in joined)), temperature)
            for own in (model, reference)
        )
        ratios += (ours - theirs.to(ours.device)).sum(dim=1).tolist()
    return kl_estimate(ratios, [place for place, _, _ in rows])
