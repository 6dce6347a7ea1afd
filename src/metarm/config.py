# SPDX-License-Identifier: Apache-2.0
"""Every knob of a run, one description per field; YAML in and out; unknown keys rejected; no torch.

Names follow Hugging Face and TRL where they have one. `None` means "decided by what it says".
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from metarm.config_base import (
    STRICT,
    Count,
    Fraction,
    NonNegative,
    PathText,
    Positive,
    Seed,
)
from metarm.config_labels import AnswerSettings, label_problem, needs_gold
from metarm.config_optimize import OptimizeSettings
from metarm.errors import nearest_names
from metarm.meta_strength import META_NUMBERS, resolve_strength

__all__ = [
    "ARM_PRESETS",
    "ArmSettings",
    "DataSettings",
    "EvaluationSettings",
    "RewardSettings",
    "RunSettings",
    "SamplingSettings",
    "SftSettings",
    "WorldSettings",
]


class _Settings(BaseModel):
    model_config = STRICT


class WorldSettings(_Settings):
    """The embedded world: a small artificial language whose true reward is known.

    Its knobs decide whether the meta step can help there: see docs/world.md.
    """

    seed: int = 0
    """Seed of the language's true reward; the run's seed draws the data."""
    num_topics: Count = 6
    """Topics a prompt can ask about."""
    num_new_topics: int = Field(default=0, ge=0)
    """Topics of a new task, beside those: no pair is about them, prompts are; 0: no new task."""
    num_quiet_words: Count = 24
    """Adjectives and adverbs, each with a small true weight of its own."""
    quiet_weight: NonNegative = 0.35
    """Standard deviation of the quiet words' true weights, in units of reward (loud ones: 1)."""
    quiet_alignment: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Correlation between how often SFT uses a quiet word and its true weight."""
    num_pairs: Count = 2000
    """Labelled original pairs for training."""
    num_test_pairs: Count = 1000
    """Labelled original pairs held out."""
    label_noise: NonNegative = 0.5
    """Temperature of the labels: P(chosen) = sigmoid(reward difference / label_noise); 0: exact."""
    num_prompts: Count = 512
    """Prompts for sampling and optimisation."""
    num_sft_texts: Count = 12000
    """Demonstrations the SFT policy is trained on."""


class DataSettings(_Settings):
    """Where prompts and preferences come from; left empty where the run has a `world`."""

    preferences: str | None = None
    """Preference file, or the id of a hub data set: `owner/name` or `owner/name:split`."""
    preferences_test: str | None = None
    """Held-out preference file; None: `test_fraction` of `preferences`, split by prompt."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of prompts held out where there is no test file."""
    data_format: str | None = None
    """Name of the file format; None: detected."""
    prompts: str | None = None
    """File of prompts (one JSON object with `prompt` a line, or plain lines); None: the pairs'."""
    num_gold_pairs: Count = 1000
    """Pairs of SFT responses that `evaluation.gold` labels where there is no preference file."""
    new_task_prompts: str | None = None
    """File of prompts of a new task, which the policy is for; nobody labels it. None: none."""
    sft_texts: str | None = None
    """File of demonstrations for the `sft` stage: `prompt` and `response` (or `completion`)."""


class SftSettings(_Settings):
    """Supervised fine-tuning of the policy on texts. Paper: lr 2e-5, 2 epochs, batch 32."""

    num_train_epochs: Positive = 2.0
    """Passes over the demonstrations."""
    learning_rate: Positive = 2e-5
    """Peak learning rate of AdamW."""
    per_device_train_batch_size: Count = 32
    """Demonstrations per step."""
    max_length: Count = 512
    """Longest prompt plus response, in tokens; longer ones are counted and left out."""
    warmup_fraction: Fraction = 0.1
    """Share of steps with a rising learning rate."""


