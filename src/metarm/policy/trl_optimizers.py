# SPDX-License-Identifier: Apache-2.0
"""RLOO, GRPO and DPO by TRL's own trainers, with SFT as the reference and this project's scores.

What would go wrong if TRL were left to itself (verified on trl 1.16, transformers 5.23):
1. Its reference is the checkpoint that training starts from: in round 2 that is not SFT any more.
   `_pin_reference` puts SFT in its place, also under an adapter, whose base is the start too.
2. A reward model given as a model reads other text than it was trained on (special tokens are cut,
   so that EOS is missing, and a tokenizer may drop the first space). The reward here is a function
   of token ids, which the project's one encoder turns into text, and its own scorer scores.
3. With a weight of 0 there is no reference, and nothing measures KL: a weight too small to change
   any number stands in.
4. Dropout is on; weights are in bf16 and activations recomputed, by default. None of it is here.
5. Positions count padding: for a model with absolute positions the log-probabilities would be of
   other positions than sampling used. Such a model is refused.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers.trainer_callback import PrinterCallback

from metarm.checkpoints import CheckpointPlace
from metarm.config_optimize import OptimizeSettings
from metarm.errors import DataError, EmptySetError, ModelError
from metarm.models.loading import context_length, load_causal_lm, load_encoder, lora_config
from metarm.models.reporting import StepReporter
from metarm.models.safe_checkpoints import NEWEST
from metarm.models.saving import merge_adapter
from metarm.policy.control import KlBudget
from metarm.policy.ppo_models import check_vocabulary
from metarm.policy.prompt_order import check_prompts, prompt_batch
from metarm.policy.sampling import end_tokens
from metarm.policy.score_scale import reward_responses
from metarm.policy.sft import encode_demonstration
from metarm.policy.trainer_checkpoints import GroupCheckpoints, PolicyCheckpoints
from metarm.policy.trainer_watch import IterationKeeper, Keeper, PassKeeper, Watch
from metarm.policy.trl_refusals import refuse_absolute_positions, refuse_other_tokens
from metarm.protocols import ProgressReporter, ScoreFunction
from metarm.schema import PreferencePair, Prompt, prompt_to_json
from metarm.storage import content_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["optimize_dpo", "optimize_grpo", "optimize_rloo"]

logger = logging.getLogger(__name__)

NO_PENALTY: Final = 1e-30
"""A weight of KL that TRL takes for one, and that changes no sum in fp32."""
SCHEDULES: Final = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "inverse_sqrt": "inverse_sqrt",
}
"""Names of transformers' learning-rate schedules."""


def optimize_rloo(
    *,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    prompts: Sequence[Prompt],
    output_dir: Path,
    seed: int,
    monitor: ScoreFunction | None,
    progress: ProgressReporter,
    settings: OptimizeSettings,
    checkpoints: CheckpointPlace | None = None,
) -> Mapping[str, float]:
    """REINFORCE against the mean of a prompt's other responses: a `protocols.PolicyOptimizer`.

    KL to SFT is in the reward, as in PPO, with the same weight of the same normalised score; there
    is no value model. `checkpoints`: where to go on from, in the middle of a batch too.

    Raises:
        EmptySetError: When there are no prompts.
        DataError: When a prompt leaves no room for a response, or prompts are of two kinds.
        ModelError: When tokenizers differ, the model counts absolute positions, or training
            diverges; no policy is saved then.
        ConfigError: When the policy is beyond the KL budget from the start.

    Writes:
        `output_dir` in Hugging Face format, and `metrics.jsonl`, one line an iteration.

    Source:
        Ahmadian et al. 2402.14740; TRL's `RLOOTrainer`.
    """
    from trl import RLOOConfig, RLOOTrainer

    class KeptRlooTrainer(GroupCheckpoints, RLOOTrainer):
        """TRL's, with checkpoints."""

    watch = _watch(
        policy_dir,
        reference_dir,
        reward_model_dir,
        score,
        prompts,
        output_dir,
        seed,
        monitor,
        settings,
        what="RLOO",
    )
    arguments = _sampling_arguments(
        RLOOConfig, watch, output_dir, normalize_advantages=settings.normalize_advantages
    )
    return _train_on_groups(
        KeptRlooTrainer, arguments, watch, output_dir, progress, "RLOO", checkpoints
    )


