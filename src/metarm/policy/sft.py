# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning: a language model learns to answer prompts as demonstrations do."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarm.checkpoints import CheckpointPlace
from metarm.config import SftSettings
from metarm.data.encoding import Encoder
from metarm.errors import EmptySetError
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.models.reporting import StepReporter
from metarm.models.steady_steps import SteadySteps
from metarm.protocols import ProgressReporter
from metarm.schema import Prompt

__all__ = ["collate_texts", "encode_demonstration", "train_sft"]

IGNORED = -100


def train_sft(
    *,
    model: str,
    demonstrations: Sequence[tuple[Prompt, str]],
    settings: SftSettings,
    output_dir: Path,
    seed: int,
    progress: ProgressReporter,
    checkpoints: CheckpointPlace | None = None,
) -> Mapping[str, float]:
    """Fine-tune on the responses of demonstrations and save model and tokenizer.

    Args:
        model: Folder or hub id of a causal language model.
        demonstrations: Prompt and response; the loss is on the response and its EOS alone.
        settings: Epochs, rates and sizes.
        output_dir: Where to save.
        seed: Order of the demonstrations.
        progress: Gets one bar.
        checkpoints: Where it keeps what it goes on from, and finds what an earlier try has kept.

    Returns:
        `loss_nats`, mean negative log-likelihood per response token over the last tenth of
        training; `num_examples`; `num_too_long`, demonstrations left out.

    Raises:
        EmptySetError: When no demonstration fits `max_length`.

    Writes:
        `output_dir` in Hugging Face format.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from metarm.models.safe_checkpoints import NEWEST, SafeCheckpoints

    class SftTrainer(_SteadyRows, SafeCheckpoints, Trainer):
        pass

    encoder = load_encoder(model)
    rows = [encode_demonstration(encoder, prompt, response) for prompt, response in demonstrations]
    fits = [row for row in rows if len(row["input_ids"]) <= settings.max_length]
    if not fits:
        raise EmptySetError(
            f"no demonstration is left: {len(rows)} read, all longer than "
            f"sft.max_length={settings.max_length} tokens"
        )
    policy = load_causal_lm(model)
    num_steps = max(
        1,
        round(settings.num_train_epochs * (-(-len(fits) // settings.per_device_train_batch_size))),
    )
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=num_steps,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        warmup_steps=int(settings.warmup_fraction * num_steps),
        save_strategy="no",
        logging_steps=max(1, num_steps // 10),
        report_to=[],
        seed=seed,
        disable_tqdm=True,
        use_cpu=policy.device.type == "cpu",
        dataloader_pin_memory=policy.device.type != "cpu",
    )
    # Not nn.DataParallel: several GPUs take a launcher, and one process each.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    with progress.stage("supervised fine-tuning", num_steps) as bar:
        trainer = SftTrainer(
            model=policy,
            args=arguments,
            train_dataset=fits,
            data_collator=lambda batch: collate_texts(batch, encoder.pad_token_id),
            callbacks=[StepReporter(bar)],
        )
        trainer.remove_callback(PrinterCallback)
        if checkpoints is not None:
            trainer.keep_checkpoints(checkpoints)
        trainer.train(NEWEST if checkpoints else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Not `save_model`: it would add a pickle of the arguments, with this machine's paths.
    policy.save_pretrained(output_dir)
    encoder.tokenizer.save_pretrained(output_dir)
    return {
        "loss_nats": float(losses[-1]) if losses else float("nan"),
        "num_examples": len(fits),
        "num_too_long": len(rows) - len(fits),
    }


class _SteadyRows(SteadySteps):
    """Micro-batches of demonstrations, in parts."""

    def split_rows(
        self, inputs: Mapping[str, Any], most: int
    ) -> Iterator[tuple[dict[str, Any], float]]:
        """Rows in their order; a loss that is a sum over the step's tokens adds up by itself."""
        total = int((inputs["labels"] != IGNORED).sum())
        for start in range(0, self.count_rows(inputs), most):
            part = {name: value[start : start + most] for name, value in inputs.items()}
            share = int((part["labels"] != IGNORED).sum()) / total
            yield part, 1.0 if self.model_accepts_loss_kwargs else share

    def own_state(self) -> dict[str, Any]:
        """The size of a micro-batch."""
        return self.steady_state()

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.take_steady_state(state)


def encode_demonstration(encoder: Encoder, prompt: Prompt, response: str) -> dict[str, list[int]]:
    """Ids of a prompt and its response up to EOS, and labels: -100 on the prompt, else the ids."""
    prompt_ids = encoder.encode_prompt(prompt)
    num_prompt = len(prompt_ids)
    ids = encoder.encode(prompt, response)
    if ids[:num_prompt] != prompt_ids:
        # The two merge where they meet: learn what sampling will continue, the prompt by itself.
        ids = prompt_ids + encoder.encode_continuation(response)
    answer = ids[num_prompt:]
    # A template may write a newline after EOS, or no EOS: a policy must learn to end with EOS.
    if encoder.eos_token_id in answer:
        answer = answer[: len(answer) - answer[::-1].index(encoder.eos_token_id)]
    else:
        answer = [*answer, encoder.eos_token_id]
    return {"input_ids": ids[:num_prompt] + answer, "labels": [IGNORED] * num_prompt + answer}


def collate_texts(batch: Sequence[Mapping[str, list[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """Texts with labels as tensors of shape (rows, tokens), padded on the right."""
    length = max(len(row["input_ids"]) for row in batch)
    input_ids = torch.full((len(batch), length), pad_token_id)
    labels = torch.full((len(batch), length), IGNORED)
    attention_mask = torch.zeros((len(batch), length), dtype=torch.long)
    for index, row in enumerate(batch):
        size = len(row["input_ids"])
        input_ids[index, :size] = torch.tensor(row["input_ids"])
        labels[index, :size] = torch.tensor(row["labels"])
        attention_mask[index, :size] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