class RewardSettings(_Settings):
    """Reward-model training. Paper: lr 5e-6, batch 16, 1 epoch, k = 5."""

    learning_rate: Positive | None = None
    """Peak of AdamW; None: the paper's 5e-6 at 7e9 trainable weights, as 1 / sqrt(weights)."""
    num_train_epochs: Positive = 1.0
    """Passes over the pairs."""
    max_steps: int = -1
    """Optimiser steps; -1: by epochs."""
    per_device_train_batch_size: Count = 16
    """Pairs per forward pass, of each process."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimiser step."""
    max_length: Count = 1024
    """Longest prompt plus response, in tokens; longer pairs are counted and left out."""
    center_rewards_coefficient: NonNegative | None = None
    """Weight of the squared mean score, TRL's reward centring."""
    batch_sum_coefficient: NonNegative = 0.0
    """Weight of a batch's squared sum of scores over its size (BSR)."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    start_decay: NonNegative = 0.0
    """The same towards the weights that training begins from (L2-SP), in place of zero."""
    score_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the last state's places that the score head does not see in a step."""
    text_loss_coefficient: NonNegative = 0.0
    """Weight of the language-model loss on the chosen texts (GRM: 0.01); from a language model."""
    train_head_only: bool = False
    """Train the score head alone, on the model's states as they are."""
    use_peft: bool = False
    """Train a LoRA adapter and the score head instead of all weights."""
    lora_r: Count = 16
    """Rank of the adapter."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, a third more time."""
    bf16: bool = False
    """Autocast to bfloat16; parameters stay fp32."""
    share_prompts: bool = True
    """Compute what the sides of a pair, or the responses of a group, begin with once: exact."""
    meta_mode: Literal["off", "ascent", "descent", "joint"] = "joint"
    """`ascent`: Algorithm 1 as printed; `descent`: its sign turned; `joint`: L - weight * J."""
    meta_strength: Literal["auto", "fixed"] | None = None
    """`auto`: set by the data and guarded; `fixed`: by the numbers below; None: if one is given."""
    meta_guard: bool = True
    """`auto`: train the plain reward model too, and stay near its order of responses."""
    meta_learning_rate: NonNegative | None = None
    """Step of the look-ahead (eta), used where `meta_step_length` is None. fixed: 5e-6 (paper)."""
    meta_step_length: NonNegative | None = None
    """Fixed length |theta' - theta| of the look-ahead, instead of eta."""
    meta_reward_fraction: NonNegative | None = None
    """Look-ahead so long that rewards change by this share of their spread; instead of both."""
    meta_weight: NonNegative | None = None
    """Weight of J in `joint`. fixed: 0.1."""
    meta_batch_size: Count = 16
    """Groups per optimiser step. Paper: 16."""
    meta_group_size: Annotated[int, Field(ge=2)] = 5
    """Responses per group (k). Paper: 5."""
    meta_every: Count = 1
    """Optimiser steps between two meta steps."""
    meta_between: Literal["plain", "stored"] = "plain"
    """Steps between: plain, or along J's gradient of the last meta step (`stored`)."""
    meta_parameters: Literal["all", "head"] = "all"
    """Weights that J moves: all that are trained, or those of the score head."""
    meta_micro_batch_size: Count | None = None
    """Responses of the meta batch in memory at once; None: about those of a pass of pairs."""
    meta_order: Literal["first", "exact", "finite-difference"] = "first"
    """Whether the gradient flows through the look-ahead (`exact`: small models)."""
    meta_source_floor: Fraction = 0.25
    """Least share of each source of groups in a meta batch, in even shares; 1: all even."""

    @model_validator(mode="after")
    def _one_strength(self) -> "RewardSettings":
        resolve_strength(self.meta_strength, {name: getattr(self, name) for name in META_NUMBERS})
        if self.train_head_only and (self.use_peft or self.text_loss_coefficient):
            raise ValueError(
                "train_head_only leaves the model's states as they are: leave out use_peft and "
                "text_loss_coefficient, which are about them"
            )
        return self


class SamplingSettings(_Settings):
    """How responses are drawn for the meta set and for evaluation."""

    num_generations: Annotated[int, Field(ge=2)] = 5
    """Responses per prompt (k). Paper: 5."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: smallest set of tokens with this probability."""
    max_completion_length: Count = 64
    """Longest response, in tokens."""
    num_prompts: Count | None = None
    """Prompts per round; None: all."""
    batch_size: Count = 128
    """Responses generated at once."""


class EvaluationSettings(_Settings):
    """What is measured after each round."""

    gold: str | None = None
    """True reward as `module:function` (prompts, responses -> floats); a world brings its own."""
    num_prompts: Count = 256
    """Prompts whose responses are judged."""
    num_generations: Annotated[int, Field(ge=2)] = 4
    """Responses per prompt."""
    tie_margin: NonNegative = 1e-6
    """Gold differences up to this count as ties."""