def optimize_grpo(
    *,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    prompts: Sequence[Prompt],
    output_dir: Path,
    seed: int,
    monitor: ScoreFunction | None,
    progress: ProgressReporter,
    settings: OptimizeSettings,
    checkpoints: CheckpointPlace | None = None,
) -> Mapping[str, float]:
    """Advantages in units of a prompt's own spread, KL in the loss: a `protocols.PolicyOptimizer`.

    Its weight of KL is not PPO's: advantages have no unit, and KL is per token and estimated by k3.
    `checkpoints` as in `optimize_rloo`.

    Raises:
        EmptySetError, DataError, ModelError, ConfigError: As `optimize_rloo`.

    Writes:
        `output_dir` in Hugging Face format, and `metrics.jsonl`, one line an iteration.

    Source:
        Shao et al. 2402.03300; TRL's `GRPOTrainer` with its own defaults of loss and scale.
    """
    from trl import GRPOConfig, GRPOTrainer

    class KeptGrpoTrainer(GroupCheckpoints, GRPOTrainer):
        """TRL's, with checkpoints."""

    watch = _watch(
        policy_dir,
        reference_dir,
        reward_model_dir,
        score,
        prompts,
        output_dir,
        seed,
        monitor,
        settings,
        what="GRPO",
    )
    arguments = _sampling_arguments(GRPOConfig, watch, output_dir)
    return _train_on_groups(
        KeptGrpoTrainer, arguments, watch, output_dir, progress, "GRPO", checkpoints
    )


