# SPDX-License-Identifier: Apache-2.0
"""Every knob of a run, one description per field; YAML in and out; unknown keys rejected; no torch.

Names follow Hugging Face and TRL where they have one. `None` means "decided by what it says".
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from metarm.errors import nearest_names

__all__ = [
    "ARM_PRESETS",
    "ArmSettings",
    "CompareSettings",
    "DataSettings",
    "EvaluationSettings",
    "HeadSettings",
    "OptimizeSettings",
    "RewardSettings",
    "RunSettings",
    "SamplingSettings",
    "SftSettings",
    "SourceSettings",
    "WorldSettings",
]

PathText = Annotated[
    Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class WorldSettings(_Settings):
    """The embedded world: a small artificial language whose true reward is known.

    Its knobs decide whether the meta step can help there: see docs/world.md.
    """

    seed: int = 0
    """Seed of the language's true reward; the run's seed draws the data."""
    num_topics: Count = 6
    """Topics a prompt can ask about."""
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
    """Pairs per forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes per optimiser step."""
    max_length: Count = 1024
    """Longest prompt plus response, in tokens; longer pairs are counted and left out."""
    center_rewards_coefficient: NonNegative | None = None
    """Weight of the squared mean score, TRL's reward centring."""
    use_peft: bool = False
    """Train a LoRA adapter and the score head instead of all weights."""
    lora_r: Count = 16
    """Rank of the adapter."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, a third more time."""
    bf16: bool = False
    """Autocast to bfloat16; parameters stay fp32."""
    meta_mode: Literal["off", "ascent", "descent", "joint"] = "joint"
    """`ascent`: Algorithm 1 as printed; `descent`: its sign turned; `joint`: L - weight * J."""
    meta_learning_rate: NonNegative = 5e-6
    """Step of the look-ahead (eta), used where `meta_step_length` is None. Paper: 5e-6."""
    meta_step_length: NonNegative | None = None
    """Fixed length |theta' - theta| of the look-ahead, instead of eta."""
    meta_reward_fraction: NonNegative | None = None
    """Look-ahead so long that rewards change by this share of their spread; instead of both."""
    meta_weight: NonNegative = 0.1
    """Weight of J in `joint`."""
    meta_batch_size: Count = 16
    """Groups per optimiser step. Paper: 16."""
    meta_group_size: Annotated[int, Field(ge=2)] = 5
    """Responses per group (k). Paper: 5."""
    meta_every: Count = 1
    """Optimiser steps between two meta steps."""
    meta_order: Literal["first", "exact"] = "first"
    """Whether the gradient flows through the look-ahead (`exact`: small models)."""
    meta_source_floor: Fraction = 0.25
    """Least share of each source of groups in a meta batch, in even shares; 1: all even."""


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


class OptimizeSettings(_Settings):
    """How the policy is moved. PPO defaults follow the paper where it names them."""

    algo: str = "ppo"
    """`ppo`, `best_of_n`, or `module:function` with the PolicyOptimizer protocol."""
    learning_rate: Positive = 5e-7
    """Policy's learning rate, constant. Paper: 5e-7 (7B)."""
    value_learning_rate: Positive = 1.5e-6
    """Value model's learning rate. Paper: 1.5e-6 (7B)."""
    num_iterations: Count = 200
    """Batches of fresh responses."""
    batch_size: Count = 128
    """Responses per iteration."""
    num_mini_batches: Count = 2
    """Optimiser steps per pass over an iteration's responses."""
    micro_batch_size: Count | None = None
    """Responses per forward and backward pass: less memory, same result; None: a mini-batch's."""
    num_ppo_epochs: Count = 2
    """Passes over an iteration's responses."""
    kl_coef: NonNegative = 0.05
    """Weight of the per-token KL to the SFT policy. Paper: 0.05."""
    cliprange: Positive = 0.2
    """Clip of the probability ratio."""
    cliprange_value: Positive = 0.2
    """Clip of the change of a value."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss, where policy and value share an optimiser step."""
    gamma: Fraction = 1.0
    """Discount per token."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    reward_clip: Positive = 5.0
    """Clip of the normalised score, in standard deviations."""
    missing_eos_penalty: NonNegative = 1.0
    """Taken off the normalised score of a response that did not end by itself."""
    max_grad_norm: Positive = 1.0
    """Clip of the gradient's norm."""
    value_warmup_iterations: int = Field(default=2, ge=0)
    """Iterations in which only the value model learns."""
    temperature: Positive = 1.0
    """Sampling temperature of the rollouts; log-probabilities are taken under it too."""
    max_completion_length: Count = 64
    """Longest response, in tokens."""
    num_candidates: Annotated[int, Field(ge=2)] = 16
    """Best-of-n: responses drawn per prompt, of which the best is kept."""


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
    """Pairs of the policy's own responses labelled by the gold function each round."""
    label_repeat: Count = 8
    """How often each of those pairs stands in the training set."""
    meta_reservoir: int = Field(default=0, ge=0)
    """Groups of earlier rounds kept in the meta set, each round a source; 0: own round alone."""