class ArmSettings(_Settings):
    """One way to run the rounds; several arms are compared side by side."""

    optimize: bool = True
    """False: the SFT policy is only evaluated."""
    reward: Literal["frozen", "retrain"] = "retrain"
    """Whether the reward model is trained again each round."""
    meta_mode: Literal["off", "ascent", "descent", "joint"] | None = None
    """Overrides `reward.meta_mode` in this arm; None: as there."""
    num_gold_labels: int = Field(default=0, ge=0)
    """Short for that many `labels_per_round` by gold, at random, on the policy's own pairs."""
    labels_per_round: int = Field(default=0, ge=0)
    """Pairs that are labelled each round: docs/labels-in-the-loop.md."""
    labels_from: str = "gold"
    """`gold`, `people`, `model`, `module:function`, or the address of a served reward model."""
    labels_choice: str = "random"
    """How pairs are chosen: `random`, `mix`, or another strategy of `metarm select`."""
    labels_on: Literal["policy", "original"] = "policy"
    """Pairs of the policy that begins the round, or of the SFT policy on the same prompts."""
    label_noise: NonNegative = 0.0
    """Gold errs: P(first) = sigmoid(gold difference / label_noise); 0: it never does."""
    label_repeat: Count = 8
    """How often each of those pairs stands in the training set."""
    relabel_original: bool = False
    """Gold labels the original pairs again, without noise: for an oracle."""
    members: Count = 1
    """Reward models trained each round; the policy is optimised against their mean score."""
    pessimism: NonNegative = 0.0
    """Standard deviations of the members' scores that are taken off their mean."""
    settings: dict[str, Any] = {}
    """What this arm has otherwise: keys of `reward`, `sampling`, `optimize`; `policy_start`."""
    meta_reservoir: int = Field(default=0, ge=0)
    """Groups of earlier rounds kept in the meta set, each round a source; 0: own round alone."""
    keep_champion: bool = False
    """Use a round's reward model only if it is not worse than the one before: docs/watching.md."""


ARM_SECTIONS = ("policy_start", "reward_start", "reward", "sampling", "optimize")
"""What an arm may have otherwise than its run: the rest is what arms are compared on."""

ARM_PRESETS: dict[str, ArmSettings] = {
    "sft": ArmSettings(optimize=False, reward="frozen", meta_mode="off"),
    "frozen": ArmSettings(reward="frozen", meta_mode="off"),
    "plain": ArmSettings(meta_mode="off"),
    "meta": ArmSettings(),
    "labels": ArmSettings(meta_mode="off", num_gold_labels=50),
    "dpo": ArmSettings(
        reward="frozen",
        meta_mode="off",
        settings={"policy_start": "sft", "optimize": {"algo": "dpo"}},
    ),
}
"""The five arms of the demo, and DPO on the original pairs: each is told of in docs/world.md."""