def optimize_dpo(
    *,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    prompts: Sequence[Prompt],
    output_dir: Path,
    seed: int,
    monitor: ScoreFunction | None,
    progress: ProgressReporter,
    settings: OptimizeSettings,
    pairs: Sequence[PreferencePair] = (),
    checkpoints: CheckpointPlace | None = None,
) -> Mapping[str, float]:
    """Direct preference optimisation on labelled pairs: a `protocols.PolicyOptimizer`.

    No reward model is used and nothing is sampled to learn from: `score`, `prompts` and `monitor`
    measure the policy after each pass over the pairs.

    Args:
        policy_dir: Where the policy starts.
        reference_dir: The SFT policy, the reference of the loss.
        reward_model_dir: Not used.
        score: Measures the policy's responses.
        prompts: What it is measured on; at least one.
        output_dir: Where to save.
        seed: Order of pairs, and the responses that are measured.
        monitor: Another score function, only logged (gold).
        progress: Gets one bar.
        settings: Those that begin with `dpo_`, `learning_rate` and its schedule.
        pairs: The original preference pairs; longer ones than the context are left out.
        checkpoints: Where to go on from, in the middle of a pass too; None: nothing is kept.

    Raises:
        EmptySetError: When there are no prompts, or no pair fits the policy's context.
        DataError: When a prompt leaves no room for a response.
        ModelError: When tokenizers differ, or training diverges; no policy is saved then.
        ConfigError: When the policy is beyond the KL budget from the start.

    Writes:
        `output_dir` in Hugging Face format, and `metrics.jsonl`, one line a pass.

    Source:
        Rafailov et al. 2305.18290; TRL's `DPOTrainer`.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class TokenisedDpoTrainer(PolicyCheckpoints, DPOTrainer):
        """TRL's, on ids from the project's one encoder: what SFT learnt to end stays ended."""

        def _prepare_dataset(self, dataset: Any, *others: Any) -> Any:
            return dataset

    watch = _watch(
        policy_dir,
        reference_dir,
        reward_model_dir,
        score,
        prompts,
        output_dir,
        seed,
        monitor,
        settings,
        what="DPO",
    )
    rows = _encode_sides(watch, pairs)
    size = min(settings.dpo_batch_size, len(rows))
    at_once = min(size, max(1, (settings.micro_batch_size or 2 * size) // 2))
    accumulated = -(-size // at_once)
    per_pass = -(-len(rows) // (at_once * accumulated))
    num_steps = settings.dpo_epochs * per_pass
    arguments = _arguments(
        DPOConfig,
        watch,
        output_dir,
        num_steps=num_steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=settings.dpo_epochs,
        # Not after the epoch: a checkpoint of its last step has this log behind it.
        logging_steps=per_pass,
        beta=settings.dpo_beta,
        max_length=None,
    )
    with progress.stage("optimise the policy (DPO)", num_steps) as bar:
        trainer = TokenisedDpoTrainer(
            model=watch.policy,
            ref_model=watch.reference,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=watch.encoder.tokenizer,
            peft_config=_adapter(settings),
            callbacks=[StepReporter(bar)],
        )
        return _run(trainer, PassKeeper(watch), output_dir, checkpoints)


def _watch(
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    prompts: Sequence[Prompt],
    output_dir: Path,
    seed: int,
    monitor: ScoreFunction | None,
    settings: OptimizeSettings,
    *,
    what: str,
) -> Watch:
    """Models and prompts, checked before anything is trained."""
    encoder = load_encoder(policy_dir)
    reason = "KL compares token by token: the reference must be the policy's ancestor"
    check_vocabulary(encoder, policy_dir, reference_dir, reason)
    policy, reference = load_causal_lm(policy_dir), load_causal_lm(reference_dir)
    reference.requires_grad_(False)
    check_prompts(encoder, prompts, [policy], settings, what=what)
    for module in policy.modules():
        # Some attentions drop by a number of theirs, which TRL's `disable_dropout` does not see.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return Watch(
        settings=settings,
        seed=seed,
        encoder=encoder,
        policy=policy,
        reference=reference,
        prompts=prompts,
        score=score,
        reward_model=content_digest(reward_model_dir),
        monitor=monitor,
        log=output_dir / "metrics.jsonl",
        uses_cache=bool(policy.config.use_cache),
        budget=KlBudget(settings.kl_budget),
    )


def _arguments(
    config: Callable[..., Any], watch: Watch, output_dir: Path, *, num_steps: int, **more: Any
) -> Any:
    """What all three trainers are told alike: PPO's optimiser, fp32, nothing saved or reported."""
    settings = watch.settings
    on_cpu = watch.policy.device.type == "cpu"
    rise = round(settings.warmup_fraction * num_steps)
    arguments = config(
        output_dir=str(output_dir),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.lr_scheduler_type],
        lr_scheduler_kwargs=(
            {"timescale": max(rise, 1)} if settings.lr_scheduler_type == "inverse_sqrt" else None
        ),
        warmup_steps=rise,
        max_grad_norm=settings.max_grad_norm,
        weight_decay=0.0,
        adam_epsilon=1e-6,
        seed=watch.seed % 2**32,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        **more,
    )
    # Not nn.DataParallel: several GPUs take a launcher, and one process each.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _sampling_arguments(
    config: Callable[..., Any], watch: Watch, output_dir: Path, **more: Any
) -> Any:
    """Iterations of `batch_size` responses in TRL's terms, logged once each."""
    settings = watch.settings
    mini_batch = settings.batch_size // settings.num_mini_batches
    at_once = settings.micro_batch_size or mini_batch
    num_updates = settings.num_mini_batches * settings.num_ppo_epochs
    num_steps = settings.num_iterations * num_updates
    return _arguments(
        config,
        watch,
        output_dir,
        num_steps=num_steps,
        max_steps=num_steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=mini_batch // at_once,
        generation_batch_size=settings.batch_size,
        num_iterations=settings.num_ppo_epochs,
        num_generations=settings.num_generations,
        logging_steps=num_updates,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        beta=settings.kl_coef or NO_PENALTY,
        epsilon=settings.cliprange,
        shuffle_dataset=False,
        **more,
    )


def _train_on_groups(
    kind: Callable[..., Any],
    arguments: Any,
    watch: Watch,
    output_dir: Path,
    progress: ProgressReporter,
    what: str,
    checkpoints: CheckpointPlace | None,
) -> dict[str, float]:
    settings = watch.settings
    refuse_other_tokens(watch.encoder, watch.prompts)
    refuse_absolute_positions(watch)
    per_iteration = settings.batch_size // settings.num_generations
    drawn = [
        prompt
        for iteration in range(settings.num_iterations)
        for prompt in prompt_batch(watch.prompts, per_iteration, watch.seed, iteration)
    ]
    with progress.stage(f"optimise the policy ({what})", settings.num_iterations) as bar:
        trainer = kind(
            model=watch.policy,
            reward_funcs=_reward_function(watch, drawn),
            args=arguments,
            train_dataset=_prompt_rows(drawn),
            processing_class=watch.encoder.tokenizer,
            peft_config=_adapter(settings),
        )
        _pin_reference(trainer, watch.reference)
        return _run(trainer, IterationKeeper(watch, bar), output_dir, checkpoints)