ARM_PRESETS: dict[str, ArmSettings] = {
    "sft": ArmSettings(optimize=False, reward="frozen", meta_mode="off"),
    "frozen": ArmSettings(reward="frozen", meta_mode="off"),
    "plain": ArmSettings(meta_mode="off"),
    "meta": ArmSettings(),
    "labels": ArmSettings(meta_mode="off", num_gold_labels=50),
}
"""The five arms of the demo: what each shows is in docs/world.md."""


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
            if arm.num_gold_labels and arm.reward == "frozen":
                raise ValueError(
                    f"custom_arms.{name}: labels change nothing where the reward model is frozen: "
                    "set reward: retrain, or leave num_gold_labels out"
                )
            mode = arm.meta_mode or self.reward.meta_mode
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
        needs_gold = [n for n in self.arms if known[n].num_gold_labels]
        if needs_gold and self.world is None and self.evaluation.gold is None:
            raise ValueError(
                f"arms {needs_gold} need gold labels: set `evaluation.gold`, or leave them out: "
                f"`arms: [{', '.join(n for n in self.arms if n not in needs_gold)}]`"
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


class HeadSettings(_Settings):
    """A small reward head on frozen features, for `metarm compare`."""

    hidden: Annotated[list[Count], Field(min_length=1)] = [128, 64]
    """Widths of its hidden layers."""
    learning_rate: Positive = 1e-3
    """Learning rate of AdamW, constant."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW."""
    num_steps: Count = 300
    """Optimiser steps; the stopping rule takes the best of the measured ones."""
    measure_every: Count = 20
    """Steps between two measurements."""
    batch_size: Count = 64
    """Pairs per step."""
    num_groups: Count = 32
    """Groups per step."""


class SourceSettings(_Settings):
    """What a shift is read from."""

    data: str | None = None
    """File of a shift of the table; `hh`: the folder of its two files."""
    preferences: str | None = None
    """Shift `files`: labelled original pairs."""
    groups: str | None = None
    """Shift `files`: unlabelled groups of the shifted policy, as `metarm sample` writes them."""
    preferences_shifted: str | None = None
    """Shift `files`: labelled shifted pairs, where there are any."""


class CompareSettings(_Settings):
    """Methods x shifts x seeds, on paired splits."""

    output_dir: PathText
    """Folder of the comparison; finished cells are kept."""
    shifts: Annotated[list[str], Field(min_length=1)]
    """Names of shifts: `alpaca`, `gsm8k`, `hh`, `files` (your own)."""
    sources: dict[str, SourceSettings] = {}
    """What each shift is read from, by its name."""
    methods: Annotated[list[str], Field(min_length=1)] = [
        "plain",
        "ascent",
        "descent",
        "joint",
        "random-direction",
        "sam",
        "deployed-look-ahead",
        "reward-centring",
        "batch-sum",
        "importance-weighted",
        "domain-invariant",
        "100-labels",
        "oracle",
    ]
    """Names of methods; `+` combines some, `N-labels` adds N labelled shifted pairs."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Each is a split of its own, the same for every method."""
    backbone: str
    """Pretrained model whose frozen hidden states are the features."""
    max_length: Count = 128
    """Longest text, in tokens; what is longer is cut."""
    features_dir: PathText | None = None
    """Where frozen features are kept; None: in `output_dir`."""
    head: HeadSettings = HeadSettings()
    workers: Count = 1
    """Splits run at the same time, each in a process of its own."""
    allow_unequal_budgets: bool = False
    """Compare methods that train several heads with methods that train one."""

    @model_validator(mode="after")
    def _named_once(self) -> "CompareSettings":
        for name in ("shifts", "seeds", "methods"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} may each be named once only: twice is no more evidence")
        return self