class RunSettings(_Settings):
    """A whole iterated run: one folder, every finished stage kept."""

    output_dir: PathText
    """The run's folder."""
    rounds: Count = 3
    """Rounds of sample, train, optimise, evaluate. Paper: 3 to 5."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Each seed repeats every arm; with several, intervals are over seeds."""
    workers: Count = 1
    """Seeds run at the same time, each in a process of its own."""
    threads: Count | None = None
    """Torch threads per process; None: OMP_NUM_THREADS, else cores divided by workers."""
    checkpoint_steps: Count | None = None
    """Steps between two checkpoints inside a stage; None: as often as costs 2 % of the time."""
    arms: Annotated[list[str], Field(min_length=1)] = ["sft", "frozen", "plain", "meta", "labels"]
    """Arms to run: names of presets or of `custom_arms`."""
    custom_arms: dict[str, ArmSettings] = {}
    """Arms of your own by name; a preset's name replaces the preset."""
    policy_start: Literal["sft", "previous"] = "previous"
    """Which policy each round's optimisation begins from; KL is to SFT in both."""
    reward_start: Literal["sft", "previous"] = "sft"
    """Which weights each round's reward model begins from."""
    model_name_or_path: str | None = None
    """Pretrained causal language model; None only with a `world`."""
    reward_model_name_or_path: str | None = None
    """Backbone of the reward model; None: the SFT policy (same lineage as the policy)."""
    world: WorldSettings | None = None
    """Build the embedded world and train its models from scratch."""
    data: DataSettings = DataSettings()
    sft: SftSettings | None = None
    """Train the policy on demonstrations first; None: the model is the SFT policy already."""
    reward: RewardSettings = RewardSettings()
    sampling: SamplingSettings = SamplingSettings()
    optimize: OptimizeSettings = OptimizeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    labels: AnswerSettings = AnswerSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> "RunSettings":
        known = {**ARM_PRESETS, **self.custom_arms}
        for name in self.arms:
            if name not in known:
                raise ValueError(f"unknown arm {name!r}: {nearest_names(name, known)}")
        for name, arm in self.custom_arms.items():
            if not name or name.startswith(".") or {"/", "\0"} & {*name}:
                raise ValueError(
                    f"custom_arms: {name!r} cannot name a folder: leave out / and a leading dot"
                )
            bought = {
                "labels": arm.num_gold_labels or arm.labels_per_round or arm.relabel_original,
                "members": arm.members > 1,
                "keep_champion": arm.keep_champion,
            }
            if arm.reward == "frozen" and any(bought.values()):
                what = next(key for key, value in bought.items() if value)
                raise ValueError(
                    f"custom_arms.{name}: {what} change nothing where the reward model is frozen: "
                    "set reward: retrain, or leave them out"
                )
            if arm.pessimism and arm.members == 1:
                raise ValueError(
                    f"custom_arms.{name}.pessimism: one reward model has no spread: set members"
                )
            if problem := label_problem(arm, self.labels):
                raise ValueError(f"custom_arms.{name}: {problem}")
            if arm.settings:
                self._with(name, arm.settings)
            mode = self.for_arm(name).reward.meta_mode
            if arm.meta_reservoir and (arm.reward == "frozen" or mode == "off"):
                raise ValueError(
                    f"custom_arms.{name}: a reservoir changes nothing without a meta step: set "
                    "meta_mode and reward: retrain, or leave meta_reservoir out"
                )
        if len(set(self.arms)) != len(self.arms) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("arms and seeds may each be named once only")
        if self.world is not None:
            brought = {
                "model_name_or_path": self.model_name_or_path,
                "evaluation.gold": self.evaluation.gold,
                "data": self.data != DataSettings(),
            }
            if extra := [name for name, value in brought.items() if value]:
                raise ValueError(
                    f"a `world` brings its own model, data and gold: leave out {', '.join(extra)}, "
                    "or the `world` section"
                )
        if self.world is None and not self.model_name_or_path:
            raise ValueError("without a `world`, set `model_name_or_path`")
        if self.data.sft_texts is not None and self.sft is None:
            raise ValueError(
                "`data.sft_texts` names demonstrations, but there is no `sft` section to train on "
                "them: add `sft: {}` for its defaults, or remove `data.sft_texts`"
            )
        can_label = self.evaluation.gold and self.data.prompts
        if self.world is None and not self.data.preferences and not can_label:
            raise ValueError(
                "set `data.preferences`, or both `evaluation.gold` and `data.prompts` to have "
                "pairs of the SFT policy's responses labelled by the gold function"
            )
        on_gold = [name for name in self.arms if needs_gold(known[name])]
        if on_gold and self.world is None and self.evaluation.gold is None:
            raise ValueError(
                f"arms {on_gold} need gold labels: set `evaluation.gold`, or leave them out: "
                f"`arms: [{', '.join(n for n in self.arms if n not in on_gold)}]`"
            )
        optimize = self.optimize
        if optimize.algo == "ppo" and optimize.num_iterations <= optimize.value_warmup_iterations:
            raise ValueError(
                f"optimize.num_iterations ({optimize.num_iterations}) must be above "
                f"optimize.value_warmup_iterations ({optimize.value_warmup_iterations}): in those "
                "only the value model learns, and the policy would stay as it is"
            )
        if self.reward.meta_group_size > self.sampling.num_generations:
            raise ValueError(
                f"reward.meta_group_size ({self.reward.meta_group_size}) is larger than "
                f"sampling.num_generations ({self.sampling.num_generations}): sample more or "
                "lower the group size"
            )
        return self

    def arm(self, name: str) -> ArmSettings:
        """The settings of the arm called `name`."""
        return {**ARM_PRESETS, **self.custom_arms}[name]

    def for_arm(self, name: str) -> "RunSettings":
        """These settings as the arm called `name` has them."""
        arm = self.arm(name)
        own = self._with(name, arm.settings) if arm.settings else self
        update = {"meta_mode": arm.meta_mode} if arm.meta_mode else {}
        return own.model_copy(update={"reward": own.reward.model_copy(update=update)})

    def _with(self, name: str, changes: dict[str, Any]) -> "RunSettings":
        """These settings with an arm's changes in place, checked like any other."""
        values = self.model_dump(exclude={"arms", "custom_arms"})
        for key, change in changes.items():
            if key not in ARM_SECTIONS:
                raise ValueError(
                    f"custom_arms.{name}.settings: {key!r} is the same in every arm: one of "
                    f"{', '.join(ARM_SECTIONS)} was expected"
                )
            is_section = isinstance(change, dict) and isinstance(values[key], dict)
            values[key] = {**values[key], **change} if is_section else change
        try:
            return RunSettings.model_validate({**values, "arms": ["sft"]})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, (f"custom_arms.{name}.settings", *first["loc"])))
            raise ValueError(f"{place}: {first['msg']}, got {first['input']!r}") from error