def _run(
    trainer: Any, keeper: Keeper, output_dir: Path, checkpoints: CheckpointPlace | None
) -> dict[str, float]:
    """Train, put back what a budget has kept, and save the policy as a plain folder."""
    watch = trainer.watch = keeper.watch
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(keeper)
    if checkpoints is not None:
        trainer.keep_checkpoints(checkpoints)
    trainer.train(NEWEST if checkpoints else None)
    metrics = watch.finish(is_measured=keeper.measures_after_updates)
    merged = merge_adapter(trainer.accelerator.unwrap_model(trainer.model))
    # Trainers turn it off, and whoever generates from the folder would compute every text anew.
    merged.config.use_cache = watch.uses_cache
    # Not `save_model`: it would add a pickle of the arguments, with this machine's paths.
    merged.save_pretrained(output_dir)
    watch.encoder.tokenizer.save_pretrained(output_dir)
    return metrics


def _adapter(settings: OptimizeSettings) -> Any:
    return lora_config(settings.lora_r, has_score_head=False) if settings.use_peft else None


def _pin_reference(trainer: Any, reference: "PreTrainedModel") -> None:
    """Make `reference` what TRL measures KL to, prepared as TRL prepares its own.

    Raises:
        ModelError: In one of several processes: logs and the KL budget are of one.
    """
    from trl.trainer.utils import add_fused_lm_head

    if trainer.accelerator.num_processes > 1:
        raise ModelError(
            f"rloo and grpo run in one process here, got {trainer.accelerator.num_processes}: "
            "start metarm by itself, not with a launcher"
        )
    add_fused_lm_head(reference, temperature=trainer.temperature)
    trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)


def _reward_function(watch: Watch, drawn: Sequence[Prompt]) -> Callable[..., list[float]]:
    """The reward as TRL calls it: the same scores of the same text as everywhere else."""
    ends = end_tokens(watch.policy, watch.encoder)

    def reward_model(
        *, completion_ids: list[list[int]], place: list[int], **others: Any
    ) -> list[float]:
        prompts = [drawn[index] for index in place]
        finished = [ids[-1] in ends for ids in completion_ids]
        responses = [
            watch.encoder.decode(ids[:-1] if is_finished else ids)
            for ids, is_finished in zip(completion_ids, finished, strict=True)
        ]
        settings = watch.settings
        scores = watch.see(prompts, completion_ids, finished, responses)
        rewards = reward_responses(watch.scale, scores, finished, settings, of=watch.reward_model)
        watch.row["objective/kl_coef"] = settings.kl_coef
        penalty = settings.kl_coef * watch.row["objective/kl"]
        watch.row["objective/rlhf_reward"] = rewards.mean().item() - penalty
        watch.check_budget()
        if watch.is_beyond:
            watch.write({})
        return rewards.tolist()

    return reward_model


def _prompt_rows(drawn: Sequence[Prompt]) -> Any:
    """The prompts in their order, each with its place: rewards find their own prompt by it."""
    from datasets import Dataset

    if len({isinstance(prompt, str) for prompt in drawn}) > 1:
        raise DataError(
            "expected prompts of one kind, got texts and conversations: rloo and grpo take either; "
            "write all as conversations, or all as text"
        )
    return Dataset.from_list(
        [{"prompt": prompt_to_json(p), "place": place} for place, p in enumerate(drawn)]
    )


def _encode_sides(watch: Watch, pairs: Sequence[PreferencePair]) -> list[dict[str, list[int]]]:
    """Ids of prompt and both sides, each ended by EOS; those that fit the policy's context."""
    if not pairs:
        raise EmptySetError(
            "dpo learns from labelled pairs, got none: give `metarm optimize` --preferences, or "
            "run it as an arm of `metarm run`"
        )
    context = context_length(watch.policy)
    rows = []
    for pair in pairs:
        prompt_ids = watch.encoder.encode_prompt(pair.prompt)
        sides = [
            encode_demonstration(watch.encoder, pair.prompt, response)["input_ids"]
            for response in (pair.chosen, pair.rejected)
        ]
        if max(map(len, sides)) <= context:
            chosen, rejected = (ids[len(prompt_ids) :] for ids in sides)
            rows.append({"prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected})
    if not rows:
        raise EmptySetError(
            f"none of the {len(pairs)} pairs fits the policy's context of {context} tokens"
        )
    if len(rows) < len(pairs):
        logger.warning(
            "dpo: %d of %d pairs left out: longer than the policy's context of %d tokens",
            len(pairs) - len(rows),
            len(pairs),
            context,
        )
    return rows
